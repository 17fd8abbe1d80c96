"""Where workers run and how links are shaped."""
