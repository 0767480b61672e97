"""Text files as data: one way to open them whatever their encoding, and to find the images that they name."""

import codecs
import difflib
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TextIO

from ..errors import UserError, shown

BYTE_ORDER_MARKS = {  # UTF-32's before UTF-16's, with which it begins
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class TextFileError(UserError, ValueError):
    """A text file that cannot be opened or decoded."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file: UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one, which a warning tells.

    Line ends are kept. Bytes that are not UTF-8 become lone surrogates, so that :func:`not_text` can name their lines.
    Raises a :class:`TextFileError` for what is not a file or cannot be opened, and, while it is read, for a file that
    is not in the encoding of its byte order mark.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TextFileError(f"{path}: not a file")
        with path.open("rb") as file:
            start = file.read(4)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        with path.open(encoding=encoding, errors=errors, newline="") as text:
            if encoding != "utf-8-sig":
                warnings.warn(f"{path}: read as {encoding.upper()}, which its byte order mark says", stacklevel=3)
            yield text
    except OSError as error:
        raise TextFileError(f"{path}: {error.strerror or error}") from None
    except UnicodeError:
        raise TextFileError(f"{path}: begins as {encoding.upper()} does, but is not; save it as UTF-8") from None


def not_text(line: str) -> str | None:
    """Why a line of :func:`open_text` is not text, or ``None`` if it is."""
    if "\0" in line:
        return "a zero byte; save the file as UTF-8, or as UTF-16 with a byte order mark"
    try:
        line.encode()
    except UnicodeEncodeError:
        return "not UTF-8; save the file with that encoding"
    return None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """``"; did you mean ...?"`` with the most similar of the words, or nothing if none is similar."""
    by_lower = {other.lower(): other for other in words}
    longer = [other for other in by_lower if word.lower().startswith(other)]
    similar = longer or difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[similar[0]]}?" if similar else ""


class NamedImages:
    """Finds images by their paths, as a text file names them, relative to ``folder``.

    Unless ``outside`` is set, a path must not lead out of the folder, neither by ``..`` nor as an absolute path nor
    through links. Backslashes separate folders if there is no file with backslashes in its name.
    """

    def __init__(self, folder: Path, *, outside: bool = False) -> None:
        self._folder, self._outside = folder, outside
        self._whole = os.path.realpath(folder)
        self._inside: dict[str, bool] = {}

    def find(self, path: str) -> str:
        """The path without ``.`` and double slashes. Raises a ``ValueError`` with a sentence if it names no file."""
        if "\\" in path and not os.path.isfile(self._folder / path):
            path = path.replace("\\", "/")
        path = PurePosixPath(path).as_posix()  # so that an image has one name
        file = self._folder / path
        if not os.path.isfile(file):
            raise ValueError(f"no file {shown(str(file))}{self._hint(path)}")
        if not self._outside and not self._is_inside(file):
            raise ValueError(
                f"{shown(path)} leads out of {self._folder}; move the image there, or allow it with --outside"
            )
        return path

    def _is_inside(self, file: Path) -> bool:
        if os.path.islink(file):
            return self._contains(os.path.realpath(file))
        parent = str(file.parent)
        if parent not in self._inside:  # a folder holds many images
            self._inside[parent] = self._contains(os.path.realpath(parent))
        return self._inside[parent]

    def _contains(self, real: str) -> bool:
        return os.path.commonpath([self._whole, real]) == self._whole

    def _hint(self, path: str) -> str:
        """Where the image seems to be."""
        inner = path.partition("/")[2]
        if inner and os.path.isfile(self._folder / inner):
            return f"; there is {shown(inner)}: paths are relative to {self._folder}"
        file = self._folder / path
        try:
            names = os.listdir(file.parent)
        except (OSError, ValueError):
            return ""
        bare = file.name.strip(",;'\"").lower()
        same = [name for name in names if name.lower() == bare] or [
            name for name in names if Path(name).stem == file.name
        ]
        return f"; did you mean {shown(same[0])}?" if same and os.path.isfile(file.parent / same[0]) else ""
