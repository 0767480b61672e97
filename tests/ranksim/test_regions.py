"""Regions of labels whose limits fit the data, true values beside predictions, and the epoch that is tested."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.errors import SettingsError
from dadl.metrics import fitting_limits, shot_regions
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.folder import read_run, with_split_seed
from support.runs import QUIET, run


def table(folder: Path, rows: int = 300) -> Path:
    draw = random.Random(0)
    file = folder / "x.csv"
    points = [draw.gauss(0, 1) for _ in range(rows)]
    file.write_text("x,y\n" + "".join(f"{x},{x + draw.gauss(0, 0.1)}\n" for x in points))
    return file


def recipe(folder: Path, **settings: Any) -> RankSimRecipe:
    own: dict[str, Any] = {"target": "y", "features": ("x",), "epochs": 3, "hidden": 4, "lr": 0.01}
    return RankSimRecipe(data=table(folder), **(own | settings))


@pytest.mark.parametrize(
    ("counts", "limits"),
    [
        ([300, 50, 3], [100, 20]),  # every region has a bin
        ([300, 50, 0], [299, 51]),  # bins without samples do not count
        ([1, 2, 3, 4, 5, 6], [4, 3]),
        ([9, 9, 9, 9], [10, 10]),  # equal counts stay together
        ([1, 2], [2, 2]),
    ],
)
def test_limits_fit_the_counts(counts: list[int], limits: list[int]) -> None:
    assert fitting_limits(counts) == limits
    many, few = limits
    regions = shot_regions(counts, many=many, few=few)
    assert all(sum(int(mask[i]) for name, mask in regions.items() if name != "all") == 1 for i in range(len(counts)))


def test_every_region_has_a_third_where_the_defaults_leave_one_empty(tmp_path: Path) -> None:
    task = recipe(tmp_path).read(JobProgress(QUIET))
    counts = torch.tensor(task.facts["counts"])
    many, few = task.facts["limits"]
    assert int(counts.max()) <= 100  # no bin would be many-shot
    assert any(f"many with more than {many} training samples and few with fewer than {few}" in n for n in task.notes)
    regions = shot_regions(counts[counts > 0], many=many, few=few)
    assert all(bool(mask.any()) for mask in regions.values())
    stated = recipe(tmp_path, many=50).read(JobProgress(QUIET))
    assert stated.facts["limits"] == [50, 20]
    with pytest.raises(SettingsError, match="few=120 must not be above many=100"):
        recipe(tmp_path, few=120)


def test_results_say_what_a_region_is(tmp_path: Path) -> None:
    run(recipe(tmp_path), tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    regions = results["regions"]
    parts = [regions[name] for name in ("many", "medium", "few")]
    for part in ("test", "train"):
        assert regions["all"][part] == sum(region[part] for region in parts) == results["samples"][part]
    assert regions["all"]["labels"] == [results["facts"]["bins"][:2]]
    assert sum(high - low for region in parts for low, high in region["labels"]) == pytest.approx(
        regions["all"]["labels"][0][1] - regions["all"]["labels"][0][0]
    )
    assert [results["settings"]["many"], results["settings"]["few"]] == results["facts"]["limits"]
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [abs(float(row["prediction"]) - float(row["target"])) for row in rows]
    assert sum(errors) / len(errors) == pytest.approx(results["test"]["all"]["MAE"], rel=1e-5)


def test_the_last_epoch_is_tested_if_it_is_to_be_kept(tmp_path: Path) -> None:
    run(recipe(tmp_path, keep="last", epochs=5, lr=0.3), tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["best_epoch"] == 5
    assert not (tmp_path / "run" / "best.ckpt").exists()
    before = (tmp_path / "run" / "predictions.csv").read_bytes()
    run(recipe(tmp_path, keep="last", epochs=5, lr=0.3), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == before


def test_split_and_training_are_drawn_apart(tmp_path: Path) -> None:
    read = lambda **settings: recipe(tmp_path, **settings).read(JobProgress(QUIET)).fingerprints
    assert read(seed=1) == read(seed=2)
    assert read(split_seed=1) != read(split_seed=2)


def test_a_run_of_an_earlier_version_has_one_seed_for_both(tmp_path: Path) -> None:
    assert with_split_seed({"seed": 3})["split_seed"] == 3
    assert with_split_seed({"seed": 3, "split_seed": 0})["split_seed"] == 0
    run(recipe(tmp_path, split_seed=3, seed=3), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("split_seed: 3\n", ""))
    assert read_run(tmp_path / "run")[1]["split_seed"] == 3
