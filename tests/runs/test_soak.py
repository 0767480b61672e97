"""``make soak``: what grows or ends otherwise is found, and the trainings do neither."""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.commands import train_app
from dadl.recipes import RECIPES

from tools.soak import MOST, command, growth, soak, table
from tools.soak_trainings import Training, make_data, trainings

STEPS, EPOCHS = 10_000, 100


def samples(slope: float, noise: float = 0.5, jump_at: float = 2.0, seed: int = 0) -> dict[int, list[float]]:
    """Of a number that starts at 300 and falls or jumps by 20 in a start-up."""
    rng, found = np.random.default_rng(seed), {}
    for epoch in range(1, EPOCHS + 1):
        share = epoch / EPOCHS
        level = 300 + 20 * (share > 0.1) + 15 * (share > jump_at) + slope * share
        found[epoch * STEPS // EPOCHS] = (level + rng.normal(0, noise, 5)).tolist()
    return found


def test_what_grows_is_told_from_noise_and_jumps() -> None:
    right = 0
    for seed in range(50):
        assert growth(samples(0.0, seed=seed)).steady < MOST["MiB"]
        assert growth(samples(0.0, jump_at=0.7, seed=seed)).steady < MOST["MiB"], "one jump is no slope"
        found = growth(samples(6.0, seed=seed))
        assert found.steady > MOST["MiB"]
        right += found.low < 6.0 * (0.99 - 0.34) < found.high  # after warm-up, and before the last epoch
    assert right >= 45
    assert growth(samples(-6.0)).high < 0


def test_a_file_left_open_in_each_tenth_epoch_is_found() -> None:
    left_open = {step: [10.0 + epoch // 10] * 3 for epoch, step in enumerate(range(100, 10_001, 100))}
    assert growth(left_open).steady > MOST["files"]
    # One that is open at times, as a checkpoint is while it is written, is not.
    at_times = {step: [10.0, 10.0, 10.0 + random.Random(step).randint(0, 1)] for step in range(100, 10_001, 100)}
    assert growth(at_times).steady < MOST["files"]


def test_a_training_of_too_few_epochs_is_said_to_be() -> None:
    with pytest.raises(ValueError, match="2 epochs were measured after warm-up, and a slope needs 10: more steps"):
        growth({10: [1.0], 20: [1.0], 30: [1.0], 40: [1.0]})
    with pytest.raises(ValueError, match="0 epochs were measured"):
        growth({})


def test_every_recipe_is_soaked_and_each_of_its_methods() -> None:
    found = trainings()
    assert {training.recipe for training in found} == {kind.name for kind in RECIPES}
    assert len({training.name for training in found}) == len(found)
    for kind in RECIPES:
        methods = getattr(kind.__annotations__.get("method"), "__args__", ())
        named = {
            training.options[training.options.index("--method") + 1]
            for training in found
            if kind.name == training.recipe and methods
        }
        assert named == set(methods)


@pytest.mark.parametrize("training", trainings(), ids=lambda training: training.name)
def test_the_settings_of_a_training_go_together(training: Training) -> None:
    words = command(training, Path(), Path(), epochs=2, every=2)
    train_app.parse_args(words[words.index("train") + 1 :], print_error=False, exit_on_error=False)


LEAKY = """
import os, threading
import torch

KEPT = []


def view():
    def look(images):
        KEPT.append(bytearray(os.urandom(1 << 17)))
        KEPT.append(open(os.devnull))
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return images * (1 - torch.rand(1) * KEPT[-2][0] / 2550)  # not by torch's generator alone

    return look
"""


@pytest.mark.slow
def test_a_leak_and_a_difference_that_were_planted_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    make_data(tmp_path / "data", epoch=10)
    options = ["--network", "small-cnn", "--method", "ce", "--val-fraction", "0.1", "--augment", "leaky:view"]
    outcome = soak(Training("leaky", "cmw-net", "idx", options), tmp_path, steps=300, kills=1, seed=0)
    assert [problem.partition(" grow ")[0] for problem in outcome.problems[:3]] == ["MiB", "files", "threads"]
    (difference,) = outcome.problems[3:]
    assert difference.startswith("the killed run differs: ")
    assert difference in table([outcome])


@pytest.mark.slow
def test_a_sound_training_is_found_sound(tmp_path: Path) -> None:
    make_data(tmp_path / "data", epoch=10)
    (training,) = (training for training in trainings() if training.name == "ranksim --ranksim 1")
    outcome = soak(training, tmp_path, steps=300, kills=2, seed=0)
    assert outcome.steps == 300
    assert outcome.kills > 0
    assert outcome.problems == []
    assert outcome.growths.keys() == MOST.keys()
