"""Parquet and Arrow files and frames: the same samples as from text, with types that need no reading."""

import sys
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")
pytest.importorskip("pyarrow", reason="needs pip install 'dadl[tables]'")
pytest.importorskip("pandas")
pytest.importorskip("polars")

import pandas
import polars
import pyarrow as pa
from dadl.data.columns.arrow import as_path
from dadl.data.regression import RegressionData, read_csv, read_unseen_csv
from dadl.errors import ProblemsError
from pyarrow import feather, parquet

ROWS = 40
COLUMNS = {
    "y": [float(i % 7) for i in range(ROWS)],
    "count": [None if i == 3 else 2**i for i in range(ROWS)],
    "size": [None if i == 4 else i / 7 for i in range(ROWS)],
    "old": [i % 2 == 0 for i in range(ROWS)],
    "town": [["Ely", "Diss"][i % 2] for i in range(ROWS)],
}
OPTIONS: dict[str, Any] = {"features": ["count", "size"], "one_hot": ["town", "old"], "missing": True}


def text_file(folder: Path) -> Path:
    path = folder / "t.csv"
    shown = lambda value: "" if value is None else repr(value) if isinstance(value, float) else str(value)
    rows = [",".join(map(shown, row)) for row in zip(*COLUMNS.values(), strict=True)]
    path.write_text("\n".join([",".join(COLUMNS), *rows]))
    return path


def assert_same(one: RegressionData, other: RegressionData) -> None:
    assert one.feature_names == other.feature_names
    assert one.categories == other.categories
    for split, part in one.splits.items():
        assert torch.equal(part.target, other.splits[split].target)
        assert torch.equal(part.features.nan_to_num(-1), other.splits[split].features.nan_to_num(-1))


def written(kind: str, folder: Path) -> Any:
    """The same table as a file or a frame."""
    table = pa.table(COLUMNS)
    path = folder / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, path)
    elif kind in ("arrow", "ipc"):
        opened = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with opened(str(path), table.schema) as file:
            file.write_table(table)
    else:
        return {"pandas": pandas.DataFrame, "polars": polars.DataFrame, "pyarrow": pa.table}[kind](COLUMNS)
    return path


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow", "ipc", "pandas", "polars", "pyarrow"])
def test_the_same_samples_as_from_text(kind: str, tmp_path: Path) -> None:
    data = read_csv(written(kind, tmp_path), "y", **OPTIONS)
    assert_same(data, read_csv(text_file(tmp_path), "y", **OPTIONS))
    name = f"t.{kind}" if "." in data.train.where[0] else f"{kind} frame"
    assert data.train.where[0].startswith(f"{name}:")
    first = sorted(int(where.split(":")[1]) for part in data.splits.values() for where in part.where)[0]
    assert first == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3], pa.int8()), [1, None, 3]),
        (pa.array([2**63, 2**64 - 1, 0], pa.uint64()), [2.0**63, 2.0**64, 0]),
        (pa.array([0.1, 0.5, None], pa.float32()), [0.10000000149011612, 0.5, None]),
        (pa.array([Decimal("0.10"), Decimal("12345678901234567.89"), None]), [0.1, 12345678901234567.89, None]),
        (pa.array([True, None, False]), [1, None, 0]),
        (pa.array(["1.5", " 2 ", ""]), [1.5, 2, None]),
        (pa.array(["1.5", "NA", "1.5"]).dictionary_encode(), [1.5, None, 1.5]),
        (pa.array([1, 5, None]).dictionary_encode(), [1, 5, None]),
        (pa.array([0, 129_600_000, None], pa.timestamp("ms")), [0, 1.5, None]),
        (
            pa.array([datetime(2024, 5, 31, 12, tzinfo=timezone.utc)] * 3, pa.timestamp("ns", "Asia/Tokyo")),
            [19874.5] * 3,
        ),
        (pa.array([19874, None, -1], pa.date32()), [19874, None, -1]),
        (pa.array([86_400_000, None, 0], pa.date64()), [1, None, 0]),
        (pa.array([43_200, None, 0], pa.duration("s")), [0.5, None, 0]),
        (pa.array([21_600_000_000, None, 0], pa.time64("us")), [0.25, None, 0]),
    ],
)
def test_types_are_numbers_of_a_stated_meaning(values: Any, expected: list[float | None]) -> None:
    features = read_unseen_csv(pa.table({"x": values}), features=["x"], missing=True).features[:, 0].tolist()
    assert [None if value != value else value for value in features] == expected


def test_gaps_in_tables_with_types_are_named() -> None:
    frame = pandas.DataFrame({"x": [1.5, None, float("inf")]})
    with pytest.raises(ProblemsError) as caught:
        read_unseen_csv(frame, features=["x"])
    assert caught.value.problems == [
        "pandas frame:2: x is empty; expected a finite number such as 3.5",
        "pandas frame:3: x is inf; expected a finite number such as 3.5",
    ]
    assert read_unseen_csv(frame.iloc[[1, 0]], features=["x"], missing=True).features.isnan().tolist() == [
        [True],
        [False],
    ]


def test_a_category_is_the_same_with_and_without_gaps() -> None:
    known = {"rooms": ["1", "2"]}
    whole = read_unseen_csv(pandas.DataFrame({"rooms": [1, 2]}), categories=known)
    gaps = read_unseen_csv(pandas.DataFrame({"rooms": [1, 2, None]}), categories=known, missing=True)
    assert torch.equal(whole.features, gaps.features[:2])
    assert bool(gaps.features[2].isnan().all())


def test_columns_with_a_type_of_dates_are_dates_of_the_training(tmp_path: Path) -> None:
    days = [datetime(2024, 1, 1 + i % 28) for i in range(ROWS)]
    frame = polars.DataFrame({"y": [float(i % 5) for i in range(ROWS)], "when": days})
    data = read_csv(frame, "y", features=["*"])
    assert data.roles.dates == ("when",)
    assert float(data.train.features.min()) == 19723  # 2024-01-01


def test_what_is_no_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    for content in (b"", b"PAR1", b"y,x\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ProblemsError, match=r"t.parquet: cannot be read as a table: "):
            read_csv(path, "y", features=["x"])
    for suffix in ("arrow", "parquet"):
        with pytest.raises(ProblemsError, match="there is no such file"):
            read_csv(tmp_path / f"none.{suffix}", "y", features=["x"])
    with pytest.raises(ProblemsError, match="no rows"):
        read_csv(pandas.DataFrame({"y": [], "x": []}), "y", features=["x"])
    with pytest.raises(ProblemsError, match="pandas frame: cannot be read as a table"):
        read_csv(pandas.DataFrame({"y": [1, "a"], "x": [{}, 2]}), "y", features=["x"])
    with pytest.raises(ProblemsError, match="column 'x' holds no numbers"):
        read_csv(polars.DataFrame({"y": [1.0, 2.0] * 9, "x": [[1], [2]] * 9}), "y", features=["x"])
    with pytest.raises(ProblemsError, match="column 'x' holds no numbers"):
        read_csv(
            pandas.DataFrame({"y": [1.0, 2.0] * 9, "x": pandas.period_range("2024", periods=18)}), "y", features=["x"]
        )
    with pytest.raises(TypeError, match="a lazy frame must be collected first"):
        as_path(polars.LazyFrame({"y": [1]}))
    frame = pandas.DataFrame(COLUMNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ProblemsError, match=r"need pyarrow: pip install 'dadl\[tables\]'"):
        read_csv(frame, "y", features=["size"])
