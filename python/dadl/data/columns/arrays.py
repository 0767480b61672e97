"""NumPy arrays as a table: a matrix, a pair of matrix and target, or a mapping from names to columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import SettingsError

TARGET = "y"
"""The column of the target of a pair."""

MICROSECONDS_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class ArrayTable:
    """Columns of equal length, as :class:`.Source`; rows count from 1."""

    header: list[str]
    columns: Sequence[npt.NDArray[Any]]
    path: Path = Path("NumPy arrays")

    def __len__(self) -> int:
        return len(self.columns[0])

    def where(self, row: int) -> str:
        return f"{self.path.name}:{row + 1}"

    def texts(self, column: int, most: int | None = None) -> list[str]:
        """Whole numbers lose their point, so that a category is the same whether a column has gaps or not."""
        return [
            "" if value is None or value != value else _text(value).strip() for value in self.columns[column][:most]
        ]

    def plain_numbers(self, column: int) -> None:
        """Nothing: what is text here has no numbers yet."""

    def numbers(self, column: int) -> npt.NDArray[np.float64] | None:
        values = self.columns[column]
        if self.is_time(column):
            kind = f"{values.dtype.kind}8[us]"  # of which NaT is the smallest
            ticks = values.astype(kind).astype(np.int64)
            return np.where(np.isnat(values), np.nan, ticks / MICROSECONDS_PER_DAY)
        return values.astype(np.float64) if values.dtype.kind in "biuf" else None

    def is_time(self, column: int) -> bool:
        return self.columns[column].dtype.kind in "mM"


def is_arrays(data: Any) -> bool:
    """Whether :func:`array_table` takes it."""
    return isinstance(data, np.ndarray | Mapping) or is_pair(data)


def is_pair(data: Any) -> bool:
    """Whether it is ``(X, y)``."""
    return isinstance(data, tuple | list) and len(data) == 2 and not any(isinstance(part, str) for part in data)


def array_table(data: Any, names: Sequence[str] | None = None, target: str = TARGET) -> ArrayTable:
    """A matrix ``[n, F]``, a pair of it and the target ``[n]``, or a mapping from names to columns ``[n]``.

    The columns of a matrix are called ``names``, by default ``x0``, ``x1`` and so on, and the target ``target``. Raises
    a :class:`.SettingsError` for other shapes, for columns of different lengths, and without rows or columns.
    """
    if isinstance(data, Mapping):
        columns = {str(name): np.asarray(column) for name, column in data.items()}
    else:
        matrix, *rest = (np.asarray(part) for part in (data if is_pair(data) else [data]))
        if matrix.ndim != 2:
            raise SettingsError(f"expected a matrix with a row for each sample, got an array of shape {matrix.shape}")
        names = [f"x{column}" for column in range(matrix.shape[1])] if names is None else names
        columns = dict(zip([*names, *[target] * len(rest)], [*matrix.T, *rest], strict=True))
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or shapes == {(0,)}:
        told = ", ".join(f"{name} {list(column.shape)}" for name, column in columns.items())
        raise SettingsError(f"expected columns of one length, with a row for each sample, got {told or 'none'}")
    return ArrayTable(list(columns), list(columns.values()))


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float | np.floating) and value == value // 1 else str(value)
