"""The command line: the program, its options, what they mean, what is done, what is printed."""
