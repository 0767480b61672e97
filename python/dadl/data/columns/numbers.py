"""Columns of numbers: exact values, and a sentence for each field that is none or could be two."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .number_format import GERMAN, NumberFormat, described, fitting
from .source import Source

Numbers = npt.NDArray[np.float64]

LARGEST = 1e30
"""Training is in single precision, in which the squares of differences of larger numbers overflow."""

FIRST = 100  # fields of a column, which most often say already what its points mean

# What pandas takes for a missing value.
MISSING = frozenset(
    {"", "#N/A N/A", "#N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"}
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)
INTEGER = re.compile("[+-]?[0-9]+")
THREE_DECIMALS = re.compile(r"[+-]?[1-9][0-9]{0,2}\.[0-9]{3}")
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,([0-9]{1,2}|[0-9]{4,})|[+-]?0,[0-9]+|.*\..*,[0-9]*")


class NumberReader:
    """Reads columns of numbers of one table; everything wrong with them is added to ``problems``."""

    def __init__(self, source: Source, form: NumberFormat, problems: list[str]) -> None:
        self.source, self.form, self.problems = source, form, problems

    def read(self, column: int, advice: str, *, missing: bool = False, hint: str = "") -> Numbers:
        """The numbers of a column, NaN where one is missing and ``missing`` allows it.

        ``advice`` is for a column of words, and ``hint`` follows the message for a missing number.
        """
        typed = self.source.numbers(column)
        values = self._parsed(column) if typed is None else typed
        wrong = ~(np.abs(values) <= LARGEST)
        if not wrong.any():
            if typed is None and not self.form.stated:
                self._check_meaning(column)
            return values
        absent, fields = np.isnan(values), self.source.texts(column) if typed is None else None
        if fields is not None:
            absent[absent] = [fields[row] in (MISSING if missing else ("",)) for row in np.flatnonzero(absent)]
        if missing:
            wrong &= ~absent
        self._explain(column, values, fields, np.flatnonzero(wrong), absent, advice, hint)
        if fields is not None and not self.form.stated and not wrong.any():
            self._check_meaning(column)
        return values

    def _parsed(self, column: int) -> Numbers:
        plain = self.form.sign == "." and self.form.separator is None
        if plain and (values := self.source.plain_numbers(column)) is not None:
            return values
        fields = self.source.texts(column)
        # Python's own 1_000 is no number here.
        if plain and "_" not in "".join(fields):
            try:
                return np.array(fields, dtype=np.float64)
            except ValueError:
                pass  # some are no numbers
        return np.array(list(map(self.form.parse, fields)), dtype=np.float64)

    def _explain(
        self,
        column: int,
        values: Numbers,
        fields: list[str] | None,
        wrong: npt.NDArray[np.intp],
        absent: npt.NDArray[np.bool_],
        advice: str,
        hint: str,
    ) -> None:
        """A sentence for each wrong row; one for a column in which all rows are wrong in the same way."""
        name, rows = self.source.header[column], wrong.tolist()
        if fields is None:
            self.problems += [
                f"{self.source.where(row)}: {name} is "
                + (f"empty; {self._expected}{hint}" if absent[row] else f"{values[row]:g}; {self._bounds(values[row])}")
                for row in rows
            ]
            return
        present = [field for field in fields if field not in MISSING]
        whole = all(np.isnan(value) for value in values)
        words = Counter(filter(None, fields))
        suggestion = self._suggestion(present) if rows else ""
        if whole and words and rows:
            kinds = {described(field) for field in present}
            first = next((row for row in rows if fields[row] in present), rows[0])
            reason = suggestion or (kinds.pop() if len(kinds) == 1 else None)
            if reason and present:
                self.problems.append(f"{self.source.where(first)}: {name} is {fields[first]!r}, {reason}")
                return
            self.problems.append(
                f"{self.source.path}: column {name!r} holds no numbers but {len(words)} different words, most often "
                f"{words.most_common(1)[0][0]!r}; {advice}"
            )
            return
        for row in rows:
            field = fields[row]
            if field in MISSING:
                message = f"{repr(field) if field else 'empty'}; {self._expected}{hint}"
            elif np.isnan(values[row]):
                # A format that fits the whole column is the likeliest reason, if it is this field that needs it.
                reason = described(field) or (suggestion if fitting([field]) else "") or _alone(field)
                message = f"{field!r}, {reason}" if reason else f"{field!r}; {self._expected}"
            else:
                message = f"{field!r}; {self._bounds(values[row])}"
            self.problems.append(f"{self.source.where(row)}: {name} is {message}")

    def _suggestion(self, present: Sequence[str]) -> str:
        """The formats that would make numbers of the whole column."""
        formats = fitting(present) if present else []
        if self.form.decimal is not None:  # rather one that the user has said
            formats = [form for form in formats if form.sign == self.form.decimal] or formats
        if len(formats) == 1:
            return f"a number only with {formats[0].options}, which fits the whole column; add it if that is meant"
        if formats:
            ways = " or ".join(form.options for form in formats)
            return f"a number only with {ways}, which give different values; add the one that is meant"
        return ""

    def _check_meaning(self, column: int) -> None:
        """Refuse a column in which points may separate thousands, because nothing in it says that they do not."""
        if _have_decimals(self.source.texts(column, most=FIRST)):
            return
        fields = self.source.texts(column)
        if "." not in "".join(fields) or _have_decimals(fields):
            return
        points = [row for row, field in enumerate(fields) if THREE_DECIMALS.fullmatch(field)]
        long = any(len(field.lstrip("+-")) > 3 for field in fields if INTEGER.fullmatch(field))
        if not points or (long and self._decimal_comma is None):
            return
        first = fields[points[0]]
        because = (
            f"{self._decimal_comma} has a decimal comma"
            if self._decimal_comma is not None
            else "every value with a point has three digits after it"
        )
        self.problems.append(
            f"{self.source.where(points[0])}: {self.source.header[column]} is {first!r}, which may be {float(first):g} "
            f"or {GERMAN.parse(first):g}, as {because}; say which with --decimal '.' or --thousands '.'"
        )

    @property
    def _expected(self) -> str:
        return f"expected a finite number such as 3{self.form.sign}5"

    def _bounds(self, value: float) -> str:
        return self._expected if np.isinf(value) else f"expected a number between {-LARGEST:g} and {LARGEST:g}"

    @cached_property
    def _decimal_comma(self) -> str | None:
        """The first value with a decimal comma in a column that holds nothing but German numbers, and its row."""
        for column, name in enumerate(self.source.header):
            if self.source.numbers(column) is not None:
                continue
            found = None
            for row, field in enumerate(self.source.texts(column)):
                if field in MISSING:
                    continue
                if GERMAN.parse(field) != GERMAN.parse(field):
                    found = None
                    break
                if found is None and DECIMAL_COMMA.fullmatch(field):
                    found = f"{name} {field!r} in {self.source.where(row)}"
            if found is not None:
                return found
        return None


def _have_decimals(fields: Sequence[str]) -> bool:
    """Whether one of these numbers, such as 12.5 or 1234.567, can only have a decimal point."""
    return any(
        not (THREE_DECIMALS.fullmatch(field) or INTEGER.fullmatch(field) or field in MISSING) for field in fields
    )


def _alone(field: str) -> str:
    """For a number that is not written as the other ones of its column."""
    if fitting([field]):
        return "which has other signs for decimals or thousands than the rest of the column; write all in one way"
    return ""
