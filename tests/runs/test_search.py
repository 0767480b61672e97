"""``--search``: trials on validation alone, ended early or taken up again, and the best one tested."""

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from dadl.errors import SettingsError
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import Recipe
from dadl.runs.search import Search
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning.recipe import SelfTuningRecipe
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

TRIALS = 9


def table(folder: Path) -> Path:
    draw = random.Random(0)
    file = folder / "table.csv"
    rows = [(x, 3 * x + draw.gauss(0, 0.1)) for x in (draw.gauss(0, 1) for _ in range(200))]
    file.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in rows))
    return file


def recipe(folder: Path, **settings: Any) -> RankSimRecipe:
    own = {"target": "y", "features": ("x",), "epochs": 5, "batch_size": 32, "lr": 1e-2, "hidden": 8}
    return RankSimRecipe(data=table(folder), **(own | settings))


def search(recipe: Recipe, output: Path, trials: int, resume: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100)
    train_run(recipe, RunOptions(output=output, device="cpu", search=trials, resume=resume), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "search.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_trial_on_validation_is_tested_and_no_other(tmp_path: Path) -> None:
    output = tmp_path / "search"
    text = search(recipe(tmp_path, ranksim=0.5), output, TRIALS)
    trials = rows(output)
    assert len(trials) == TRIALS
    assert float(trials[0]["ranksim"]) == 0.5  # the recipe's own settings come first
    assert len({row["ranksim"] for row in trials}) == TRIALS
    assert {row["state"] for row in trials} == {"complete", "pruned"}
    best = min((row for row in trials if row["state"] == "complete"), key=lambda row: float(row["validation"]))
    tested = [file.parent.name for file in output.glob("trial-*/results.json")]
    assert tested == [f"trial-{best['trial']}"]
    results = json.loads((output / tested[0] / "results.json").read_text())
    assert results["settings"]["ranksim"] == float(best["ranksim"])
    assert min(row["val all MAE"] for row in results["history"]) == float(best["validation"])
    for row in trials:  # those that ended early have fewer epochs
        lines = (output / f"trial-{row['trial']}" / "log.csv").read_text().splitlines()
        assert (len(lines) == 6) == (row["state"] == "complete")
    assert f"Trial {TRIALS}/{TRIALS}: ranksim" in text
    assert (output / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_is_taken_up_again_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "search"
    ask = Search.ask

    def interrupted_in_the_third(self: Search) -> Any:
        asked = ask(self)
        if asked[0].number == 2:
            raise KeyboardInterrupt
        return asked

    monkeypatch.setattr(Search, "ask", interrupted_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        search(recipe(tmp_path), output, 4)
    monkeypatch.undo()
    before = (output / "trial-1" / "log.csv").read_bytes()
    with pytest.raises(SettingsError, match="holds a run: --resume continues it"):
        search(recipe(tmp_path), output, 4)
    with pytest.raises(SettingsError, match="other settings: epochs 5 and not 6"):
        search(recipe(tmp_path, epochs=6), output, 4, resume=True)
    with pytest.raises(SettingsError, match="holds a search"):
        train_run(recipe(tmp_path), RunOptions(output=output, resume=True), Console(quiet=True))
    own = recipe(tmp_path)
    lines = own.data.read_text().splitlines(keepends=True)
    own.data.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(SettingsError, match=r"has changed since the run in .*trial-0 began: .* another order in"):
        search(own, output, 4, resume=True)
    text = search(recipe(tmp_path), output, 4, resume=True)
    assert [row["trial"] for row in rows(output)] == ["0", "1", "3", "4"]
    assert "Trial 2/4" not in text
    assert len({row["ranksim"] for row in rows(output)}) == 4  # none is tried twice
    assert (output / "trial-1" / "log.csv").read_bytes() == before
    storage = JournalStorage(JournalFileBackend(str(output / "search.journal")))
    states = [trial.state.name for trial in optuna.load_study(study_name=None, storage=storage).trials]
    assert states[2] == "FAIL"  # for the sampler and whoever opens the study
    assert "RUNNING" not in states


def test_a_search_needs_a_space_and_validation_samples(tmp_path: Path) -> None:
    class Fixed(RankSimRecipe):
        search_space = {}  # noqa: RUF012

    fixed = Fixed(data=table(tmp_path), target="y", features=("x",))
    with pytest.raises(SettingsError, match="ranksim has no settings to search"):
        search(fixed, tmp_path / "fixed", 2)

    class Lists(SelfTuningRecipe):
        def read(self, progress: Any) -> Any:
            return replace(recipe(tmp_path).read(progress), validation=None)

    with pytest.raises(SettingsError, match="a search needs validation samples"):
        search(Lists(data=tmp_path, labels=15), tmp_path / "lists", 2)
