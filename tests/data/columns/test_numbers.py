"""Numbers in text: exactly those that a decimal sign and a separator stand for, and a sentence for any other."""

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.columns import lines
from dadl.data.columns.lines import Lines
from dadl.data.columns.number_format import NumberFormat
from dadl.data.regression import read_csv, read_unseen_csv
from dadl.errors import ProblemsError, SettingsError
from hypothesis import given
from hypothesis import strategies as st

HEADER = "y;x;other"


def features_of(x: Sequence[str], other: str = "a", **options: Any) -> list[float]:
    """Column x as read, beside a target of 1, 2, 3 ..."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(
            "\n".join([HEADER, *(f"{i};{value};{other}" for i, value in enumerate(x, 1))]), encoding="utf-8"
        )
        data = read_csv(path, "y", features=["x"], **options)
    parts = data.splits.values()
    rows = {
        where: value for part in parts for where, value in zip(part.where, part.features[:, 0].tolist(), strict=True)
    }
    return [rows[f"t.csv:{i}"] for i in range(2, len(x) + 2)]


def problems_of(x: Sequence[str], other: str = "a", **options: Any) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        features_of(x, other, **options)
    return caught.value.problems


def repeated(*values: str) -> list[str]:
    return [*values] * (12 // len(values) + 1)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"decimal": ","}, {"71,5": 71.5, "-0,125": -0.125, "3": 3.0, ",5": 0.5, "1e3": 1000.0, "1,5E-2": 0.015}),
        ({"decimal": ",", "thousands": "."}, {"2.155": 2155.0, "1.234.567,25": 1234567.25, "12": 12.0, "2155": 2155.0}),
        ({"thousands": "."}, {"2.155": 2155.0, "3,5": 3.5}),
        (
            {"decimal": ",", "thousands": " "},
            {"1 234,5": 1234.5, "1\u202f234\u202f567": 1234567.0, "1\u00a0234": 1234.0},
        ),
        ({"thousands": ","}, {"1,234.5": 1234.5, "12,345,678": 12345678.0}),
        ({"decimal": ".", "thousands": "'"}, {"1'234.5": 1234.5, "1\u2019234": 1234.0}),
        ({"decimal": "."}, {"2.155": 2.155, "3.125": 3.125}),
        ({"thousands": "none"}, {"2.155": 2.155, "3.125": 3.125}),
    ],
)
def test_numbers_mean_what_their_signs_say(options: dict[str, Any], written: dict[str, float]) -> None:
    fields = repeated(*written)
    assert features_of(fields, **options) == [written[field] for field in fields]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"decimal": ",", "thousands": "."}, "1.23,5"),
        ({"decimal": ",", "thousands": "."}, "12.34.567"),
        ({"decimal": ",", "thousands": "."}, "1.5"),
        ({"decimal": ","}, "2.155"),
        ({"thousands": ","}, "1,23"),
        ({"thousands": ","}, "1,234,56"),
    ],
)
def test_a_separator_in_the_wrong_place_is_no_number(options: dict[str, Any], field: str) -> None:
    (problem,) = problems_of([*repeated("3"), field], **options)
    assert problem.startswith(f"t.csv:{len(repeated('3')) + 2}: x is {field!r}")


@pytest.mark.parametrize(
    ("fields", "other", "parts"),
    [
        # Nothing in the column says that its points are decimal.
        (["2.155", "3.250"], "a", ["x is '2.155', which may be 2.155 or 2155", "--decimal '.' or --thousands '.'"]),
        (["2.155", "981", "12.500"], "a", ["which may be 2.155 or 2155", "three digits after it"]),
        (["-2.155", "3"], "a", ["which may be -2.155 or -2155"]),
        # Another column has decimal commas.
        (["2.155", "4000"], "71,5", ["which may be 2.155 or 2155", "other '71,5' in t.csv:2 has a decimal comma"]),
    ],
)
def test_a_point_that_may_separate_thousands_is_refused(fields: list[str], other: str, parts: list[str]) -> None:
    (problem,) = problems_of(repeated(*fields), other)
    assert problem.startswith("t.csv:2: ")
    for part in parts:
        assert part in problem
    assert features_of(repeated(*fields), other, decimal=".")[0] == float(fields[0])
    assert features_of(repeated(*fields), other, thousands=".")[0] == 1000 * float(fields[0])


@pytest.mark.parametrize(
    ("fields", "other"),
    [
        (["2.155", "2.5"], "a"),  # one decimal is no thousands
        (["2.155", "0.125"], "a"),  # nobody writes thousands after a zero
        (["2.155", "1234.567"], "a"),
        (["2.155", "1e-3"], "a"),
        (["2.155", "4000"], "a"),  # thousands would be 4.000
        (["2.155", "2.5"], "71,5"),  # says enough about this column, whatever others do
        (["2.155", "4000"], "71,5 m"),  # no column of numbers
        (["200", "981"], "a"),
    ],
)
def test_a_column_that_says_that_its_points_are_decimal_is_read(fields: list[str], other: str) -> None:
    assert features_of(repeated(*fields), other) == [float(field) for field in repeated(*fields)]


def test_one_field_says_it_wherever_it_is_unless_it_is_missing() -> None:
    ambiguous = ["2.155"] * 200
    assert features_of([*ambiguous, "2.5"])[-1] == 2.5
    (problem,) = problems_of([*ambiguous, "NA"], missing=True)
    assert "which may be 2.155 or 2155" in problem


def test_new_rows_have_the_signs_of_the_training(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("x\n2.155\n")
    assert read_unseen_csv(path, features=["x"]).features.tolist() == [[2.155]]
    assert read_unseen_csv(path, features=["x"], thousands=".").features.tolist() == [[2155]]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("71,5", "--decimal ',', which fits the whole column"),
        ("1.234.567", "--decimal ',' --thousands '.', which fits"),
        ("1.234,5", "--decimal ',' --thousands '.', which fits"),
        ("1,234,567", "--thousands ',', which fits"),
        ("1,234", "--decimal ',' or --decimal '.' --thousands ',', which give different values"),
        ("1 234,5", "--decimal ',' --thousands ' ', which fits"),
        ("1'234.5", '--thousands "\'", which fits'),
        ("12 %", "a percentage; remove the sign"),
        ("%12", "a percentage"),
        ("€12.50", "currency sign; remove"),
        ("-$12", "currency sign"),
        ("12 EUR", "a currency; remove"),
        ("CHF 12", "a currency; remove"),
        ("2024-05-31", "a date or time; of features, list the column in --dates"),
        ("31.05.2024", "a date or time"),
        ("5/31/24", "a date or time"),
        ("14:30", "a date or time"),
    ],
)
def test_what_is_no_number_is_explained(field: str, reason: str) -> None:
    # In a column of its like, once; among numbers, in each row.
    (problem,) = problems_of(repeated(field))
    assert problem.startswith(f"t.csv:2: x is {field!r}, ")
    assert reason in problem
    rows = [*repeated("3"), field, field]
    problems = problems_of(rows)
    assert [problem.split(": ")[0] for problem in problems] == [f"t.csv:{i}" for i in (len(rows), len(rows) + 1)]
    assert all(reason in problem for problem in problems)


def test_a_number_unlike_the_others_of_its_column_is_explained() -> None:
    (problem,) = problems_of([*repeated("2.5"), "3,5"])
    assert "other signs for decimals or thousands than the rest of the column" in problem


def test_one_sign_cannot_be_both() -> None:
    with pytest.raises(SettingsError, match="one sign cannot be both"):
        NumberFormat(",", ",")
    with pytest.raises(SettingsError, match=r"decimal must be one of '\.', ',', got ';'"):
        NumberFormat(";")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="thousands must be one of"):
        NumberFormat(None, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["1e300", "-1e31"])
def test_numbers_that_single_precision_cannot_hold_are_refused(field: str) -> None:
    (problem,) = problems_of([*repeated("3"), field])
    assert "expected a number between -1e+30 and 1e+30" in problem


@given(st.lists(st.floats(-1e30, 1e30).map(repr), min_size=8, max_size=40))
def test_text_becomes_the_nearest_number(fields: list[str]) -> None:
    assert features_of([*fields, "0.5"]) == [*map(float, fields), 0.5]


@given(
    st.lists(st.floats(-1e30, 1e30).map(repr), min_size=1, max_size=40),
    st.sampled_from(["1.5", "-.5", "2.e-7", "12345678901234567890.12345"]),
)
def test_pyarrow_reads_long_columns_as_python_does(fields: list[str], first: str) -> None:
    pytest.importorskip("pyarrow")
    rows = [first, *fields]
    columns = Lines.of("".join(f"{row},a,{position}\n" for position, row in enumerate(rows)), ",", 3)
    assert columns is not None
    number, letter, whole = columns.columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LONG", 0)
        values, counted = number.numbers(), whole.numbers()
    assert values is not None
    assert values.tolist() == list(map(float, rows))
    assert counted is not None
    assert counted.tolist() == list(range(len(rows)))
    assert letter.numbers() is None
    assert list(letter) == ["a"] * len(rows)
    assert whole[:1] == ["0"]
    assert "split" not in vars(columns)
    assert list(whole) == [str(position) for position in range(len(rows))]


@pytest.mark.parametrize("long", [0, sys.maxsize], ids=["long", "short"])
def test_a_missing_number_is_none(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONG", long)
    fields = ["0.25", "", *["1.5"] * 20]
    (problem,) = problems_of(fields)
    assert "t.csv:3: x is empty" in problem
    assert [row for row, value in enumerate(features_of(fields, missing=True)) if math.isnan(value)] == [1]


@given(st.decimals(-(10**9), 10**9, places=3), st.sampled_from([(",", "."), (".", ","), (",", " "), (".", "'")]))
def test_what_is_written_with_separators_is_read(value: Any, signs: tuple[Any, Any]) -> None:
    decimal, thousands = signs
    written = f"{value:,.3f}".replace(",", "T").replace(".", decimal).replace("T", thousands)
    assert NumberFormat(decimal, thousands).parse(written) == float(value)


def test_missing_numbers_are_those_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    words = ["", "NA", "nan", "NULL", "#N/A", "None", "-nan", "<NA>", "n/a", "3", "4.5", "1e5", "-2"]
    path = tmp_path / "new.csv"
    path.write_text("x,z\n" + "".join(f"{word},1\n" for word in words))
    own = read_unseen_csv(path, features=["x"], missing=True).features[:, 0]
    theirs = pandas.read_csv(path)["x"].to_numpy()
    assert own.isnan().tolist() == pandas.isna(theirs).tolist()
    assert own[~own.isnan()].tolist() == theirs[~pandas.isna(theirs)].tolist()
    with pytest.raises(ProblemsError) as caught:
        read_unseen_csv(path, features=["x"])
    assert len(caught.value.problems) == 9
