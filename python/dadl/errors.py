"""Errors that a user can fix."""


class UserError(Exception):
    """A problem with data, settings or files that says what to do; commands show it without a traceback."""


class SettingsError(UserError, ValueError):
    """Settings that contradict each other, or differ from those of an earlier run."""


class ProblemsError(UserError, ValueError):
    """Everything that is wrong with data or files, a line each; ``problems`` is the list of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OutputError(UserError, OSError):
    """A file or folder that cannot be written."""
