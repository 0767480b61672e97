"""Errors that a user can fix."""


class UserError(Exception):
    """A problem with data, settings or files that says what to do; commands show it without a traceback."""


class SettingsError(UserError, ValueError):
    """Settings that contradict each other, or differ from those of an earlier run."""


MOST_LINES, MOST_CHARACTERS = 20, 600


def shown(text: str, most: int = 200) -> str:
    """Text of a file for a message: on one line, of printable characters, and not too long."""
    if len(text) > most:
        text = f"{text[: most // 2]} ... ({len(text)} characters) ... {text[-most // 4 :]}"
    return text if text.isprintable() else ascii(text)[1:-1]


class ProblemsError(UserError, ValueError):
    """Everything that is wrong with data or files; ``problems`` is the list of them.

    The message has a line for each of the first ``MOST_LINES``, and says how many there are beyond.
    """

    def __init__(self, problems: list[str]) -> None:
        more = len(problems) - MOST_LINES
        lines = [shown(problem, MOST_CHARACTERS) for problem in problems[:MOST_LINES]]
        lines += [f"... and {more} more of {len(problems)} problems"] if more > 0 else []
        super().__init__("\n".join(lines))
        self.problems = problems


class OutputError(UserError, OSError):
    """A file or folder that cannot be written."""
