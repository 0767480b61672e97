"""Delimited text files. Every bad row is reported."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

DELIMITERS = ",;\t"


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

    def texts(self, column: int) -> list[str]:
        """The stripped fields of a column."""
        return list(map(str.strip, self.columns[column]))

    def numbers(self, column: int) -> None:
        """Nothing: text has no types. This and :meth:`is_time` make the table a :class:`.Source`."""

    def is_time(self, column: int) -> bool:
        return False


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
            text = file.read()
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return Table.of(path, [], [])
    if (table := _plain_table(path, text, delimiter, quoted)) is not None:
        return table
    rows = list(_rows(path.name, io.StringIO(text, newline=""), delimiter, quoted, problems))
    if len(rows) < 2:
        problems.append(f"{path}: no rows; expected a header and a row for each sample")
        return Table.of(path, [], [])
    header = [name.strip() for name in rows[0].fields]
    for row in rows:
        if not _is_unicode(row.fields):
            problems.append(f"{row.where}: not UTF-8; save the file with that encoding")
        if len(row.fields) != len(header):
            advice = "; a field that holds the delimiter must be quoted" if quoted else ""
            problems.append(
                f"{row.where}: expected {len(header)} columns, as the header has, got {len(row.fields)}{advice}"
            )
    return Table.of(path, header, [row for row in rows[1:] if len(row.fields) == len(header)])


def _plain_table(path: Path, text: str, delimiter: str | None, quoted: bool) -> Table | None:
    """The table of a text in which nothing needs the rules of quoting and nothing is wrong, several times as fast.

    ``None`` if the text has quotation marks, or lines that are blank or of different lengths, or is not Unicode.
    """
    text = text.replace("\r\n", "\n").removesuffix("\n")
    lines = text.split("\n")
    if delimiter is None:
        delimiter = _likely_delimiter(lines[0])
    if (quoted and '"' in text) or any(sign in text for sign in "\r\0") or text[:4].lower() == "sep=":
        return None
    width = lines[0].count(delimiter) + 1
    if len(lines) < 2 or not all(line.count(delimiter) == width - 1 for line in lines):
        return None
    blank = re.search(rf"^(?:{re.escape(delimiter)}|[^\S\n])*$", text, re.MULTILINE)
    if blank is not None or not _is_unicode([text]):
        return None
    fields = text.replace("\n", delimiter).split(delimiter)
    columns = [fields[column::width] for column in range(width)]
    header = [column.pop(0).strip() for column in columns]
    name = path.name
    return Table(path, header, [f"{name}:{line}" for line in range(2, len(lines) + 1)], columns)


def _likely_delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)


def _rows(name: str, file: TextIO, delimiter: str | None, quoted: bool, problems: list[str]) -> Iterator[TableRow]:
    if delimiter is None:
        delimiter = _likely_delimiter(file.readline())
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
