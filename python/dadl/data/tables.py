"""Delimited text files. Every bad row is reported."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .text import TextFileError, not_text, open_text

DELIMITERS = ",;\t"
SEPARATOR_LINE = "sep="  # Excel's first line, which names the delimiter


@dataclass(frozen=True)
class TableRow:
    """The fields of one row; ``where`` is the file and the line where it begins."""

    where: str
    fields: list[str]


@dataclass(frozen=True)
class Table:
    """The header of a file, and the rows with as many columns as the header."""

    path: Path
    header: list[str]
    rows: list[TableRow]

    def positions(self, columns: Iterable[str], problems: list[str]) -> dict[str, int]:
        """The position of each column; a missing or repeated column is left out and added to ``problems``."""
        found = {}
        for column in columns:
            count = self.header.count(column)
            if count == 1:
                found[column] = self.header.index(column)
            else:
                how = f"{count} columns" if count else "no column"
                several = "," in column and all(part.strip() in self.header for part in column.split(","))
                hint = ", several of which are separated by spaces" if several else ""
                problems.append(f"{self.path}: {how} {column!r}; there are {', '.join(map(repr, self.header))}{hint}")
        return found


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
        with open_text(path) as file, _long_fields():
            rows = list(_rows(path.name, file, delimiter, quoted, problems))
    except TextFileError as error:
        problems.append(str(error))
        return Table(path, [], [])
    if len(rows) < 2:
        problems.append(f"{path}: no rows; expected a header and a row for each sample")
        return Table(path, [], [])
    header = _trimmed([name.strip() for name in rows[0].fields], rows)
    for row in rows:
        if (reason := not_text("".join(row.fields))) is not None:
            problems.append(f"{row.where}: {reason}")
        if len(row.fields) != len(header):
            advice = "; a field that holds the delimiter must be quoted" if quoted else ""
            problems.append(
                f"{row.where}: expected {len(header)} columns, as the header has, got {len(row.fields)}{advice}"
            )
    return Table(path, header, [row for row in rows[1:] if len(row.fields) == len(header)])


def _rows(name: str, file: TextIO, delimiter: str | None, quoted: bool, problems: list[str]) -> Iterator[TableRow]:
    first, lines_before = file.readline(), 1
    separator = first.rstrip("\r\n")[len(SEPARATOR_LINE) :]
    if not first.lower().startswith(SEPARATOR_LINE) or len(separator) != 1 or separator == '"':
        separator, lines_before = max(DELIMITERS, key=first.count), 0
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
