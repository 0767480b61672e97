"""The log of a run, and the numbers in its results."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.tables import TableRow, read_table
from ..training.loop import EpochLog


def read_log(path: Path, problems: list[str]) -> list[EpochLog]:
    """The epochs in a ``log.csv``; what is wrong with a row is added to ``problems``."""
    table = read_table(path, problems)
    return [_logged(table.header, row, problems) for row in table.rows]


def epoch_log(values: Mapping[str, Any]) -> EpochLog:
    """The numbers of an epoch; raises a ``ValueError`` if there are other values, or none of the epoch itself."""
    numbers = {key: as_number(value) for key, value in values.items()}
    if not math.isfinite(numbers.get("epoch", math.nan)):
        raise ValueError(f"no number of the epoch; there are {', '.join(map(repr, numbers))}")
    return numbers


def as_number(value: Any) -> float:
    """A number of a JSON file, which has no NaN but ``None``; raises a ``ValueError`` for any other value."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _logged(header: list[str], row: TableRow, problems: list[str]) -> EpochLog:
    try:
        return epoch_log({key: float(text or "nan") for key, text in zip(header, row.fields, strict=True)})
    except ValueError as error:
        problems.append(f"{row.where}: {error}")
        return {}
