"""The exceptions of this room for people; the command line turns them into a message and an exit code."""


class RecipeError(Exception):
    """A recipe cannot be used. `problems` holds every line to show: file, line, place, cause, way out."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StageError(Exception):
    """A stage of a run failed for a reason that the user can mend; the message says which stage and how."""
