"""The exception of this room for people; the command line turns it into a message and exit code 1."""


class ConvertError(Exception):
    """A file cannot be read or written as asked; the message names the file, what is wrong and the way out."""
