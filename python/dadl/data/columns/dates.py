"""Dates and times as numbers: days since 1970-01-01, in UTC where a time zone is given."""

from datetime import datetime, timedelta, timezone

import numpy as np

from .numbers import MISSING, Numbers
from .source import Source

EPOCH = datetime(1970, 1, 1)
MICROSECONDS_PER_DAY = 86_400_000_000


def read_dates(source: Source, column: int, problems: list[str], *, missing: bool, hint: str = "") -> Numbers:
    """A column of dates as days since 1970-01-01, NaN where one is missing and ``missing`` allows it.

    Text is ISO 8601, such as 2024-05-31 or 2024-05-31T14:30+02:00; a column with a type of dates or times needs no
    text.
    """
    name = source.header[column]
    values = source.numbers(column)
    if values is not None:
        if not source.is_time(column):
            problems.append(f"{source.path}: column {name!r} is listed in --dates, but holds numbers")
        elif not missing:
            empty = np.flatnonzero(np.isnan(values)).tolist()
            problems += [f"{source.where(row)}: {name} is empty; {_EXPECTED}{hint}" for row in empty]
        return values
    fields = source.texts(column)
    values = np.full(len(fields), np.nan)
    for row, field in enumerate(fields):
        if field in MISSING and missing:
            continue
        try:
            values[row] = days_since_1970(datetime.fromisoformat(field.replace("Z", "+00:00")))
        except ValueError:
            what = repr(field) if field else "empty"
            problems.append(f"{source.where(row)}: {name} is {what}; {_EXPECTED}{hint if field in MISSING else ''}")
    return values


def days_since_1970(moment: datetime) -> float:
    """The nearest float64; a time with a zone is converted to UTC, one without is taken as it is."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(timezone.utc).replace(tzinfo=None)
    return (moment - EPOCH) // timedelta(microseconds=1) / MICROSECONDS_PER_DAY


_EXPECTED = "expected a date such as 2024-05-31 or 2024-05-31 14:30"
