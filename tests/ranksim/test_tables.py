"""Tables as people have them, end to end: what training settles about them holds in evaluation and prediction."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.errors import ProblemsError, SettingsError
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.train import RunOptions, train_run
from rich.console import Console

QUIET = Console(quiet=True)


def progress() -> JobProgress:
    return JobProgress(QUIET)


def rows(n: int = 160) -> list[dict[str, Any]]:
    """Prices from an area, a town and a day, with gaps."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(n):
        area, town = float(draw.uniform(20, 200)), str(draw.choice(["Ely", "Diss"]))
        price = round(1000 * area + 20000 * (town == "Ely") + 10 * i, 1)
        shown = None if i % 10 == 3 else round(area, 1)
        day = f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}"
        found.append({"price": price, "area": shown, "town": town, "day": day, "note": f"n{i}"})
    return found


def write(path: Path, table: Sequence[dict[str, Any]], columns: Sequence[str], german: bool = False) -> Path:
    def shown(value: Any) -> str:
        if value is None:
            return ""
        if german and isinstance(value, float):
            return f"{value:,.1f}".translate(str.maketrans(",.", ".,"))
        return str(value)

    lines = [";".join(columns), *(";".join(shown(row.get(name)) for name in columns) for row in table)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_of(data: Any, **settings: Any) -> RankSimRecipe:
    columns = {"target": "price", "features": ("area",), "one_hot": ("town",), "dates": ("day",), "missing": "mean"}
    return RankSimRecipe(data=data, **{"epochs": 3, "batch_size": 32, "lr": 1e-2, "hidden": 16, **columns, **settings})


def train(recipe: RankSimRecipe, output: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    train_run(recipe, RunOptions(output=output, device="cpu"), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def predicted(run: Path, data: Any) -> list[float]:
    Run.load(run).write_predictions(data, run / "new.csv", device="cpu", progress=False)
    with (run / "new.csv").open(newline="") as file:
        return [float(row["prediction"]) for row in csv.DictReader(file)]


COLUMNS = ("price", "area", "town", "day", "note")


def test_what_training_settled_holds_for_new_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "t.csv", rows(), COLUMNS, german=True)
    run = tmp_path / "run"
    options: dict[str, Any] = {"decimal": ",", "thousands": ".", "features": ("*a",), "unknown": "zero"}
    text = train(recipe_of(data, **options), run)
    assert "Missing in train, filled with mean: area (" in text
    facts = json.loads((run / "run.json").read_text())["facts"]
    assert facts["columns"] == {"text": [], "features": ["area"], "dates": ["day"], "one_hot": ["town"]}
    test = {row["name"]: float(row["prediction"]) for row in csv.DictReader((run / "predictions.csv").open())}
    # Other order, other columns (some of which match the pattern), no target; the same numbers.
    new = [{**row, "extra": "x", "beta": "y"} for row in rows()]
    again = predicted(run, write(tmp_path / "new.csv", new, ("beta", "day", "town", "extra", "area"), german=True))
    for name, value in test.items():
        assert again[int(name.split(":")[1]) - 2] == pytest.approx(value, rel=1e-6)
    # A category that the training lacks is none of the known.
    odd = [{**new[0], "town": "Ulm"}, {**new[0], "town": ""}]
    assert np.isfinite(predicted(run, write(tmp_path / "odd.csv", odd, COLUMNS, german=True))).all()
    # Other data are evaluated as the training's were read.
    other = write(tmp_path / "other.csv", [{**row, "town": "Ulm"} for row in rows()], COLUMNS, german=True)
    table = Run.load(run, other).evaluate(part="test", device="cpu", progress=False)
    assert np.isfinite(table["all"]["MAE"])
    assert Run.load(run).evaluate(part="test", device="cpu", progress=False)["all"]["MAE"] == pytest.approx(
        json.loads((run / "results.json").read_text())["test"]["all"]["MAE"]
    )


def test_a_point_settled_by_training_is_one_in_other_data(tmp_path: Path) -> None:
    table = [{"price": i + 0.5, "area": float(i)} for i in range(40)]
    run = tmp_path / "run"
    train(recipe_of(write(tmp_path / "t.csv", table, COLUMNS[:2]), one_hot=(), dates=()), run)
    other = [{"price": i + 0.5, "area": "2.155"} for i in range(40)]
    data = write(tmp_path / "other.csv", other, COLUMNS[:2])
    with pytest.raises(ProblemsError, match=r"may be 2\.155 or 2155"):
        recipe_of(data, one_hot=(), dates=()).read(progress())
    assert np.isfinite(Run.load(run, data).evaluate(part="test", device="cpu", progress=False)["all"]["MAE"])
    assert len(set(predicted(run, data))) == 1


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_gaps_are_filled_from_train_alone_and_indicated(fill: str, tmp_path: Path) -> None:
    table = rows()
    recipe = recipe_of(write(tmp_path / "t.csv", table, COLUMNS), missing=fill)
    task = recipe.read(progress())
    facts = json.loads(json.dumps(task.facts))
    inputs = task.loader.dataset.tensors[0]  # type: ignore[attr-defined]
    area = inputs[:, 0].double()
    mean = float(area[~area.isnan()].mean())
    assert facts["mean"][0] == pytest.approx(mean, rel=1e-6)
    assert facts["missing"] == {"fill": fill, "indicators": [0]}
    standardize = recipe.make_method(facts).encoder[0]  # type: ignore[index]
    made = standardize(inputs)
    gaps = area.isnan()
    assert 5 < int(gaps.sum()) < 30
    assert made.shape == (len(inputs), inputs.shape[1] + 1)
    assert torch.equal(made[:, -1].bool(), gaps)
    deviation = float(area[~gaps].std(correction=0))
    expected = 0.0 if fill == "mean" else -mean / deviation
    torch.testing.assert_close(made[gaps, 0], torch.full((int(gaps.sum()),), expected))
    assert bool(made.isfinite().all())
    # The same number in its place gives the same input, apart from the indicator.
    value = mean if fill == "mean" else 0.0
    torch.testing.assert_close(standardize(inputs.nan_to_num(value))[:, :-1], made[:, :-1])


def test_dates_are_days(tmp_path: Path) -> None:
    task = recipe_of(write(tmp_path / "t.csv", rows(), COLUMNS)).read(progress())
    days = task.loader.dataset.tensors[0][:, 1]  # type: ignore[attr-defined]
    assert 19723 <= float(days.min()) < float(days.max()) <= 20088  # 2024


@pytest.mark.parametrize(
    ("transform", "bins_by", "fds"),
    [
        ("log", "width", False),
        ("quantile", "log", True),
        ("log", "quantile", True),
        pytest.param("quantile", "width", False, marks=pytest.mark.slow),
        pytest.param("log", "log", True, marks=pytest.mark.slow),
        pytest.param("quantile", "quantile", True, marks=pytest.mark.slow),
    ],
)
def test_a_skewed_target_is_learnt_in_its_own_unit(transform: Any, bins_by: Any, fds: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    table = [{"price": float(np.exp(5 * x)), "area": float(x)} for x in draw.uniform(0, 1, 300)]
    table[7]["price"] = 1e12
    path = write(tmp_path / "t.csv", table, ("price", "area"))
    settings = {"one_hot": (), "dates": (), "epochs": 30, "fds": fds, "bins_by": bins_by, "ranksim": 0.001}
    recipe = recipe_of(path, target_transform=transform, reweighting="sqrt-inverse", lds=True, **settings)
    task = recipe.read(progress())
    assert any("t.csv:9 (1e+12)" in note and note.startswith("Warning: ") for note in task.notes)
    counts = torch.tensor(task.facts["counts"])
    assert (int(counts.max()) > 200) == (bins_by == "width")
    run = tmp_path / "run"
    train(recipe, run)
    usual = np.array([row["price"] < 1e6 for row in table])
    logs = np.log([row["price"] for row in table])[usual]
    errors = np.abs(np.log(predicted(run, path))[usual] - logs)
    assert np.median(errors) < 0.25 * np.median(np.abs(logs - np.median(logs)))


def test_targets_without_a_logarithm_are_refused(tmp_path: Path) -> None:
    table = [{"price": float(i - 1), "area": float(i) + 0.5} for i in range(40)]
    path = write(tmp_path / "t.csv", table, ("price", "area"))
    for settings in ({"target_transform": "log"}, {"bins_by": "log"}):
        with pytest.raises(
            SettingsError, match=r"t.csv:2: the target is -1, but --.* log needs positive ones; quantile"
        ):
            recipe_of(path, one_hot=(), dates=(), **settings).read(progress())
    with pytest.raises(SettingsError, match="bin-width is for bins by width, not by log"):
        recipe_of(path, bins_by="log", bin_width=2.0)


def test_targets_that_single_precision_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    for low, step in ((1e9, 1e-3), (0.0, 5e-324)):
        table = [{"price": low + i * step, "area": float(i) + 0.5} for i in range(40)]
        with pytest.raises(SettingsError, match="differ by too little for single precision"):
            recipe_of(write(tmp_path / "t.csv", table, ("price", "area")), one_hot=(), dates=()).read(progress())


@pytest.mark.parametrize("settings", [{"decimal": ","}, {"missing": "zero"}, {"unknown": "zero"}])
def test_settings_of_tables_need_one(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="set target"):
        RankSimRecipe(data=Path("ages.csv"), **settings)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_frames_train_evaluate_and_predict(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pip install 'dadl[tables]'")
    module = pytest.importorskip(kind)
    table = rows()
    frame = module.DataFrame({name: [row[name] for row in table] for name in COLUMNS})
    run = tmp_path / "run"
    text = train(recipe_of(frame, epochs=2), run)
    assert f"{kind} frame: 128 train, 16 val, 16 test" in text
    path = write(tmp_path / "t.csv", table, COLUMNS)
    assert predicted(run, frame) == predicted(run, path)
    train(recipe_of(path, epochs=2), tmp_path / "text")
    assert predicted(tmp_path / "text", path) == predicted(run, path)
    scores = [Run.load(run, data).evaluate(part="test", device="cpu", progress=False) for data in (frame, path)]
    assert scores[0] == scores[1]
    train_again = RunOptions(output=run, device="cpu", resume=True)
    train_run(recipe_of(frame, epochs=2), train_again, QUIET)
    with pytest.raises(SettingsError, match="has changed since the run"):
        train_run(recipe_of(frame[:150], epochs=2), train_again, QUIET)
    with pytest.raises(ProblemsError, match=f"{kind} frame: No such file"):
        Run.load(run).evaluate(part="test", device="cpu", progress=False)
