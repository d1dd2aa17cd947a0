"""The command line: flags, messages, log and progress, and how a script ends."""
