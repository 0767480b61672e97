"""Runs survive: killed at any moment they resume bit for bit, and whatever is not the same run is refused."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl import Run, recipes
from dadl.errors import SettingsError, UserError
from dadl.output import JobProgress
from dadl.runs.recipe import Recipe
from dadl.training.checkpoints import CheckpointError
from support.runs import Perceptron, TinyRecipe, assert_same_run, history_of, numbers, run


def interrupted(recipe: Recipe, output: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train to a step of all, from the checkpoint if there is one."""
    with monkeypatch.context() as patch:
        patch.setattr(Perceptron, "stop_after", after)
        with pytest.raises(InterruptedError):
            run(recipe, output, resume=True)


KILLS = 20
MOST_STEPS = 8  # between two kills
KILLED = TinyRecipe(data=Path("numbers.txt"), epochs=KILLS * MOST_STEPS // 16 + 1, checkpoint_every=2)
# of 16 steps per epoch: it cannot be ready before the last kill


def position(folder: Path) -> int:
    """Steps of the last checkpoint, which is whole at any moment."""
    if not (folder / "last.ckpt").exists():
        return 0
    state = torch.load(folder / "last.ckpt", weights_only=True)
    return len(state["history"]) * 16 + state["done"]


def start_training(output: Path) -> tuple[int, int]:
    """A process that trains and the pipe on which it reports."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        Perceptron.report = writing
        try:
            run(KILLED, output, resume=True)
        finally:
            os._exit(0 if (output / "results.json").exists() else 1)
    os.close(writing)
    return child, reading


def kill_again_and_again() -> None:
    """What the test below runs in a process of its own, which forks ones that need not import torch once more."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    Perceptron.pause = 0.003
    started = time.perf_counter()
    child, pipe = start_training(Path("whole"))
    os.read(pipe, 1)
    setup = time.perf_counter() - started
    assert os.waitpid(child, 0)[1] == 0
    os.close(pipe)

    killed, before = Path("killed"), 0
    for kill in range(KILLS):
        letters, last = 0, draw.randint(3, MOST_STEPS - 1)
        Perceptron.waits_after = last + 1
        child, pipe = start_training(killed)
        if kill % 4 == 0:  # perhaps before it trains
            time.sleep(draw.uniform(0, setup))
        else:
            while letters < last:
                letters += len(os.read(pipe, 1))
            time.sleep(draw.uniform(0, 2 * Perceptron.pause))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it finished, or failed, by itself"
        while more := os.read(pipe, 1 << 16):
            letters += len(more)
        os.close(pipe)
        steps, after = max(letters - 1, 0), position(killed)
        assert before + max(steps - KILLED.checkpoint_every, 0) <= after <= before + steps
        before = after
    assert before > 16  # it came on
    Perceptron.waits_after = None
    child, pipe = start_training(killed)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_never_been(tmp_path: Path) -> None:
    numbers(tmp_path / "numbers.txt", train=64)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", "import test_train; test_train.kill_again_and_again()"]
    driver = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert driver.returncode == 0, driver.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate": 3}, {"patience": 1, "epochs": 9}])
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"), **options)
    whole = run(recipe, tmp_path / "whole")
    for step in (2, 4, 8, 9):
        interrupted(recipe, tmp_path / "parts", step, monkeypatch)
    assert run(recipe, tmp_path / "parts", resume=True) == whole
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert run(recipe, tmp_path / "parts", resume=True) == whole  # there is nothing left to do
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_bar_of_a_resumed_run_begins_at_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, begun = TinyRecipe(data=numbers(tmp_path / "numbers.txt")), list[int]()
    interrupted(recipe, tmp_path / "run", 5, monkeypatch)
    monkeypatch.setattr(JobProgress, "begin_at", lambda self, done: begun.append(done))
    run(recipe, tmp_path / "run", resume=True)
    assert begun == [3]


def test_a_run_that_dies_before_any_of_its_files_is_in_place_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"), epochs=2)
    replace_file, names = os.replace, []

    def count(source: Path, target: Path, dies_at: int | None = None) -> None:
        names.append(target.name)
        if len(names) == dies_at:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", count)
        run(recipe, tmp_path / "whole")
    files = names.copy()
    assert {"run.json", "config.yaml", "last.ckpt", "best.ckpt", "log.csv", "predictions.csv"} < {*files}
    for moment in range(1, len(files) + 1):
        parts = tmp_path / f"{moment}"
        names.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", partial(count, dies_at=moment))
            with pytest.raises(KeyboardInterrupt):
                run(recipe, parts)
        assert names == files[:moment]
        run(recipe, parts, resume=True)
        assert_same_run(tmp_path / "whole", parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("all", "other values, names, images or another order in train, validation, test"),
        ("rows", "train had 48 samples and not 52"),
        ("input", "other .* in train"),
        ("order", "other .* in validation"),
        ("target", "other .* in test"),
    ],
)
def test_changed_data_are_refused(tmp_path: Path, change: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"))
    interrupted(recipe, tmp_path / "run", 5, monkeypatch)
    checkpoint = (tmp_path / "run" / "last.ckpt").read_bytes()
    lines = recipe.data.read_text().splitlines(keepends=True)
    if change == "all":
        numbers(recipe.data, seed=1)
    elif change == "rows":
        recipe.data.write_text("".join([*lines[:4], *lines]))  # the same facts of more samples
    else:  # the same facts of as many
        if change == "input":
            lines[7] = "0.125 " + lines[7].partition(" ")[2]
        elif change == "order":
            lines[50:52] = lines[51], lines[50]
        else:
            lines[-1] = lines[-1].rpartition(" ")[0] + " 0.125\n"
        recipe.data.write_text("".join(lines))
    with pytest.raises(
        SettingsError, match=rf"numbers\.txt has changed since the run in .*run began: .*{message}; resume"
    ):
        run(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == checkpoint


def test_changed_settings_and_a_second_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"))
    interrupted(recipe, tmp_path / "run", 5, monkeypatch)
    with pytest.raises(SettingsError, match="with other settings: epochs 4 and not 5, seed 0 and not 1"):
        run(replace(recipe, epochs=5, seed=1), tmp_path / "run", resume=True)
    with pytest.raises(SettingsError, match="run holds a run: --resume continues it"):
        run(recipe, tmp_path / "run")


def test_checkpoints_that_are_damaged_or_missing_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"))
    output = tmp_path / "run"
    interrupted(recipe, output, 14, monkeypatch)
    (output / "best.ckpt").rename(output / "away")
    with pytest.raises(CheckpointError, match=r"best\.ckpt is missing.*: put it back, or start over in another folder"):
        interrupted(recipe, output, 20, monkeypatch)
    (output / "away").rename(output / "best.ckpt")
    last = output / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged.*: put it back, or start over in another folder"):
        run(recipe, output, resume=True)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_data_are_read(tmp_path: Path) -> None:
    recipe = TinyRecipe(data=tmp_path / "absent.txt")
    file = tmp_path / "file"
    file.write_text("")
    for output in (file, file / "run"):
        with pytest.raises(UserError, match=r"cannot write to .*: .*file is not a writable folder"):
            run(recipe, output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write to .*: .*closed is not a writable folder"):
        run(TinyRecipe(data=numbers(tmp_path / "numbers.txt")), tmp_path / "closed" / "run")


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path: Path) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"))
    run(recipe, tmp_path / "run", logger=("tensorboard",))
    events = list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    content = events[0].read_bytes()
    for name in (b"loss", b"lr", b"val_all_MAE", b"val_low_MAE"):
        assert content.count(name) == recipe.epochs


def test_evaluation_and_prediction_repeat_what_the_run_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, TinyRecipe))
    recipe = TinyRecipe(data=numbers(tmp_path / "numbers.txt"))
    table = run(recipe, tmp_path / "run")
    assert Run.load(tmp_path / "run").evaluate(part="test", device="cpu", progress=False) == table
    best = min(row["val all MAE"] for row in history_of(tmp_path / "run"))
    assert Run.load(tmp_path / "run").evaluate(part="val", device="cpu", progress=False)["all"]["MAE"] == best
    Run.load(tmp_path / "run").write_predictions(recipe.data, tmp_path / "predicted.csv", device="cpu", progress=False)
    assert (tmp_path / "predicted.csv").read_bytes() == (tmp_path / "run" / "predictions.csv").read_bytes()
    other = numbers(tmp_path / "other.txt", seed=1)
    assert Run.load(tmp_path / "run", other).evaluate(part="test", device="cpu", progress=False) != table
