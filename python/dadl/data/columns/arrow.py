"""Tables whose columns have types: parquet and Arrow files, and frames of pandas, polars or pyarrow in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arrays import TARGET, array_table, is_arrays

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet", ".pq")
SUFFIXES = (*PARQUET, ".feather", ".arrow", ".ipc")

# How many of an Arrow unit are one day.
PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


class FramePath(type(Path())):  # type: ignore[misc]
    """Stands for a frame in memory where a path is expected; its name says what kind of frame."""

    frame: Any = None

    def __reduce__(self) -> Any:
        """A copy in another process has the frame too."""
        return _standing_for, (self.frame, str(self))


def as_path(data: Any, names: Sequence[str] | None = None, target: str = TARGET) -> Path:
    """A path as it is; a frame of pandas, polars or pyarrow, or NumPy arrays, as a path that stands for them.

    ``names`` and ``target`` are the columns of arrays without names, see :func:`.array_table`.
    """
    if isinstance(data, Path):
        return data
    if isinstance(data, str):
        return Path(data)
    if is_arrays(data):
        return _standing_for(array_table(data, names, target), "NumPy arrays")
    kind = type(data).__module__.partition(".")[0]
    if not hasattr(data, "__arrow_c_stream__") and kind != "pandas":
        raise TypeError(
            f"expected a path, a frame of pandas, polars or pyarrow, or NumPy arrays, got {type(data).__name__}; a "
            "lazy frame must be collected first"
        )
    return _standing_for(data, f"{kind} frame")


def _standing_for(frame: Any, name: str) -> FramePath:
    path = FramePath(name)
    path.frame = frame
    return path


def is_arrow(path: Path) -> bool:
    """Whether the path stands for a frame, or has the suffix of a parquet or Arrow file."""
    return isinstance(path, FramePath) or path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class ArrowTable:
    """A table with types, as :class:`.Source`; rows count from 1."""

    path: Path
    data: "pa.Table"

    @property
    def header(self) -> list[str]:
        return [name.strip() for name in self.data.column_names]

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def where(self, row: int) -> str:
        return f"{self.path.name}:{row + 1}"

    def texts(self, column: int, most: int | None = None) -> list[str]:
        """Whole numbers lose their point, so that a category is the same whether a column has gaps or not."""
        import pyarrow as pa

        values = self.data.column(column)
        # Numbers beneath a type of one's own, such as a period, mean nothing without it.
        kind = f"{values.type} " if isinstance(values.type, pa.BaseExtensionType) else ""
        return [kind + _text(value).strip() for value in values[:most].to_pylist()]

    def plain_numbers(self, column: int) -> None:
        """Nothing: what is text here has no numbers yet."""

    def numbers(self, column: int) -> npt.NDArray[np.float64] | None:
        import pyarrow as pa

        values, types = _decoded(self.data.column(column)), pa.types
        kind = values.type
        if types.is_null(kind):
            return np.full(len(values), np.nan)
        if types.is_decimal(kind):
            return _floats(values.to_pylist(), float)
        if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
            return np.array(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
        if not self.is_time(column):
            return None
        if types.is_date(kind):
            return _floats(values.cast(pa.date32()).cast(pa.int32()).to_pylist(), float)
        if types.is_time(kind):
            width = pa.int32() if types.is_time32(kind) else pa.int64()
            return _floats(values.cast(width).to_pylist(), lambda ticks: ticks / PER_DAY[kind.unit])
        return _floats(values.cast(pa.int64()).to_pylist(), lambda ticks: ticks / PER_DAY[kind.unit])

    def is_time(self, column: int) -> bool:
        import pyarrow as pa

        kind = _decoded(self.data.column(column)).type
        return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def read_arrow(path: Path, problems: list[str]) -> ArrowTable | None:
    """Read a file or take a frame; ``None``, and a line in ``problems``, if that cannot be."""
    try:
        import pyarrow as pa
    except ImportError:
        problems.append(f"{path}: parquet and Arrow files and frames need pyarrow: pip install 'dadl[tables]'")
        return None
    try:
        table = _opened(path)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problems.append(f"{path}: cannot be read as a table: {reason}")
        return None
    if table.num_rows == 0:
        problems.append(f"{path}: no rows; expected a row for each sample")
        return None
    return ArrowTable(path, table)


def _opened(path: Path) -> "pa.Table":
    import pyarrow as pa

    if isinstance(path, FramePath) and path.frame is not None:
        if type(path.frame).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(path.frame, preserve_index=False)
        return pa.table(path.frame)
    if not path.is_file():
        raise OSError("there is no such file")
    if path.suffix.lower() in PARQUET:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            return file.read()
    with pa.OSFile(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def _decoded(values: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow as pa

    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _floats(values: list[Any], number: Callable[[Any], float]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else number(value) for value in values], dtype=np.float64)


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | Decimal) and value == value // 1:
        return str(int(value))
    return value if isinstance(value, str) else str(value)
