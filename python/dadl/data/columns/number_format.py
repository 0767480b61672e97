"""How numbers are written in a table: the decimal sign and the separator of thousands."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Literal, get_args

from ...errors import SettingsError

Decimal = Literal[".", ","]
Thousands = Literal[".", ",", " ", "'", "none"]

SPACES = " \u00a0\u2009\u202f"  # ordinary, no-break, thin, narrow no-break
VARIANTS = {" ": f"[{SPACES}]", "'": "['\u2019]", ".": r"\.", ",": ","}
CURRENCIES = re.compile(r"(?:EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|CZK|Fr\.|kr)\b", re.IGNORECASE)
DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([T ].*)?|\d{1,2}:\d{2}(:\d{2}.*)?"
)


@dataclass(frozen=True)
class NumberFormat:
    """The ``decimal`` sign and the separator of ``thousands``; ``None`` where the user has not said it.

    The decimal sign is the point, unless that separates thousands; without ``thousands`` there is no separator. A space
    also stands for the no-break and thin spaces, and ``'`` for the typographic apostrophe.
    """

    decimal: Decimal | None = None
    thousands: Thousands | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("decimal", self.decimal, get_args(Decimal)),
            ("thousands", self.thousands, get_args(Thousands)),
        ):
            if value is not None and value not in known:
                raise SettingsError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        if self.decimal is not None and self.decimal == self.thousands:
            raise SettingsError(f"decimal and thousands are both {self.decimal!r}: one sign cannot be both")

    @property
    def stated(self) -> bool:
        """Whether the user has said how numbers are written, so that nothing is left to guess."""
        return self.decimal is not None or self.thousands is not None

    @property
    def sign(self) -> Decimal:
        """The decimal sign."""
        return self.decimal or ("," if self.thousands == "." else ".")

    @property
    def separator(self) -> str | None:
        return None if self.thousands == "none" else self.thousands

    @property
    def options(self) -> str:
        """As options of the command line."""
        given = [
            f"--{name} {value!r}"
            for name, value in (("decimal", self.decimal), ("thousands", self.thousands))
            if value is not None
        ]
        return " ".join(given)

    @cached_property
    def parse(self) -> Callable[[str], float]:
        """A stripped field as a number, or NaN. Python's 1_000 does not count as one."""
        if self.sign == "." and self.separator is None:
            return _plain
        whole = "[0-9]+"
        if self.separator is not None:
            whole = f"(?:[0-9]{{1,3}}(?:{VARIANTS[self.separator]}[0-9]{{3}})+|[0-9]+)"
        sign = VARIANTS[self.sign]
        pattern = re.compile(f"[+-]?(?:{whole}(?:{sign}[0-9]*)?|{sign}[0-9]+)(?:[eE][+-]?[0-9]+)?")
        separators = re.compile(VARIANTS[self.separator]) if self.separator is not None else None

        def parse(field: str) -> float:
            if pattern.fullmatch(field) is None:
                return nan
            field = field if separators is None else separators.sub("", field)
            return float(field.replace(self.sign, "."))

        return parse


# The ways in which people write numbers, the likelier first.
FORMATS = (
    NumberFormat("."),
    NumberFormat(","),
    NumberFormat(",", "."),
    NumberFormat(".", ","),
    NumberFormat(",", " "),
    NumberFormat(".", " "),
    NumberFormat(".", "'"),
    NumberFormat(",", "'"),
)
GERMAN = NumberFormat(",", ".")


def fitting(fields: Sequence[str]) -> list[NumberFormat]:
    """The formats that make numbers of all these fields; of those that give the same numbers the first."""
    found: dict[tuple[float, ...], NumberFormat] = {}
    for form in FORMATS:
        values: list[float] = []
        for field in fields:
            value = form.parse(field)
            if value != value:
                break
            values.append(value)
        else:
            found.setdefault(tuple(values), form)
    return list(found.values())


def described(field: str) -> str | None:
    """What a field is if not a number, with a way out; ``None`` if that cannot be told."""
    if DATE.fullmatch(field):
        return "a date or time; of features, list the column in --dates, written as 2024-05-31 or 2024-05-31 14:30"
    if not any(character.isdigit() for character in field):
        return None
    if field[-1] in "%‰" or field[0] in "%‰":
        return "a percentage; remove the sign from the whole column, which then holds numbers such as 12.5"
    if any(unicodedata.category(end) == "Sc" for end in (*field.lstrip("+-")[:1], field[-1])):
        return "an amount with a currency sign; remove the sign from the whole column"
    if CURRENCIES.match(field) or CURRENCIES.fullmatch(re.sub(r"^[^A-Za-z]*", "", field)):
        return "an amount with a currency; remove it from the whole column"
    return None


def _plain(field: str) -> float:
    try:
        return nan if "_" in field else float(field)
    except ValueError:
        return nan
