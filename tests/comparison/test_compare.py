"""``dadl compare``: equal budgets, ordinary run folders, nothing trained twice, and errors before any training."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

import dadl
from dadl.api import comparing
from dadl.comparison import jobs as compare_jobs
from dadl.comparison import study as compare_study
from dadl.comparison.jobs import FAILED, Job, Workers
from dadl.comparison.results import Comparison, Unit
from dadl.errors import SettingsError, UserError
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.folder import read_run
from dadl.training.loop import TrainingError
from support.cli import dadl as command

ARMS: dict[str, Any] = {
    "tune": {"lr": {"from": 1e-3, "to": 1e-1}},
    "arms": {"plain": {"ranksim": 0}, "RankSim": {"tune": {"ranksim": [0, 0.1]}}},
}


class InOneProcess(Workers):
    """Trains here, as starting processes takes seconds; ``trained`` are the jobs."""

    trained: list[str]

    def run(
        self, jobs: Sequence[Job], on_epoch: Callable[[Job, int], None], on_end: Callable[[Job, str | None], None]
    ) -> None:
        for job in jobs:
            self.trained.append(job.name)
            on_end(job, compare_jobs._trained(job, "cpu", lambda done, job=job: on_epoch(job, done)))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were trained, in this process; page and figure stay empty, as drawing takes longer."""
    monkeypatch.setattr(InOneProcess, "trained", [], raising=False)
    monkeypatch.setattr(compare_study, "Workers", InOneProcess)
    monkeypatch.setattr(comparing, "write_page", lambda comparison, page, pictures: page.touch())
    monkeypatch.setattr(comparing, "write_figure", lambda comparison, stem: stem.touch())
    return InOneProcess.trained


def table(folder: Path, rows: int = 60, split: bool = False) -> Path:
    draw = random.Random(0)
    file = folder / "x.csv"
    lines = ["x,y,part"]
    for i in range(rows):
        x = draw.gauss(0, 1)
        lines.append(f"{x},{3 * x + draw.gauss(0, 0.1)},{('train', 'train', 'val', 'test')[i % 4]}")
    file.write_text("\n".join(lines) + "\n")
    return file


def recipe(folder: Path, **settings: Any) -> dict[str, Any]:
    own = {"data": table(folder), "target": "y", "features": ("x",), "epochs": 2, "batch_size": 16, "hidden": 4}
    return own | settings


def compare(recipe: Mapping[str, Any], output: Path, arms: Mapping[str, Any] = ARMS, **options: Any) -> Comparison:
    own = {"trials": 2, "seeds": 2, "device": "cpu", "output": output}
    return dadl.compare("ranksim", arms, progress=False, **(own | {**recipe} | options))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that says something about results, without what depends on time and place."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix in (".csv", ".md"):
            found[name] = file.read_bytes()
        elif file.suffix == ".ckpt":
            method = torch.load(file, weights_only=True)["method"]
            found[name] = b"".join(value.numpy().tobytes() for value in method.values())
    return found


def test_arms_have_equal_budgets_and_paired_units(tmp_path: Path, trained: list[str]) -> None:
    comparison = compare(recipe(tmp_path), tmp_path / "out", splits=2)
    assert len(trained) == 2 * 2 * (2 + 2)  # splits, arms, trials and seeds
    units = [Unit(split, seed) for split in (0, 1) for seed in (1, 2)]
    assert comparison.units == units
    for arm in comparison.arms:
        for split in (0, 1):
            assert len(arm.trials[split]) == 2
            best = min(arm.trials[split], key=lambda trial: trial.score)
            assert arm.chosen[split] == best.settings
        for unit, folder in arm.runs.items():
            name, settings, _ = read_run(folder)
            assert (name, settings["split_seed"], settings["seed"]) == ("ranksim", unit.split, unit.seed)
            assert settings["lr"] == arm.chosen[unit.split]["lr"]
            assert arm.scores[unit]["all"]["MAE"] > 0
        for trial in arm.trials[0]:
            assert not (trial.folder / "results.json").exists()  # it never sees the test
    plain, ranksim = comparison.arms
    # No arm is luckier with its learning rates than another.
    assert [t.settings["lr"] for t in plain.trials[0]] == [t.settings["lr"] for t in ranksim.trials[0]]
    assert {t.settings["ranksim"] for t in ranksim.trials[0]} == {0, 0.1}
    assert comparison.criterion_cell == ("all", "MAE")
    assert comparison.sizes == {"train": 48, "val": 6, "test": 6}
    assert comparison.test_share == 6 / 48
    assert "MAE" in (tmp_path / "out" / "table.md").read_text()
    assert all((tmp_path / "out" / name).exists() for name in ("report.html", "figure"))
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(arm["test"]) for arm in written["arms"].values()] == [4, 4]
    assert Comparison.load(tmp_path / "out") == comparison


def test_the_same_arm_twice_gives_the_same_numbers(tmp_path: Path, trained: list[str]) -> None:
    arms = {"tune": ARMS["tune"], "arms": {"one": {"ranksim": 0}, "other": {"ranksim": 0}}}
    one, other = compare(recipe(tmp_path), tmp_path / "out", arms).arms
    assert one.chosen == other.chosen
    assert one.scores == other.scores


@pytest.mark.slow
def test_more_seeds_splits_and_arms_repeat_nothing(tmp_path: Path, trained: list[str]) -> None:
    own, output = recipe(tmp_path), tmp_path / "out"
    compare(own, output)
    before = contents(output)
    del trained[:]
    with pytest.raises(SettingsError, match="holds a comparison: --resume continues it"):
        compare(own, output)
    assert compare(own, output, resume=True).units == [Unit(0, 1), Unit(0, 2)]
    assert trained == []
    compare(own, output, resume=True, seeds=3)
    assert trained == ["plain, split 0, seed 3", "RankSim, split 0, seed 3"]
    del trained[:]
    more = {**ARMS, "arms": {"LDS": {"ranksim": 0, "reweighting": "inverse", "lds": True}, **ARMS["arms"]}}
    compare(own, output, more, resume=True, seeds=3)
    assert {name.partition(",")[0] for name in trained} == {"LDS"}
    del trained[:]
    comparison = compare(own, output, more, resume=True, seeds=3, splits=2)
    assert {name.split(", ")[1] for name in trained} == {"split 1"}
    assert len(comparison.units) == 6
    after = contents(output)
    assert all(after[name] == content for name, content in before.items() if name != "table.md")


def test_another_comparison_is_refused(tmp_path: Path, trained: list[str]) -> None:
    own, output = recipe(tmp_path), tmp_path / "out"
    compare(own, output)
    changed = {**ARMS, "arms": {**ARMS["arms"], "plain": {"ranksim": 0, "epochs": 1}}}
    fewer = {**ARMS, "arms": {"plain": {"ranksim": 0}, "other": {"ranksim": 1.0}}}
    for arms, options, what in (
        (changed, {}, "arm plain was"),
        (fewer, {}, "arm RankSim was"),
        (ARMS, {"seeds": 1}, "seeds were 2"),
        (ARMS, {"trials": 3}, "trials was 2"),
        (ARMS, {"criterion": "all MSE"}, "criterion was None"),
    ):
        with pytest.raises(SettingsError, match=f"holds another comparison: .*{what}"):
            compare(own, output, arms, resume=True, **options)
    own["data"].write_text(own["data"].read_text().replace("x,y", "x,y", 1) + "0.5,1.5,train\n")
    with pytest.raises(SettingsError, match="has changed since the run in"):
        compare(own, output, resume=True, seeds=3)


def test_the_criterion_chooses_settings_and_epochs(tmp_path: Path, trained: list[str]) -> None:
    own = recipe(tmp_path, epochs=4)
    comparison = compare(own, tmp_path / "out", criterion="all Pearson", seeds=1)
    for arm in comparison.arms:
        assert arm.chosen[0] == max(arm.trials[0], key=lambda trial: trial.score).settings
        results = json.loads((arm.runs[Unit(0, 1)] / "results.json").read_text())
        values = [row["val all Pearson"] for row in results["history"]]
        assert results["best_epoch"] == 1 + values.index(max(values))
    with pytest.raises(SettingsError, match=r"no criterion 'few Pearsn'; did you mean few Pearson\?"):
        compare(own, tmp_path / "other", criterion="few Pearsn")
    assert not (tmp_path / "other" / "plain").exists()


def test_a_second_stage_starts_from_the_first(tmp_path: Path, trained: list[str]) -> None:
    arms = {
        "tune": {"lr": [0.01]},
        "arms": {
            "plain": {"ranksim": 0},
            "two": {"rnc_encoder": True, "then": {"epochs": 3, "tune": {"loss": ["mse"]}}},
        },
    }
    comparison = compare(recipe(tmp_path), tmp_path / "out", arms, trials=1, seeds=1)
    two = comparison.arms[1]
    assert two.chosen == {0: {"lr": 0.01, "then lr": 0.01, "then loss": "mse"}}
    run = two.runs[Unit(0, 1)]
    _, first, _ = read_run(run / "first")
    _, second, _ = read_run(run)
    assert (first["rnc_encoder"], second["rnc_encoder"]) == (True, False)
    assert (second["retrain_from"], second["loss"], second["epochs"]) == (str(run / "first"), "mse", 3)
    encoders = [torch.load(place / "best.ckpt", weights_only=True)["method"] for place in (run / "first", run)]
    shared = [key for key in encoders[0] if key.startswith("encoder.")]
    assert shared
    for key in shared:
        assert torch.equal(encoders[0][key], encoders[1][key.replace("encoder.", "encoder.encoder.", 1)])


def test_relative_values_are_multiples_of_what_the_data_say(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trainings as short as these have hardly a gradient to compare with; see the tests of gradient shares.
    monkeypatch.setattr(
        RankSimRecipe, "_weights_of_shares", lambda self, task, device, *shares: [s / 4 for s in shares]
    )
    arms = {
        "tune": {"lr": {"from": "0.5x", "to": "2x"}},
        "arms": {"plain": {"ranksim": 0}, "RankSim": {"tune": {"ranksim": [0, "0.1x", "1x"]}}},
    }
    output = tmp_path / "out"
    comparison = compare(recipe(tmp_path), output, arms, trials=3, seeds=1)
    scales = yaml.safe_load((output / "compare.yaml").read_text())["scales"]["0"]
    assert scales["lr"] == {"0.5x": 0.0005, "2x": 0.002}
    assert scales["ranksim"] == {"0.1x": 0.025, "1x": 0.25}
    tried = [trial.settings for trial in comparison.arms[1].trials[0]]
    assert {settings["ranksim"] for settings in tried} == {0, 0.025, 0.25}
    assert all(0.0005 <= settings["lr"] <= 0.002 for settings in tried)


def test_what_diverges_does_not_end_the_others(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = compare_jobs.train_run

    def diverging(recipe: Any, options: Any, *others: Any, **named: Any) -> Any:
        name = "/".join(options.output.parts[-3:])
        if name in ("plain/split-0/trial-0", "ranksim/split-0/seed-1"):
            raise TrainingError(f"{name} has diverged")
        return train(recipe, options, *others, **named)

    monkeypatch.setattr(compare_jobs, "train_run", diverging)
    own, output = recipe(tmp_path), tmp_path / "out"
    comparison = compare(own, output)
    assert [failure.reason for failure in comparison.failures] == [
        "plain/split-0/trial-0 has diverged",
        "ranksim/split-0/seed-1 has diverged",
    ]
    plain = comparison.arms[0]
    assert plain.chosen[0] == plain.trials[0][1].settings
    assert comparison.units == [Unit(0, 2)]  # in the other one RankSim has no run
    assert set(plain.runs) == {Unit(0, 1), Unit(0, 2)}
    del trained[:]
    compare(own, output, resume=True)
    assert trained == []  # it would diverge again
    (plain.folder / "split-0" / "trial-1" / "log.csv").rename(tmp_path / "log.csv")
    (plain.folder / "split-0" / "trial-1" / FAILED).write_text("too")
    with pytest.raises(SettingsError, match="arm plain: every trial of split 0 has diverged"):
        compare(own, output, resume=True, seeds=3)


def test_data_with_parts_of_their_own_have_one_split(tmp_path: Path, trained: list[str]) -> None:
    own = recipe(tmp_path, split="part")
    with pytest.raises(SettingsError, match="says itself which samples are for the test: leave out splits"):
        compare(own, tmp_path / "out", splits=2)
    assert compare(own, tmp_path / "out").sizes == {"train": 30, "val": 15, "test": 15}
    with pytest.raises(SettingsError, match="sets seed and split-seed itself"):
        compare(recipe(tmp_path, seed=3), tmp_path / "other")


def test_settings_that_are_given_are_not_tuned_for_all(tmp_path: Path, trained: list[str]) -> None:
    plain, ranksim = compare(recipe(tmp_path, lr=0.02), tmp_path / "out", seeds=1).arms
    assert (list(plain.tuned), list(ranksim.tuned)) == ([], ["ranksim"])
    assert read_run(plain.runs[Unit(0, 1)])[1]["lr"] == 0.02


def test_a_planted_effect_is_found(tmp_path: Path, trained: list[str]) -> None:
    arms = {
        "arms": {"right": {"ranksim": 0, "epochs": 30, "lr": 0.02}, "hardly": {"ranksim": 0, "epochs": 1, "lr": 1e-5}}
    }
    comparison = compare(recipe(tmp_path), tmp_path / "out", arms, seeds=3)
    scores = comparison.values("MAE")["all"]
    assert all(scores["right"][unit] < scores["hardly"][unit] / 2 for unit in comparison.units)


def test_a_frame_is_compared_as_its_file(tmp_path: Path, trained: list[str]) -> None:
    import pickle

    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    own = recipe(tmp_path)
    frame = pandas.read_csv(own["data"])
    of_frame = compare(own, tmp_path / "frame", data=frame)
    of_file = compare(own, tmp_path / "file")
    assert [arm.scores for arm in of_frame.arms] == [arm.scores for arm in of_file.arms]
    copy = pickle.loads(pickle.dumps(RankSimRecipe(data=frame, target="y", features=("x",))))
    assert copy.data.frame.equals(frame)


def start(folder: Path, output: Path, epochs: int) -> subprocess.Popen[bytes]:
    """``dadl compare`` in processes of its own."""
    arms = folder / "arms.yaml"
    arms.write_text(yaml.safe_dump(ARMS))
    code = "import sys; sys.argv[0] = 'dadl'; from dadl.cli import main; main()"
    options = ["--data", str(table(folder)), "--target", "y", "--features", "x", "--hidden", "4", "--batch-size", "16"]
    counts = ["--epochs", str(epochs), "--trials", "2", "--seeds", "1", "--jobs", "2", "--device", "cpu"]
    arguments = ["compare", "ranksim", *options, *counts, "--arms", str(arms), "--output", str(output), "--resume"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def children_of(process: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.add(int(status.parent.name))
    return found


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_it_had_never_been(tmp_path: Path) -> None:
    epochs = 12
    killed = start(tmp_path, tmp_path / "killed", epochs)
    deadline = time.monotonic() + 240
    while not (logs := list((tmp_path / "killed").rglob("log.csv"))):
        assert time.monotonic() < deadline, killed.poll()
        time.sleep(0.02)
    workers = children_of(killed.pid)
    assert len(workers) >= 2
    killed.kill()
    killed.wait()
    while any(Path(f"/proc/{worker}/fd").exists() and children_of(1) & {worker} for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert logs
    stopped = start(tmp_path, tmp_path / "killed", epochs)
    while not list((tmp_path / "killed").rglob("results.json")) and stopped.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode in (0, 128 + signal.SIGTERM), output
    assert (b"stopped by SIGTERM" in output) == (stopped.returncode != 0)
    resumed = start(tmp_path, tmp_path / "killed", epochs)
    whole, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, whole
    at_once = start(tmp_path, tmp_path / "whole", epochs)
    output, _ = at_once.communicate(timeout=240)
    assert at_once.returncode == 0, output
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*"))
    run = next((tmp_path / "whole").rglob("seed-1/results.json"))
    assert json.loads(run.read_text())["environment"]["threads"] == 1


def test_the_recipes_own_arms_are_shown_and_can_be_made() -> None:
    shown = command("compare", "ranksim", "--show-arms")
    assert shown.returncode == 0, shown.stderr
    assert "RnC, two stages" in yaml.safe_load(shown.stdout)["arms"]
    refused = command("compare", "ranksim")
    assert "ranksim needs the setting data" in refused.stderr


def test_a_process_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("plain, split 0, trial 0", [(recipe(tmp_path), tmp_path / "run")], test=False)
    with Workers(1, "cpu") as workers:
        workers._workers.append(compare_jobs._spawned("cpu"))
        process = workers._workers[0][0]
        process.kill()
        process.join()
        with pytest.raises(UserError, match="plain, split 0, trial 0: its process has ended"):
            workers.run([job], lambda job, done: None, lambda job, failure: None)
