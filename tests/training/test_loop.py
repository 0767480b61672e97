"""The shared loop on a tiny model: determinism, resume, accumulation, precision, several processes."""

import csv
import math
import os
import pickle
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.training import EpochLog, Method, TrainingError, best_epoch, fit, predict, tensor_loader
from dadl.training.checkpoints import CheckpointError, load_checkpoint
from lightning_fabric import Fabric
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS.sum(dim=1)


class Linear(Method):
    steps: Tensor

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, target = batch
        output = self.network(inputs).squeeze(-1)
        self.output_dtype = output.dtype
        return nn.functional.mse_loss(output.float(), target)

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs).squeeze(-1)  # type: ignore[no-any-return]

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        self.total_steps = total_steps
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer, StepLR(optimizer, step_size=3, gamma=0.7)

    def after_step(self) -> None:
        self.steps += 1


def cpu(**options: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **options)


def train(
    method: Linear, *, batch_size: int = 5, shuffle: bool = True, fabric: Fabric | None = None, **options: Any
) -> list[EpochLog]:
    loader = tensor_loader(INPUTS, TARGETS, batch_size=batch_size, shuffle=shuffle)
    return fit(fabric or cpu(), method, loader, **{"epochs": 4, **options})


def parameters(method: Method) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.parameters()])


def test_training_lowers_the_loss_and_counts_its_steps() -> None:
    method, steps = Linear(), []
    history = train(method, epochs=10, on_step=lambda: steps.append(1))
    assert len(history) == 10
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert len(steps) == method.total_steps == method.steps == 10 * 5  # 24 samples are 5 batches of at most 5


def test_same_seed_same_numbers() -> None:
    one, two, other = Linear(0.3), Linear(0.3), Linear(0.3)
    assert train(one, seed=3) == train(two, seed=3)
    train(other, seed=4)
    assert torch.equal(parameters(one), parameters(two))
    assert not torch.equal(parameters(one), parameters(other))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_interrupted_at_any_step_continues_bit_for_bit(
    tmp_path: Path, checkpoint_every: int | None, accumulate: int
) -> None:
    options: dict[str, Any] = {"checkpoint_every": checkpoint_every, "accumulate": accumulate, "batch_size": 3}
    whole = Linear(0.3)
    history = train(whole, folder=tmp_path / "whole", **options)
    steps = 4 * (8 // accumulate)
    draw = random.Random(0)
    for name in range(5):
        folder, moments = tmp_path / str(name), iter(sorted(draw.sample(range(1, steps), 3)))
        for moment in moments:
            part = Linear(0.3)

            def interrupt(part: Linear = part, moment: int = moment) -> None:
                if part.steps == moment:
                    raise Interrupted

            with pytest.raises(Interrupted):
                train(part, folder=folder, on_step=interrupt, **options)
        resumed = Linear(0.3)
        assert train(resumed, folder=folder, **options) == history
        assert torch.equal(parameters(resumed), parameters(whole))
        assert resumed.steps == whole.steps == steps
        assert (folder / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
        assert not list(folder.glob(".*"))  # no temporary files


def test_a_checkpoint_within_an_epoch_saves_its_steps(tmp_path: Path) -> None:
    counted: list[int] = []

    def interrupt() -> None:
        counted.append(1)
        if len(counted) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(Linear(), batch_size=3, folder=tmp_path, checkpoint_every=2, on_step=interrupt)
    counted.clear()
    before: list[int] = []
    train(Linear(), batch_size=3, folder=tmp_path, on_begin=before.append, on_step=lambda: counted.append(1))
    assert before == [4]
    assert len(counted) == 4 * 8 - 4
    train(Linear(), batch_size=3, folder=tmp_path, on_begin=before.append)
    assert before == [4, 4 * 8]


def test_a_write_that_dies_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Linear()
    train(whole)
    save = torch.save

    def die_in_the_third(state: dict[str, Any], stream: BinaryIO) -> None:
        if len(state["history"]) == 3:
            stream.write(b"half a checkpoint")
            raise Interrupted
        save(state, stream)

    monkeypatch.setattr(torch, "save", die_in_the_third)
    with pytest.raises(Interrupted):
        train(Linear(), folder=tmp_path)
    monkeypatch.undo()
    resumed = Linear()
    train(resumed, folder=tmp_path)
    assert torch.equal(parameters(resumed), parameters(whole))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("kind", ["truncated", "text", "pickle", "other method", "empty"])
def test_a_checkpoint_that_is_damaged_or_of_something_else_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "last.ckpt"
    train(Linear(), folder=tmp_path, epochs=1)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif kind == "text":
        file.write_text("not a checkpoint")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Harmful()))
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        torch.save({"method": nn.Linear(2, 2).state_dict()}, file)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged or not a checkpoint of this training"):
        train(Linear(), folder=tmp_path)
    assert not (tmp_path / "harm").exists()


def errors(*values: float) -> Iterator[dict[str, float]]:
    return iter([{"error": value, "other": -value} for value in values])


def test_the_method_of_the_best_validation_is_what_remains(tmp_path: Path) -> None:
    after_two = Linear()
    train(after_two, epochs=2)
    method, values = Linear(), errors(3, 1, math.nan, 2)

    history = train(method, folder=tmp_path, validate=lambda: next(values))
    assert [row["val error"] for row in history][:2] == [3, 1]
    assert best_epoch(history) == 2
    assert torch.equal(parameters(method), parameters(after_two))
    loaded = Linear()
    load_checkpoint(tmp_path / "best.ckpt", {"method": loaded})
    assert torch.equal(parameters(loaded), parameters(after_two))
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val other"] for row in rows] == ["-3", "-1", "nan", "-2"]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]


def test_training_stops_without_a_better_validation_also_when_it_resumes(tmp_path: Path) -> None:
    values = errors(3, 1, 1, 2)
    history = train(Linear(), epochs=9, folder=tmp_path, validate=lambda: next(values), patience=2)
    assert len(history) == 4
    assert train(Linear(), epochs=9, folder=tmp_path, validate=lambda: next(values), patience=2) == history


def test_a_loss_that_is_nan_stops_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Exploding(Linear):
        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = super().forward(batch)
            return loss * math.nan if self.steps >= 7 else loss

    with pytest.raises(TrainingError, match=r"the training loss of epoch 2 is nan \(learning rate"):
        train(Exploding(), folder=tmp_path)
    good, kept = Linear(), Linear()
    train(good, epochs=1)
    load_checkpoint(tmp_path / "last.ckpt", {"method": kept})
    assert torch.equal(parameters(kept), parameters(good))


def test_accumulated_batches_equal_one_large_batch() -> None:
    small, large = Linear(), Linear()
    train(small, batch_size=4, accumulate=3, shuffle=False)
    train(large, batch_size=12, shuffle=False)
    assert small.steps == large.steps
    torch.testing.assert_close(parameters(small), parameters(large))


def test_a_last_incomplete_group_is_averaged_over_its_own_batches() -> None:
    small, large = Linear(), Linear()
    train(small, batch_size=4, accumulate=4, shuffle=False)  # groups of 4 and 2 batches: 16 and 8 samples
    train(large, batch_size=16, shuffle=False)
    torch.testing.assert_close(parameters(small), parameters(large))


def test_mixed_precision_needs_nothing_from_the_method() -> None:
    single, mixed = Linear(), Linear()
    train(single)
    train(mixed, fabric=cpu(precision="bf16-mixed"))
    assert single.output_dtype == torch.float32
    assert mixed.output_dtype == torch.bfloat16
    assert not torch.equal(parameters(mixed), parameters(single))
    torch.testing.assert_close(parameters(mixed), parameters(single), atol=0.03, rtol=0.03)


def test_predictions_are_in_order_in_evaluation_mode_and_without_gradients() -> None:
    method = Linear(dropout=0.5)
    predictions = predict(cpu(), method, tensor_loader(INPUTS, TARGETS, batch_size=7))
    method.eval()
    torch.testing.assert_close(predictions, method.predict(INPUTS).detach())
    assert not predictions.requires_grad
    hidden = predict(cpu(), method, tensor_loader(INPUTS, batch_size=7), method.network[:2])
    assert hidden.shape == (24, 8)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each process sees half of every batch: the same steps, and predictions in the same order."""
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from lightning_fabric import Fabric
            from test_loop import INPUTS, TARGETS, Linear, parameters
            from dadl.training import fit, predict, tensor_loader

            def job(fabric):
                method = Linear()
                loader = tensor_loader(INPUTS[:20], TARGETS[:20], batch_size=2)
                history = fit(fabric, method, loader, epochs=3, accumulate=2)
                predictions = predict(fabric, method, tensor_loader(INPUTS[:19], batch_size=4))
                if fabric.global_rank == 0:
                    torch.save((parameters(method), predictions, history), sys.argv[1])
                fabric.barrier()
                torch.distributed.destroy_process_group()  # else gloo's threads may abort the exiting process

            if __name__ == "__main__":
                Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(job)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    result = tmp_path / "result.pt"
    job = subprocess.run(
        [sys.executable, str(script), str(result)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert job.returncode == 0, job.stderr
    two_parameters, two_predictions, two_history = torch.load(result)

    one = Linear()
    loader = tensor_loader(INPUTS[:20], TARGETS[:20], batch_size=4)
    history = fit(cpu(), one, loader, epochs=3, accumulate=2)
    torch.testing.assert_close(two_parameters, parameters(one))
    torch.testing.assert_close(two_history, history)
    torch.testing.assert_close(two_predictions, predict(cpu(), one, tensor_loader(INPUTS[:19], batch_size=4)))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"accumulate": 0}])
def test_nothing_to_do_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected epochs >= 1 and accumulate >= 1"):
        train(Linear(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every=0 must be positive"),
        ({"checkpoint_every": 5, "folder": None}, "needs a folder"),
        ({"validate": dict, "folder": None}, "validation needs a folder"),
        ({"patience": 3}, "patience=3 must be positive and needs a validation"),
    ],
)
def test_settings_that_make_no_sense_are_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(Linear(), **{"folder": tmp_path, **options})


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batches"):
        fit(cpu(), Linear(), tensor_loader(INPUTS[:0], TARGETS[:0], batch_size=2), epochs=1)


def test_tensors_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[24, 23\]"):
        tensor_loader(INPUTS, TARGETS[:23], batch_size=2)
