"""``dadl demo``: every demo is a valid configuration of ``dadl compare``, and a quick one runs through."""

import shlex
from pathlib import Path

import pytest

pytest.importorskip("resvg_py", reason="needs pip install 'dadl[demo]'")

from dadl.comparison.study import CompareOptions, Study
from dadl.demos.data import HERE, DemoData
from dadl.demos.demo import DEMOS, QUICK, demo_command
from dadl.documents import read_yaml
from dadl.output import JobProgress
from dadl.recipes import make_recipe
from rich.console import Console
from support.cli import dadl, results_of

PATIENCE = 600  # seconds: a demo trains in several processes, which a busy machine slows down
COMPARING = ("trials", "seeds", "splits")


def study(name: str, folder: Path) -> Study:
    settings = read_yaml(HERE / name / "settings.yaml")
    options = CompareOptions(output=folder, **{option: settings.pop(option) for option in COMPARING})
    data = DEMOS[name].data
    file = data.file if isinstance(data, DemoData) else ""
    recipe = make_recipe(DEMOS[name].recipe, settings | {"data": folder / file})
    return Study(recipe, read_yaml(HERE / name / "arms.yaml"), options)


@pytest.mark.parametrize("name", DEMOS)
def test_every_configuration_is_valid_and_tunes_all_arms_alike(name: str, tmp_path: Path) -> None:
    arms = study(name, tmp_path).arms
    assert all("lr" in arm.space for arm in arms)
    rates = {(arm.space["lr"].low, arm.space["lr"].high) for arm in arms}
    assert len(rates) == 1
    for arm in arms:
        if "RankSim" in arm.name:
            assert 0 in arm.space["ranksim"].choices


def test_a_plain_training_that_stops_early_is_among_the_baselines_for_noise(tmp_path: Path) -> None:
    keeps = {arm.name: arm.settings.get("keep") for arm in study("cmw-net", tmp_path).arms}
    assert keeps["CE"] == "last"
    assert keeps["CE, stopped early"] == "best"


def test_the_command_names_every_option(tmp_path: Path) -> None:
    progress = JobProgress(Console(quiet=True))
    options = {"seeds": 7, "splits": None, "device": "cpu"}
    command = demo_command("cmw-net", options, quick=True, output=tmp_path, progress=progress)
    assert command[:2] == ["compare", "cmw-net"]
    given = dict(zip(command[2::2], command[3::2], strict=True))
    assert given["--seeds"] == "7"
    assert given["--epochs"] == str(QUICK["epochs"])
    assert given["--data"] == str(HERE / "fashion-mnist")
    assert Path(given["--config"]).is_file()
    assert Path(given["--arms"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_a_quick_demo_compares_all_arms(name: str, tmp_path: Path) -> None:
    if name == "ranksim":
        pytest.importorskip("rdkit", reason="needs pip install 'dadl[demo]'")
    output = tmp_path / "output"
    result = dadl(
        "demo", name, "--quick", "--device", "cpu", "--output", str(output), cache=tmp_path / "cache", seconds=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert DEMOS[name].source in result.stdout
    arms = read_yaml(HERE / name / "arms.yaml")["arms"]
    assert list(results_of(output)["arms"]) == list(arms)
    for file in ("table.md", "report.html", "figure.png"):
        assert (output / file).stat().st_size > 100, file


@pytest.mark.slow
def test_a_demo_says_which_command_does_the_same(tmp_path: Path) -> None:
    output, cache = tmp_path / "output", tmp_path / "cache"
    result = dadl(
        "demo", "strokes", "--quick", "--device", "cpu", "--output", str(output), cache=cache, seconds=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    told = shlex.split(result.stdout.strip().splitlines()[-1])
    assert told[:3] == ["dadl", "compare", "ranksim"]
    again = told[1:]
    again[again.index(str(output))] = str(tmp_path / "again")
    assert dadl(*again, cache=cache, seconds=PATIENCE).returncode == 0
    assert results_of(tmp_path / "again")["arms"] == results_of(output)["arms"]
