"""What a user can mend."""


class UserError(Exception):
    """A problem of data, settings or files, in sentences that say what to do; commands show it without a traceback."""


class SettingsError(UserError, ValueError):
    """Settings that cannot be together, or that another run has."""
