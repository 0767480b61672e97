"""Delimited text files. Every bad row is reported."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from .columns.lines import Column, Lines
from .text import TextFileError, not_text, open_text

DELIMITERS = ",;\t"
SEPARATOR_LINE = "sep="  # Excel's first line, which names the delimiter


class TableRow(NamedTuple):
    """The fields of one row; ``where`` is the file and the line where it begins."""

    where: str
    fields: list[str]


@dataclass(frozen=True)
class Table:
    """The header of a file, and its columns of text: those of the rows with as many columns as the header.

    ``wheres`` are the file and line of each row.
    """

    path: Path
    header: list[str]
    wheres: Sequence[str]
    columns: Sequence[Sequence[str]]

    @classmethod
    def of(cls, path: Path, header: list[str], rows: Sequence[TableRow]) -> "Table":
        """A table of rows."""
        columns = [[fields[column] for _, fields in rows] for column in range(len(header))]
        return cls(path, header, [row.where for row in rows], columns)

    @property
    def rows(self) -> list[TableRow]:
        return list(map(TableRow, self.wheres, map(list, zip(*self.columns, strict=True))))

    def __len__(self) -> int:
        return len(self.wheres)

    def where(self, row: int) -> str:
        """The file and line of a row."""
        return self.wheres[row]

    def texts(self, column: int, most: int | None = None) -> list[str]:
        """The stripped fields of a column, or its first ``most``."""
        fields = self.columns[column]
        bare = isinstance(fields, Column) and fields.lines.bare
        return list(fields[:most] if bare else map(str.strip, fields[:most]))

    def plain_numbers(self, column: int) -> npt.NDArray[np.float64] | None:
        """The numbers of a column with a decimal point, if they can be had without its texts."""
        fields = self.columns[column]
        return fields.numbers() if isinstance(fields, Column) else None

    def numbers(self, column: int) -> None:
        """Nothing: text has no types. This and :meth:`is_time` make the table a :class:`.Source`."""

    def is_time(self, column: int) -> bool:
        return False


def read_table(path: Path, problems: list[str], *, delimiter: str | None = None, quoted: bool = True) -> Table:
    """Read a file whose first row is a header; everything wrong with it is added to ``problems``.

    The file is text as :func:`.open_text` reads it. Problems are a file that cannot be read or has no rows, text that
    is not UTF-8, quotation marks that are not closed or are followed by text, and rows with more or fewer columns than
    the header. Blank rows are skipped, and so are columns at the end without a name and without values.

    Args:
        path: the file.
        problems: a line is added for each problem.
        delimiter: between columns; by default what Excel's line ``sep=;`` says, else the comma, semicolon or tab,
            whichever is most frequent in the header.
        quoted: whether fields may be in quotation marks; if not, quotation marks are ordinary text.
    """
    try:
        with open_text(path) as file:
            text = file.read()
    except TextFileError as error:
        problems.append(str(error))
        return Table.of(path, [], [])
    if (table := _plain_table(path, text, delimiter, quoted)) is not None:
        return table
    with _long_fields():
        rows = list(_rows(path.name, io.StringIO(text, newline=""), delimiter, quoted, problems))
    if len(rows) < 2:
        problems.append(f"{path}: no rows; expected a header and a row for each sample")
        return Table.of(path, [], [])
    header = _trimmed([name.strip() for name in rows[0].fields], rows)
    for row in rows:
        if (reason := not_text("".join(row.fields))) is not None:
            problems.append(f"{row.where}: {reason}")
        if len(row.fields) != len(header):
            advice = "; a field that holds the delimiter must be quoted" if quoted else ""
            problems.append(
                f"{row.where}: expected {len(header)} columns, as the header has, got {len(row.fields)}{advice}"
            )
    return Table.of(path, header, [row for row in rows[1:] if len(row.fields) == len(header)])


def _plain_table(path: Path, text: str, delimiter: str | None, quoted: bool) -> Table | None:
    """The table of a text in which nothing needs the rules of quoting and nothing is wrong, many times as fast.

    ``None`` if the text has quotation marks, Excel's first line, a last column without a name, or lines that are blank
    or of different lengths, or if it is not Unicode.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if not text.endswith("\n"):
        text += "\n"
    first, _, body = text.partition("\n")
    if delimiter is None:
        delimiter = _likely_delimiter(first)
    if (quoted and '"' in text) or any(sign in text for sign in "\r\0") or first.lower().startswith(SEPARATOR_LINE):
        return None
    width = first.count(delimiter) + 1
    if not body or not first.rpartition(delimiter)[2].strip() or not_text(text) is not None:
        return None
    if (lines := Lines.of(body, delimiter, width)) is None:
        return None
    header, name = list(map(str.strip, first.split(delimiter))), path.name
    return Table(path, header, [f"{name}:{row}" for row in range(2, len(lines) + 2)], lines.columns)


def _likely_delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)


def _rows(name: str, file: TextIO, delimiter: str | None, quoted: bool, problems: list[str]) -> Iterator[TableRow]:
    first, lines_before = file.readline(), 1
    separator = first.rstrip("\r\n")[len(SEPARATOR_LINE) :]
    if not first.lower().startswith(SEPARATOR_LINE) or len(separator) != 1 or separator == '"':
        separator, lines_before = _likely_delimiter(first), 0
        file.seek(0)
    reader = csv.reader(
        file,
        delimiter=separator if delimiter is None else delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        where = f"{name}:{lines_before + reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"{where}: {_explained(error)}")
            continue
        if any(map(str.strip, fields)):
            yield TableRow(where, fields)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field have any length: the limit of csv, 131,072 characters, is a setting of the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _trimmed(header: list[str], rows: list[TableRow]) -> list[str]:
    """The header, after columns at its end without a name and without values were taken from all rows."""
    width = len(header)
    while width and not header[width - 1] and not any("".join(row.fields[width - 1 : width]).strip() for row in rows):
        width -= 1
    for row in rows:
        missing = width - len(row.fields)
        if missing > 0 and not any(header[len(row.fields) : width]):
            row.fields.extend([""] * missing)  # of columns that have no name
        while len(row.fields) > width and not row.fields[-1].strip():
            row.fields.pop()
    return header[:width]


def _explained(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quotation mark is opened here and never closed"
    if "NUL" in str(error):
        return str(not_text("\0"))
    return f"{error}; a quotation mark inside a quoted field is written twice"
