"""The command line: overrides, checks, help and messages. Nothing here imports torch."""
