"""The notebooks executed with the parameters of one file, the claims judged by what they left, the report."""
