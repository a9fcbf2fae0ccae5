"""The commands of the command line, one a module; `cli.py` imports the one that is called."""
