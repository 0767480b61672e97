"""Patterns of names, dates and categories."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.columns.dates import days_since_1970
from dadl.data.regression import read_csv, read_unseen_csv
from dadl.errors import ProblemsError
from hypothesis import given
from hypothesis import strategies as st


def table(folder: Path, header: str, row: str, n: int = 20) -> Path:
    """A table of n like rows; ``{}`` is the number of the row."""
    path = folder / "t.csv"
    path.write_text("\n".join([header, *(row.replace("{}", str(i)) for i in range(n))]))
    return path


def problems_of(path: Path, **options: object) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        read_csv(path, "y", **options)  # type: ignore[arg-type]
    return caught.value.problems


def test_patterns_stand_for_columns_without_another_role(tmp_path: Path) -> None:
    path = table(tmp_path, "size_b,y,size_a,town,[odd],part", "1,{},2,Ely,4,train")
    read = lambda *features, **others: read_csv(path, "y", features=features, **others).feature_names
    assert read("size_*") == ("size_b", "size_a")
    assert read("size_a", "size_*") == ("size_a", "size_b")
    assert read("*", one_hot=["town", "part"]) == ("size_b", "size_a", "[odd]", "town=Ely", "part=train")
    assert read("[odd]") == ("[odd]",)  # a column's own name is no pattern
    assert read("size_?", one_hot=["t*"]) == ("size_b", "size_a", "town=Ely")
    assert read_csv(path, "y", features=["size_[a]"]).roles.features == ("size_a",)
    (problem,) = problems_of(path, features=["sise_*"])
    assert "no column without another role matches 'sise_*'; there are 'size_b', 'y'" in problem
    assert "column 'town' holds no numbers" in problems_of(path, features=["*"])[0]


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)))
def test_days_are_exact(moment: datetime) -> None:
    days = days_since_1970(moment)
    assert abs(timedelta(days=days) - (moment - datetime(1970, 1, 1))) <= timedelta(seconds=1e-4)
    east = moment.replace(tzinfo=timezone.utc).astimezone(timezone(timedelta(hours=2)))
    assert days_since_1970(east) == days


def test_dates_are_days(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("a,when\n1,1970-01-01\n2,1970-01-02 12:00\n3,2024-05-31T14:30:00+02:00\n4,2024-05-31T12:30:00Z\n")
    samples = read_unseen_csv(path, features=["when", "a"], dates=["when"])
    assert samples.features.tolist() == [[0, 1], [1.5, 2], [19874 + 12.5 / 24, 3], [19874 + 12.5 / 24, 4]]
    assert read_unseen_csv(path, features=["a"], dates=["when"]).features[1].tolist() == [2, 1.5]
    path.write_text("when\n31.05.2024\n\n2024-13-01\n")
    with pytest.raises(ProblemsError) as caught:
        read_unseen_csv(path, dates=["when"])
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "new.csv:2: when is '31.05.2024'",
        "new.csv:4: when is '2024-13-01'",
    ]
    assert "expected a date such as 2024-05-31" in caught.value.problems[0]


def test_missing_features_are_nan_and_missing_targets_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "y,a,when,kind", "{},{},2024-05-31,u")
    path.write_text(path.read_text() + "\n30,,,\n31,NA,NULL,\n")
    with pytest.raises(ProblemsError) as caught:
        read_csv(path, "y", features=["a"], dates=["when"], one_hot=["kind"])
    assert len(caught.value.problems) == 6
    assert all("--missing mean or zero" in problem for problem in caught.value.problems)
    data = read_csv(path, "y", features=["a"], dates=["when"], one_hot=["kind"], missing=True)
    features = torch.cat([part.features for part in data.splits.values()])
    assert features.isnan().sum(dim=0).tolist() == [2, 2, 2]
    assert data.feature_columns == ("a", "when", "kind")
    path.write_text(path.read_text() + ",3,2024-05-31,u\n")
    (problem,) = problems_of(path, features=["a"], missing=True)
    assert problem == "t.csv:24: y is empty; expected a finite number such as 3.5"


def test_unknown_categories_are_none_of_the_known(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("kind\nred\ngreen\n\nblue\n")
    samples = read_unseen_csv(path, categories={"kind": ["blue", "red"]}, unknown=True)
    assert samples.features.tolist() == [[0, 1], [0, 0], [1, 0]]
    rows = ["y,kind,part", *["1,a,train", "2,a,train", "3,b,train", "4,c,val", "5,a,val", "6,a,test", "7,b,test"]]
    path.write_text("\n".join(rows))
    data = read_csv(path, "y", one_hot=["kind"], split="part", unknown=True)
    assert data.categories == {"kind": ("a", "b")}
    assert data.val.features.tolist() == [[0, 0], [1, 0]]


def test_a_column_without_values_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "y,a,b", "{},,{}")
    (problem,) = problems_of(path, features=["a", "b"], missing=True)
    assert "a has no value in train; leave the column out" in problem


def test_names_are_no_categories(tmp_path: Path) -> None:
    path = table(tmp_path, "y,name", "{},n{}", n=1500)
    (problem,) = problems_of(path, one_hot=["name"], unknown=True)
    assert "name has 1200 categories in train" in problem
