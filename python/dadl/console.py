"""The console that a command writes to: it may not know a letter, be full, or be gone. A command's work goes on."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class ForgivingStream:
    """A text stream that swallows what it cannot write; ``error`` is what first went wrong.

    Letters that its encoding lacks are written as escapes. After an error everything goes to the null device, also what
    Python flushes as it exits.
    """

    error: OSError | None = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def forgive_streams() -> None:
    """Replace the standard output and error of this process by forgiving ones."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))


def lost_output() -> str | None:
    """Why the standard output is incomplete; ``None`` if it is whole, or if its reader wanted no more."""
    stream = sys.stdout
    if stream is None:
        return None
    stream.flush()
    error = stream.error if isinstance(stream, ForgivingStream) else None
    return None if error is None or isinstance(error, BrokenPipeError) else error.strerror or str(error)
