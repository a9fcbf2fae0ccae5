"""Exceptions whose messages are for users; the command line prints them and exits with code 1."""


class RecipeError(Exception):
    """A recipe cannot be used. `problems` are the lines to print: file, line, key, cause, fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StageError(Exception):
    """A run failed for a reason that the user can fix. The message says what is wrong, where, and what to do."""
