"""Delimited text files. Every bad row is reported."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

DELIMITERS = ",;\t"


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

    Problems are a file that cannot be read or has no rows, text that is not UTF-8, quotation marks that are not closed
    or are followed by text, and rows with more or fewer columns than the header. Blank rows are skipped.

    Args:
        path: the file.
        problems: a line is added for each problem.
        delimiter: between columns; by default the comma, semicolon or tab, whichever is most frequent in the header.
        quoted: whether fields may be in quotation marks; if not, quotation marks are ordinary text.
    """
    try:
        # Bytes that are not UTF-8 are kept as lone surrogates, so that their rows can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(_rows(path.name, file, delimiter, quoted, problems))
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return Table(path, [], [])
    if len(rows) < 2:
        problems.append(f"{path}: no rows; expected a header and a row for each sample")
        return Table(path, [], [])
    header = [name.strip() for name in rows[0].fields]
    for row in rows:
        if not _is_unicode(row.fields):
            problems.append(f"{row.where}: not UTF-8; save the file with that encoding")
        if len(row.fields) != len(header):
            advice = "; a field that holds the delimiter must be quoted" if quoted else ""
            problems.append(
                f"{row.where}: expected {len(header)} columns, as the header has, got {len(row.fields)}{advice}"
            )
    return Table(path, header, [row for row in rows[1:] if len(row.fields) == len(header)])


def _rows(name: str, file: TextIO, delimiter: str | None, quoted: bool, problems: list[str]) -> Iterator[TableRow]:
    if delimiter is None:
        delimiter = max(DELIMITERS, key=file.readline().count)
        file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"{where}: {_explained(error)}")
            continue
        if any(map(str.strip, fields)):
            yield TableRow(where, fields)


def _is_unicode(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True


def _explained(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quotation mark is opened here and never closed"
    return f"{error}; a quotation mark inside a quoted field is written twice"
