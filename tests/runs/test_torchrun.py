"""Two processes under ``torchrun``: they equal one, only one of them writes, and none waits for a dead one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl import Run, recipes
from dadl.cmw_net import recipe as cmw_net_train
from dadl.cmw_net import soft_labels
from dadl.cmw_net.method import LearntWeights, LowestLossMeta
from dadl.cmw_net.soft_labels import mixed_objective
from dadl.errors import SettingsError
from dadl.ranksim.method import Regression
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning import UNLABELLED, SelfTuning, paired_loader
from dadl.training import EpochLog, Method, fit, tensor_loader
from dadl.training.fabric import make_fabric
from lightning_fabric import Fabric
from support.cli import predictions_of, results_of
from support.folders import class_idx_folder, image_folder
from support.recipes import recipe_of, small_network
from support.runs import QUIET, Perceptron, TinyRecipe, assert_same_run, numbers, run
from torch import Tensor

from dadl_ext import RankSimLoss

INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 1, 0] + [UNLABELLED] * 8)  # as many labels in each process
TIMEOUT = 120  # seconds; a process that waits for a dead one would wait for half an hour


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh())


def ranksim_of_all_rows(fabric: Fabric) -> tuple[Regression, list[EpochLog]]:
    """Each step has all rows; each process 1 / w of them."""
    ranksim = RankSimLoss(weight=2.0, gather_distributed=True, averaged_gradients=True)
    method = Regression(encoder(), nn.Linear(6, 1), ranksim, lr=3e-3)
    target = INPUTS.square().sum(dim=1)
    loader = tensor_loader(INPUTS, target, torch.ones(16), batch_size=16 // fabric.world_size)
    return method, fit(fabric, method, loader, epochs=6)


def contrast_of_all_rows(fabric: Fabric) -> tuple[SelfTuning, list[EpochLog]]:
    """The same for Self-Tuning; its queue keeps every key, so that their order in a step does not matter."""
    method = SelfTuning(encoder(), 6, 3, nn.Identity(), lr=0.05, projection_size=5, slots=96, momentum=0.9)  # type: ignore[arg-type]
    loader = tensor_loader(INPUTS, LABELS, batch_size=16 // fabric.world_size)
    return method, fit(fabric, method, loader, epochs=6)


def mixed_within_processes(inputs: Tensor, targets: Tensor, soft: Tensor, share: float, partner: Tensor) -> Any:
    """With one λ and the same partners, whether 8 rows are in one process or every second one in another."""
    partner = torch.arange(len(targets)).view(4, -1).flip(0).flatten()
    return mixed_objective(inputs, targets, soft, 0.7, partner)


def weights_of_all_rows(fabric: Fabric, **options: Any) -> tuple[LearntWeights, list[EpochLog]]:
    """Two steps per epoch, each with 8 rows and the 8 meta rows beside them; dealt out to the processes."""
    soft_labels.mixed_objective = mixed_within_processes
    network = nn.Sequential(encoder(), nn.Linear(6, 3))
    counts = torch.tensor([2, 6, 8])
    method = LearntWeights(network, nn.Identity(), counts, lr=0.05, meta_lr=0.05, **options)
    target = (INPUTS[:, :3] + 2 * INPUTS.roll(1, dims=0)[:, :3]).argmax(dim=1)
    loader = tensor_loader(INPUTS, target, -INPUTS, INPUTS[:, :3].argmin(dim=1), batch_size=8 // fabric.world_size)
    return method, fit(fabric, method, loader, epochs=6)


WEIGHTS: dict[str, dict[str, Any]] = {
    "weights": {},
    "normalized": {"normalize": "sum", "interval": 2, "families": 1},
    "soft labels": {"soft_labels": True},
}


class Scaled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) / 255


def lowest_losses(fabric: Fabric, per_class: int) -> Tensor:
    """The images that are chosen of 15, which two processes cannot share evenly."""
    images = torch.arange(15 * 4, dtype=torch.uint8).view(15, 1, 2, 2)
    target = torch.arange(15) % 3
    network = nn.Sequential(encoder(), nn.Linear(6, 3))
    method = LowestLossMeta(network, Scaled(), torch.bincount(target), (1, 2, 2), per_class=per_class, lr=0.05)
    loader = tensor_loader(images, target, batch_size=4 // fabric.world_size, shuffle=True)
    fabric.seed_everything(0, verbose=False)  # by which the sampler shuffles
    method.after_epoch(1, fabric.setup_dataloaders(loader))  # type: ignore[arg-type]
    return method.meta_images


class Watched(SelfTuning):
    def after_epoch(self, epoch: int, loader: Any) -> None:
        self.after = {name: buffer.clone() for name, buffer in self.named_buffers()}


def small_queues(fabric: Fabric) -> Watched:
    """Other rows and other dropout in each process, and queues that go round."""
    backbone = nn.Sequential(encoder(), nn.BatchNorm1d(6), nn.Dropout(0.3))
    method = Watched(backbone, 6, 3, nn.Identity(), lr=0.05, projection_size=5, slots=4, threshold=0.4)  # type: ignore[arg-type]
    fit(fabric, method, paired_loader(INPUTS, LABELS, batch_size=2), epochs=3)
    return method


def train_small_methods() -> None:
    fabric = make_fabric("cpu")
    methods: dict[str, tuple[Method, list[EpochLog]]] = {
        "ranksim": ranksim_of_all_rows(fabric),
        "contrast": contrast_of_all_rows(fabric),
        **{name: weights_of_all_rows(fabric, **options) for name, options in WEIGHTS.items()},
    }
    queues = small_queues(fabric)
    result = {
        "queues": queues.state_dict(),
        "buffers after an epoch": queues.after,
        "chosen": {n: lowest_losses(fabric, n) for n in (1, 2, 9)},
    }
    for name, (method, history) in methods.items():
        result |= {name: {key: v for key, v in method.state_dict().items() if isinstance(v, Tensor)}}
        result |= {f"{name} history": history}
    torch.save(result, f"{fabric.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_equal_one_on_the_whole_batch_and_each_other(tmp_path: Path) -> None:
    job = torchrun("test_torchrun", "train_small_methods", folder=tmp_path)
    assert job.returncode == 0, job.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("ranksim", "contrast", "queues", "buffers after an epoch", *WEIGHTS, "chosen"):
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), key
    assert first["queues"]["contrast.queue.slot_count"].tolist() == [4, 4, 4]

    one = Fabric(accelerator="cpu", devices=1)
    trainings: dict[str, Callable[[Fabric], tuple[Method, list[EpochLog]]]] = {
        "ranksim": ranksim_of_all_rows,
        "contrast": contrast_of_all_rows,
        **{name: partial(weights_of_all_rows, **options) for name, options in WEIGHTS.items()},
    }
    for name, train in trainings.items():
        method, history = train(one)
        for row, expected in zip(first[f"{name} history"], history, strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
        for key, parameter in method.named_parameters():
            torch.testing.assert_close(first[name][key], parameter.detach(), rtol=1e-5, atol=1e-6)
    for n, chosen in first["chosen"].items():
        assert len(chosen) == 3 * min(n, 5)
        assert torch.equal(chosen.unique(dim=0), lowest_losses(one, n).unique(dim=0))


RECIPE = TinyRecipe(data=Path("numbers.txt"))  # 6 steps per epoch in each of two processes


def train_tiny_runs() -> None:
    run(RECIPE, Path("whole"))
    for step in (2, 5, 10, 11):
        Perceptron.stop_after = step
        with pytest.raises(InterruptedError):
            run(RECIPE, Path("parts"), resume=True)
    Perceptron.stop_after = None
    run(RECIPE, Path("parts"), resume=True)
    run(replace(RECIPE, patience=1), Path("patient"))
    with pytest.raises(SettingsError, match="a search trains in one process, not in 2"):
        train_run(RECIPE, RunOptions(output=Path("search"), device="cpu", search=2), QUIET)
    recipes.RECIPES = (*recipes.RECIPES, TinyRecipe)
    written = Run.load(Path("whole")).write_predictions(RECIPE.data, Path("two.csv"), device="cpu", progress=False)
    assert written == 13


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_and_predict_every_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(tmp_path / "numbers.txt")
    job = torchrun("test_torchrun", "train_tiny_runs", folder=tmp_path)
    assert job.returncode == 0, job.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "search").exists()
    results = results_of(tmp_path / "whole")
    assert results["environment"]["processes"] == 2
    assert [row["step"] for row in results["history"]] == [6, 12, 18, 24]

    # One process finds the same for the checkpoints: of the test, whose 13 samples are odd, and of the validation.
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, TinyRecipe))
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "whole", tmp_path / "patient"):
        results = results_of(folder)
        table = Run.load(folder).evaluate(part="test", device="cpu", progress=False)
        assert table == {row: pytest.approx(columns, rel=1e-6) for row, columns in results["test"].items()}
        best = Run.load(folder).evaluate(part="val", device="cpu", progress=False)["all"]["MAE"]
        assert best == pytest.approx(results["history"][results["best_epoch"] - 1]["val all MAE"], rel=1e-6)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()
    Run.load(tmp_path / "whole").write_predictions(RECIPE.data, tmp_path / "one.csv", device="cpu", progress=False)
    two, one = (predictions_of(tmp_path / name) for name in ("two.csv", "one.csv"))
    assert [row["name"] for row in two] == [str(i) for i in range(13)]
    assert [float(row["prediction"]) for row in two] == pytest.approx(
        [float(row["prediction"]) for row in one], rel=1e-5
    )
    with pytest.raises(ValueError, match=r"last\.ckpt is of a training with 6 steps per epoch in 2 process\(es\)"):
        run(RECIPE, tmp_path / "whole", resume=True)


WEIGHTED: dict[str, dict[str, Any]] = {
    "clean": {"meta_per_class": 4, "interval": 2},
    "lowest-loss": {"method": "cmw-net-sl", "meta": "lowest-loss"},
}


def train_weighted_runs() -> None:
    cmw_net_train.resnet = small_network
    after_step = LearntWeights.after_step
    stop_after: int | None = None

    def interrupt(method: LearntWeights) -> None:
        after_step(method)
        if method.steps == stop_after:
            raise InterruptedError

    LearntWeights.after_step = interrupt  # type: ignore[method-assign]
    for name, settings in WEIGHTED.items():
        recipe = recipe_of(Path("data"), epochs=3, checkpoint_every=2, val_fraction=0.1, **settings)
        run(recipe, Path(f"{name} whole"))
        for step in (3, 9, 17):
            stop_after = step
            with pytest.raises(InterruptedError):
                run(recipe, Path(f"{name} parts"), resume=True)
        stop_after = None
        run(recipe, Path(f"{name} parts"), resume=True)


@pytest.mark.slow
def test_learnt_weights_resume_bit_for_bit_in_two_processes(tmp_path: Path) -> None:
    class_idx_folder(tmp_path / "data")
    job = torchrun("test_torchrun", "train_weighted_runs", folder=tmp_path)
    assert job.returncode == 0, job.stderr
    for name in WEIGHTED:
        assert_same_run(tmp_path / f"{name} whole", tmp_path / f"{name} parts")
        state = torch.load(tmp_path / f"{name} whole" / "last.ckpt", weights_only=True)
        assert state["method"]["_extra_state"]["batches"] > 6
        assert state["processes"] == 2


def train_until_one_dies(victim: str) -> None:
    """The process of that rank is killed in the middle of an epoch; without one there are two whole runs."""
    after_step = Perceptron.after_step

    def die(method: Perceptron) -> None:
        after_step(method)
        if os.environ["RANK"] == victim and method.steps == 11:
            os.kill(os.getpid(), signal.SIGKILL)

    Perceptron.after_step = die  # type: ignore[method-assign]
    run(RECIPE, Path("killed"), resume=True)
    run(RECIPE, Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_no_process_waits_for_one_that_was_killed(tmp_path: Path, victim: str) -> None:
    numbers(tmp_path / "numbers.txt")
    job = torchrun("test_torchrun", "train_until_one_dies", victim, folder=tmp_path)
    assert job.returncode != 0
    assert "SIGKILL" in job.stderr
    state = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert (len(state["history"]), state["done"]) == (1, 3)
    assert not (tmp_path / "killed" / "results.json").exists()

    again = torchrun("test_torchrun", "train_until_one_dies", "none", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def train_options(data: Path, output: str, recipe: str = "self-tuning") -> tuple[str, ...]:
    small = ("--image-size", "32", "--epochs", "1", "--batch-size", "2", "--device", "cpu")
    return ("train", recipe, "--data", str(data), "--output", output, *small)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "samples", "small"),
    [
        ("self-tuning", "4 labelled, 8 unlabelled", ("--labels", "30", "--projection-size", "8", "--slots", "4")),
        ("cmw-net", "12 train, 2 meta", ()),
    ],
)
def test_the_command_trains_in_two_processes_of_which_one_writes(
    tmp_path: Path, recipe: str, samples: str, small: tuple[str, ...]
) -> None:
    data = image_folder(tmp_path / "data")
    (data / "train.txt").write_text((data / "train_100.txt").read_text())
    (data / "meta.txt").write_text("12.png 0\n13.png 1\n")
    (data / "val.txt").write_text("10.png 0\n11.png 1\n9.png 1\n")
    job = torchrun("dadl", *train_options(data, "output", recipe), *small, "--logger", "tensorboard", folder=tmp_path)
    assert job.returncode == 0, job.stderr
    for once in (samples, "Epoch 1/1", f"Test of {recipe}", "Wrote checkpoints"):
        assert job.stdout.count(once) == 1, job.stdout
    assert "Warning" not in job.stderr
    assert "deprecated" not in job.stderr
    assert "Traceback" not in job.stderr
    assert results_of(tmp_path / "output")["environment"]["processes"] == 2
    assert [row["name"] for row in predictions_of(tmp_path / "output" / "predictions.csv")] == [
        f"{i}.png" for i in range(12, 16)
    ]
    assert len(list((tmp_path / "output" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_problem_that_every_process_finds_is_told_and_ends_them_all(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    (data / "train_30.txt").write_text("0.png 0\nmissing.png 1\n")
    job = torchrun("dadl", *train_options(data, "output"), "--labels", "30", folder=tmp_path)
    assert job.returncode == 1
    assert job.stderr.count("train_30.txt:2") in (1, 2)
    assert not (tmp_path / "output").exists()


JOBS: tuple[Callable[..., Any], ...] = (
    train_small_methods,
    train_tiny_runs,
    train_weighted_runs,
    train_until_one_dies,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    {job.__name__: job for job in JOBS}[sys.argv[1]](*sys.argv[2:])
