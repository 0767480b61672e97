"""What a user can mend."""


class UserError(Exception):
    """A problem of data, settings or files, in sentences that say what to do; commands show it without a traceback."""


class SettingsError(UserError, ValueError):
    """Settings that cannot be together, or that another run has."""


class ProblemsError(UserError, ValueError):
    """Everything that is wrong with data or files, a line each; ``problems`` is the list of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
