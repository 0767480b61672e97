"""Columns of lines that all have the same length. Nothing is split or parsed before it is asked for."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

SPACES_AND_UNDERSCORE = " _\t\v\f\x1c\x1d\x1e\x1f"  # of ASCII, but for line ends
LONG = 1 << 20  # characters; for fewer, importing pyarrow takes longer than splitting and parsing without it
NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?")


class Lines:
    """``count`` lines of ``width`` fields. ``text`` ends with the last line's end and needs no rules of quoting.

    ``bare``: no field has spaces or underscores. Of long texts without, pyarrow reads the columns, where it is
    installed: those whose first field is a number as numbers, the others as text.
    """

    def __init__(self, text: str, delimiter: str, count: int, width: int, bare: bool) -> None:
        self.text, self.delimiter, self.count, self.width, self.bare = text, delimiter, count, width, bare
        self._first: list[list[str]] = []

    @classmethod
    def of(cls, text: str, delimiter: str, width: int) -> "Lines | None":
        """``None`` if a line has more or fewer fields, or none but empty ones."""
        marks = np.frombuffer(text.encode(), np.uint8)
        ends = marks == ord("\n")
        breaks = np.flatnonzero(ends | (marks == ord(delimiter)))
        count = int(np.count_nonzero(ends))
        # As many ends of lines as of rows, each after the last column.
        last = breaks[width - 1 :: width]
        if len(breaks) != count * width or not ends[last].all():
            return None
        bare = text.isascii() and not any(sign in text for sign in SPACES_AND_UNDERSCORE)
        lines = cls(text, delimiter, count, width, bare)
        begins = np.concatenate([[0], last[:-1] + 1])
        if bare and not (breaks[::width] == begins).any():
            return lines  # the first field of every line is not empty
        return lines if all(any(map(str.strip, row)) for row in zip(*lines.split, strict=True)) else None

    @property
    def columns(self) -> "list[Column]":
        return [Column(self, column) for column in range(self.width)]

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> list[list[str]]:
        """The fields of the first lines, or of more lines than that."""
        if len(self._first) < min(count, self.count):
            self._first = [line.split(self.delimiter) for line in self.text.split("\n", count)[:count] if line]
        return self._first

    @cached_property
    def split(self) -> list[list[str]]:
        """The fields of each column."""
        fields = self.text[:-1].replace("\n", self.delimiter).split(self.delimiter)
        return [fields[column :: self.width] for column in range(self.width)]

    @cached_property
    def by_arrow(self) -> "list[pa.ChunkedArray] | None":
        """The columns as pyarrow reads them; ``None`` without it, for short texts, and where it finds fault."""
        if not self.bare or len(self.text) < LONG:
            return None
        try:
            import pyarrow as pa
            from pyarrow import csv
        except ImportError:
            return None
        kinds = [pa.float64() if field and NUMBER.fullmatch(field) else pa.string() for field in self.first(1)[0]]
        names = list(map(str, range(self.width)))
        try:
            table = csv.read_csv(
                pa.BufferReader(self.text.encode()),
                csv.ReadOptions(use_threads=False, column_names=names),
                csv.ParseOptions(delimiter=self.delimiter, quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(column_types=dict(zip(names, kinds, strict=True)), null_values=[""]),
            )
        except pa.ArrowInvalid:
            return None
        return table.columns if len(table) == len(self) else None


class Column(Sequence[str]):
    """The fields of one column."""

    def __init__(self, lines: Lines, number: int) -> None:
        self.lines, self.number = lines, number

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice) and rows.stop is not None and rows.step is None and 0 <= rows.stop < len(self):
            return [fields[self.number] for fields in self.lines.first(rows.stop)][rows]
        return self._fields[rows]

    @cached_property
    def _fields(self) -> list[str]:
        read = self._read
        return self.lines.split[self.number] if read is None or str(read.type) != "string" else read.to_pylist()

    @property
    def _read(self) -> Any:
        return None if self.lines.by_arrow is None else self.lines.by_arrow[self.number]

    def numbers(self) -> npt.NDArray[np.float64] | None:
        """The values of a column of numbers, each as ``float`` has it; ``None`` if they have not been read yet."""
        read = self._read
        if read is None or str(read.type) != "double" or read.null_count:
            return None
        # By hand: to_numpy() imports pandas, which takes longer than all that is done here.
        return np.concatenate(
            [np.frombuffer(chunk.buffers()[1], np.float64, len(chunk), 8 * chunk.offset) for chunk in read.chunks]
        )
