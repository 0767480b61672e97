"""Run folders of version 0.1.0, written before its modules were put into packages, still evaluate, predict and resume.

``fixtures/NAME/finished`` is such a run without its last checkpoint, ``fixtures/NAME/interrupted`` the same one stopped
before its end. In their files DATA stands for the path of the data.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.data.arrays.idx_cifar import read_image_files
from dadl.runs.folder import read_run, with_split_seed
from PIL import Image
from support.cli import dadl

FIXTURES = Path(__file__).parent / "fixtures"
DATA = {
    "ranksim": Path(__file__).parents[1] / "data" / "fixtures" / "houses.csv",
    "cmw-net": FIXTURES / "cmw-net" / "data",
}


def old_run(name: str, state: str, folder: Path) -> Path:
    """A copy of an old run whose data lie where they do today."""
    run = Path(shutil.copytree(FIXTURES / name / state, folder / name))
    for file in (run / "config.yaml", run / "results.json"):
        if file.exists():
            file.write_text(file.read_text(encoding="utf-8").replace("DATA", str(DATA[name])), encoding="utf-8")
    return run


def results_of(run: Path) -> Any:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def predictions_of(file: Path) -> dict[str, list[float]]:
    """The columns of each sample's row, by its name."""
    with file.open(encoding="utf-8", newline="") as rows:
        return {row.pop("name"): [float(value) for value in row.values()] for row in csv.DictReader(rows)}


@pytest.mark.parametrize("name", DATA)
def test_an_old_run_evaluates_to_its_own_numbers(name: str, tmp_path: Path) -> None:
    run = old_run(name, "finished", tmp_path)
    result = dadl("evaluate", str(run), "--device", "cpu", "--trust-code")
    assert result.returncode == 0, result.stderr
    numbers = [value for value in results_of(run)["test"]["all"].values() if value is not None]
    assert len(numbers) >= 3
    for value in numbers:
        assert f"{value:.2f}" in result.stdout


@pytest.mark.parametrize("name", DATA)
def test_an_old_run_predicts_what_it_predicted(name: str, tmp_path: Path) -> None:
    run, data, file = old_run(name, "finished", tmp_path), DATA[name], tmp_path / "predicted.csv"
    if name == "cmw-net":  # predicts images of a folder
        data = tmp_path / "images"
        data.mkdir()
        for i, image in enumerate(read_image_files(DATA[name]).test_images):
            Image.fromarray(image[0].numpy()).save(data / f"test:{i}.png")
    result = dadl("predict", str(run), "--data", str(data), "--output", str(file), "--trust-code")
    assert result.returncode == 0, result.stderr
    predicted = {sample.removesuffix(".png"): values for sample, values in predictions_of(file).items()}
    for sample, values in predictions_of(run / "predictions.csv").items():
        assert predicted[sample] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("name", DATA)
def test_an_old_run_that_was_interrupted_resumes(name: str, tmp_path: Path) -> None:
    run, whole = old_run(name, "interrupted", tmp_path), FIXTURES / name / "finished"
    options = ("--config", str(run / "config.yaml"), "--output", str(run), "--device", "cpu", "--trust-code")
    result = dadl("train", name, *options, "--resume")
    assert result.returncode == 0, result.stderr
    losses, expected_losses = ([row["loss"] for row in results_of(folder)["history"]] for folder in (run, whole))
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    predicted, expected = (predictions_of(folder / "predictions.csv") for folder in (run, whole))
    assert predicted.keys() == expected.keys()
    for sample, values in expected.items():  # earlier versions wrote no true value, which now is the first
        assert predicted[sample][1:] == pytest.approx(values, rel=1e-4)


def test_the_seed_of_an_old_run_drew_its_split_too(tmp_path: Path) -> None:
    run = old_run("cmw-net", "finished", tmp_path)
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    assert "split_seed" not in settings
    config.write_text(yaml.safe_dump(settings | {"seed": 3}))
    assert read_run(run)[1]["split_seed"] == 3
    assert with_split_seed({"seed": 3, "split_seed": 1}) == {"seed": 3, "split_seed": 1}
    assert with_split_seed({})["split_seed"] == 0


def test_old_runs_are_reported(tmp_path: Path) -> None:
    runs, page = [old_run(name, "finished", tmp_path) for name in DATA], tmp_path / "report.html"
    result = dadl("report", *map(str, runs), "--output", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    for run in runs:
        assert results_of(run)["recipe"] in text
