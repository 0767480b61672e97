"""What every table offers, whether its columns are text or have types."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..tables import read_table
from .arrays import ArrayTable
from .arrow import FramePath, is_arrow, read_arrow


class Source(Protocol):
    """A table with named columns.

    ``where(row)`` names the file and the row for a message. ``texts(column)`` are the stripped fields of a column,
    empty where a value is missing, or the first ``most`` of them. ``numbers(column)`` are its values as float64 with
    NaN where one is missing, or ``None`` if the column holds text. ``plain_numbers(column)`` are the numbers with a
    decimal point that such texts stand for, as ``float`` has them, or ``None`` if one is none or that is not known.
    ``is_time(column)``: whether its type is a date or time, whose numbers are days.
    """

    @property
    def path(self) -> Path: ...

    @property
    def header(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def where(self, row: int) -> str: ...

    def texts(self, column: int, most: int | None = None) -> list[str]: ...

    def plain_numbers(self, column: int) -> npt.NDArray[np.float64] | None: ...

    def numbers(self, column: int) -> npt.NDArray[np.float64] | None: ...

    def is_time(self, column: int) -> bool: ...


def read_source(path: Path, problems: list[str], **text: Any) -> Source | None:
    """A delimited file, a parquet or Arrow file, or a frame; ``None`` if it cannot be read, which is then a problem.

    ``text`` says how :func:`.read_table` reads a delimited file.
    """
    if isinstance(path, FramePath) and isinstance(path.frame, ArrayTable):
        return path.frame
    if is_arrow(path):
        return read_arrow(path, problems)
    table = read_table(path, problems, **text)
    return table if table.header else None


def positions(source: Source, columns: list[str], problems: list[str]) -> dict[str, int]:
    """The position of each column; a missing or repeated column is left out and added to ``problems``."""
    found = {}
    for column in columns:
        count = source.header.count(column)
        if count == 1:
            found[column] = source.header.index(column)
        else:
            how = f"{count} columns" if count else "no column"
            several = "," in column and all(part.strip() in source.header for part in column.split(","))
            hint = ", several of which are separated by spaces" if several else ""
            problems.append(f"{source.path}: {how} {column!r}; there are {', '.join(map(repr, source.header))}{hint}")
    return found
