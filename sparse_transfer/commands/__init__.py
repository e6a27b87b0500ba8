"""The verbs of the command line, by what they act on; each parses, calls and prints."""
