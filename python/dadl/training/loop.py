"""The training loop that all methods share. Lightning Fabric handles devices, precision and processes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from ..files import write_csv
from ..metrics import higher_is_better
from ..options import Keep
from .checkpoints import (
    CheckpointError,
    check_kind,
    check_optimizer,
    load_checkpoint,
    not_finite,
    save_checkpoint,
    tensors_of,
)
from .method import Method

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LAST, BEST, LOG = "last.ckpt", "best.ckpt", "log.csv"
VALIDATION = "val "

EpochLog = dict[str, float]
"""The log of one epoch: ``epoch`` (from 1), ``step`` (optimiser steps up to its end), mean training ``loss``, ``lr`` of
its last step, what the method adds, and its validation metrics, each prefixed with ``val``."""


class TrainingError(UserError, RuntimeError):
    """A training run that cannot continue."""


def fit(
    fabric: "Fabric",
    method: Method,
    loader: DataLoader[Any],
    *,
    epochs: int,
    seed: int = 0,
    accumulate: int = 1,
    folder: Path | None = None,
    checkpoint_every: int | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    criterion: str | None = None,
    keep: Keep = "best",
    patience: int | None = None,
    on_begin: Callable[[int], None] | None = None,
    on_step: Callable[[], None] | None = None,
    on_epoch: Callable[[Sequence[EpochLog]], None] | None = None,
) -> list[EpochLog]:
    """Train ``method`` in place and return the log of every epoch.

    Every epoch, and every part of an epoch between two checkpoints, is seeded from the seed, the epoch, the step and
    the process alone. So runs are repeatable, and a resumed run continues bit for bit as if it had never stopped.

    Args:
        fabric: devices, precision, processes and loggers.
        method: the method to train.
        loader: training batches.
        epochs: largest number of passes over ``loader``.
        seed: of shuffling, dropout and everything else that draws random numbers.
        accumulate: batches whose gradients are averaged before each step.
        folder: where ``last.ckpt``, ``log.csv`` and, if it is to be kept, ``best.ckpt`` (the method after its best
            epoch) are written; if it holds a checkpoint, training continues from it. Files are replaced atomically.
        checkpoint_every: steps between checkpoints, in addition to the one after each epoch.
        validate: called after each epoch. Needs a folder.
        criterion: the number of the validation by which an epoch is best, see :func:`best_epoch`.
        keep: with ``validate``, whether the method ends as it was after its best epoch or after its last.
        patience: epochs without improvement on validation after which training stops; ``None`` is never.
        on_begin: called once before training, with the number of steps that a checkpoint has already done.
        on_step: called after each optimiser step, e.g. to show progress.
        on_epoch: called after each epoch with the logs of all epochs so far.

    Raises:
        ValueError: invalid settings, or a loader without batches.
        CheckpointError: a checkpoint in ``folder`` that is damaged or belongs to another training run.
        TrainingError: a training loss, parameter or prediction that is NaN or infinite; the last checkpoint is kept.
        OutputError: files that cannot be written; the last checkpoint is kept.
    """
    _check_settings(epochs, accumulate, folder, checkpoint_every, validate, patience)
    training = _Training(fabric, method, loader, epochs, seed, accumulate, folder, checkpoint_every)
    training.criterion, training.keeps_best = criterion, validate is not None and keep == "best"
    training.resume()
    history = training.position.history
    if on_begin is not None:
        on_begin(len(history) * training.steps + training.position.done)
    while not has_ended(history, epochs, patience, criterion):
        loss = training.train_epoch(on_step)
        training.end_epoch(loss, validate)
        if on_epoch is not None:
            on_epoch(history)
    if training.keeps_best:
        training.restore_best()
    return history


@dataclass
class Position:
    """How far a training run has come: the finished epochs, and the steps and the sum of losses of the current one."""

    history: list[EpochLog] = field(default_factory=list)
    done: int = 0
    total: float = 0.0

    def check(self, steps: int) -> None:
        """Raise a ``ValueError`` if this cannot be a position in a training with that many steps per epoch."""
        if not (isinstance(self.done, int) and 0 <= self.done < steps):
            raise ValueError(f"{self.done!r:.40} steps of an epoch with {steps}")
        if not (isinstance(self.total, float) and math.isfinite(self.total)):
            raise ValueError(f"a sum of losses of {self.total!r:.40}")
        if not isinstance(self.history, list):
            raise ValueError("its log is no list of epochs")
        for epoch, row in enumerate(self.history, start=1):
            numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
            if not numbers or row.keys() != self.history[0].keys() or not {"loss", "lr"} <= row.keys():
                raise ValueError(f"the log of epoch {epoch} is not a row of numbers like the others")
            if (row.get("epoch"), row.get("step")) != (epoch, epoch * steps) or not math.isfinite(row["loss"]):
                raise ValueError(f"the log of epoch {epoch} is of another training")


class _Training:
    """What one call of :func:`fit` trains, and how far it has come."""

    lr: float
    """Learning rate of the last step."""

    criterion: str | None = None
    keeps_best: bool = False

    def __init__(
        self,
        fabric: "Fabric",
        method: Method,
        loader: DataLoader[Any],
        epochs: int,
        seed: int,
        accumulate: int,
        folder: Path | None,
        checkpoint_every: int | None,
    ) -> None:
        fabric.seed_everything(seed, verbose=False)
        self.fabric, self.method, self.seed, self.accumulate = fabric, method, seed, accumulate
        self.folder, self.checkpoint_every = folder, checkpoint_every
        self.batches = cast("DataLoader[Any]", fabric.setup_dataloaders(loader))
        if len(self.batches) == 0:
            raise ValueError(
                "the loader has no batches: give it samples, or at least batch_size of them with drop_last"
            )
        self.steps = math.ceil(len(self.batches) / accumulate)
        optimizer, self.scheduler = method.configure_optimizer(epochs * self.steps)
        self.module, self.optimizer = fabric.setup(method, optimizer)
        self.position = Position()
        self.lr = float(self.optimizer.optimizer.param_groups[0]["lr"])
        self.infinite = not_finite(tensors_of(method))  # from the beginning, such as a mask

    def resume(self) -> None:
        """Continue from the folder's checkpoint, if there is one."""
        if self.folder is None or not (self.folder / LAST).exists():
            return
        state = self._state()
        groups = [dict(group) for group in self.optimizer.optimizer.param_groups]
        schedule, precision = self.scheduler.state_dict(), state["precision"]
        load_checkpoint(self.folder / LAST, state)
        _check_resumed(self.fabric, self.folder, state, self.steps, self.keeps_best)
        self.position = Position(state["history"], state["done"], state["total"])
        try:
            self.position.check(self.steps)
            check_optimizer(self.optimizer.optimizer, groups)
            check_kind(schedule, self.scheduler.state_dict(), "the schedule")
            check_kind(precision, state["precision"], "the precision")
            made = len(self.position.history) * self.steps + self.position.done
            if self.scheduler.last_epoch != made:
                raise ValueError(f"its schedule is {self.scheduler.last_epoch} steps old and not {made}")
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder / LAST} cannot be continued ({error}): put it back, or start over in another folder"
            ) from None
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def train_epoch(self, on_step: Callable[[], None] | None) -> float:
        """Make the remaining steps of the current epoch and return its mean loss."""
        position, epoch = self.position, len(self.position.history)  # from 0
        # Fabric shuffles by its own count of passes over the loader; here the epoch is the count.
        self.batches._num_iter_calls = epoch  # type: ignore[attr-defined]
        self.method.train()
        total = torch.tensor(position.total, device=self.fabric.device)
        self._draw_from(epoch, 0)
        stream = iter(self.batches)
        if position.done:
            for _ in range(position.done * self.accumulate):  # already trained on
                next(stream)
            self._draw_from(epoch, position.done)
        while group := list(islice(stream, self.accumulate)):
            self._step(group, total)
            position.done += 1
            if on_step is not None:
                on_step()
            due = self.checkpoint_every is not None and position.done % self.checkpoint_every == 0
            if due and position.done < self.steps:  # the epoch ends with a checkpoint anyway
                total = _mean_over_processes(self.fabric, total)
                position.total = total.item()
                self._check_finite(position.total, epoch + 1)
                self._save()
                self._draw_from(epoch, position.done)
        return (_mean_over_processes(self.fabric, total) / len(self.batches)).item()

    def _step(self, group: Sequence[Any], total: Tensor) -> None:
        """Make one step on the mean gradient of a group of batches, and add their losses to ``total``."""
        for i, batch in enumerate(group, start=1):
            with self.fabric.no_backward_sync(self.module, enabled=i < len(group)), self._diverging():
                loss = self.module(batch)
                self.fabric.backward(loss / len(group))
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr = float(self.optimizer.optimizer.param_groups[0]["lr"])
        self.scheduler.step()
        self.method.after_step()

    def end_epoch(self, loss: float, validate: Callable[[], Mapping[str, float]] | None) -> None:
        """Validate and log the epoch just trained, and write its files."""
        position, epoch = self.position, len(self.position.history) + 1
        _share_buffers(self.fabric, self.method)  # all processes gather statistics of the same network
        self._check_finite(loss, epoch)
        with self._diverging():
            self.method.after_epoch(epoch, self.batches)
        _share_buffers(self.fabric, self.method)
        log: EpochLog = {"epoch": epoch, "step": epoch * self.steps, "loss": loss, "lr": self.lr}
        log |= self.method.epoch_log()
        position.history.append(log)
        if validate is not None and self.folder is not None:
            log |= {VALIDATION + name: value for name, value in validate().items()}
            if self.keeps_best and best_epoch(position.history, self.criterion) == epoch:
                save_checkpoint(self.fabric, self.folder / BEST, {"method": self.module})
        # Before the checkpoint: after it the epoch is not run again.
        self.fabric.log_dict(log, step=epoch * self.steps)
        if self.folder is not None and self.fabric.is_global_zero:
            write_csv(self.folder / LOG, position.history)
        position.done, position.total = 0, 0.0
        self._save()

    def restore_best(self) -> None:
        """Restore the method after its best epoch."""
        assert self.folder is not None
        load_checkpoint(self.folder / BEST, {"method": self.module})

    def _state(self) -> dict[str, Any]:
        """The contents of a checkpoint."""
        return {
            "method": self.module,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "precision": self.fabric.strategy.precision.state_dict(),
            "history": self.position.history,
            "done": self.position.done,
            "total": self.position.total,
            "steps": self.steps,
            "processes": self.fabric.world_size,
        }

    def _save(self) -> None:
        if self.folder is not None:
            save_checkpoint(self.fabric, self.folder / LAST, self._state())

    def _check_finite(self, loss: float, epoch: int) -> None:
        """Before a checkpoint replaces the last good one."""
        if not math.isfinite(loss):
            raise self._diverged(f"the training loss of epoch {epoch} is {loss}")
        if spoilt := not_finite(tensors_of(self.method)) - self.infinite:
            raise self._diverged(f"{min(spoilt)} of the method is NaN or infinite in epoch {epoch}")

    @contextmanager
    def _diverging(self) -> Iterator[None]:
        """What a method finds not to be finite, such as a loss in a batch, ends the training with a sentence."""
        try:
            yield
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} (learning rate {self.lr:g}): lower the learning rate, or look for targets and inputs of "
            "extreme size"
        )

    def _draw_from(self, epoch: int, done: int) -> None:
        """Seed all random numbers from here on."""
        entropy = (self.seed, epoch, self.fabric.global_rank, *([done] if done else []))
        self.fabric.seed_everything(int(np.random.SeedSequence(entropy).generate_state(1)[0]), verbose=False)


def best_epoch(history: Sequence[EpochLog], criterion: str | None = None) -> int:
    """The epoch, from 1, with the best validation metric; without validation the last epoch.

    The metric is the ``criterion``, such as ``"few MAE"``, or without one the first. Lower is better, except for
    accuracies and correlations. The first of several equal epochs counts; NaN counts as worst.
    """
    monitored = criterion_of(history[0], criterion)
    if monitored is None:
        return len(history)
    sign = -1 if higher_is_better(monitored) else 1
    values = [math.inf if math.isnan(row[monitored]) else sign * row[monitored] for row in history]
    return 1 + values.index(min(values))


def kept_epoch(history: Sequence[EpochLog], keep: Keep, criterion: str | None = None) -> int:
    """The epoch, from 1, after which the method is tested."""
    return best_epoch(history, criterion) if keep == "best" else len(history)


def criterion_of(row: EpochLog, criterion: str | None = None) -> str | None:
    """The name in an epoch's log of the metric that is the criterion; ``None`` without validation."""
    first = next((name for name in row if name.startswith(VALIDATION)), None)
    return first if first is None or criterion is None else VALIDATION + criterion


def has_ended(history: Sequence[EpochLog], epochs: int, patience: int | None, criterion: str | None = None) -> bool:
    """Whether a training with these logs has come to its end."""
    waited = patience is not None and bool(history) and len(history) - best_epoch(history, criterion) >= patience
    return waited or len(history) >= epochs


def _check_settings(
    epochs: int,
    accumulate: int,
    folder: Path | None,
    checkpoint_every: int | None,
    validate: Callable[[], Mapping[str, float]] | None,
    patience: int | None,
) -> None:
    if accumulate < 1 or epochs < 1:
        raise ValueError(f"expected epochs >= 1 and accumulate >= 1, got epochs={epochs}, accumulate={accumulate}")
    if checkpoint_every is not None and (checkpoint_every < 1 or folder is None):
        raise ValueError(f"checkpoint_every={checkpoint_every} must be positive and needs a folder, got {folder}")
    if validate is not None and folder is None:
        raise ValueError("validation needs a folder for the checkpoint of the best epoch")
    if patience is not None and (patience < 1 or validate is None):
        raise ValueError(f"patience={patience} must be positive and needs a validation")


def _check_resumed(fabric: "Fabric", folder: Path, state: Mapping[str, Any], steps: int, validated: bool) -> None:
    if (state["steps"], state["processes"]) != (steps, fabric.world_size):
        raise CheckpointError(
            f"{folder / LAST} is of a training with {state['steps']!r:.40} steps per epoch in "
            f"{state['processes']!r:.40} process(es), not {steps} in {fabric.world_size}: resume with the "
            "same data and as many processes, or start over in another folder"
        )
    if validated and state["history"] and not (folder / BEST).exists():
        raise CheckpointError(
            f"{folder / BEST} is missing, the method after its best epoch: put it back, or start over in another folder"
        )


def _mean_over_processes(fabric: "Fabric", value: Tensor) -> Tensor:
    return cast(Tensor, fabric.all_reduce(value, reduce_op="mean"))


def _share_buffers(fabric: "Fabric", method: Method) -> None:
    """Give every process the batch-normalisation statistics of the first one, which are in the checkpoint.

    Otherwise each process would validate and test with its own: DDP broadcasts buffers only as the next step begins.
    """
    if fabric.world_size > 1:
        for buffer in method.buffers():
            dist.broadcast(buffer, 0)


@torch.no_grad()
def predict(
    fabric: "Fabric", method: Method, loader: DataLoader[Any], output: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Predictions for every sample of an unshuffled loader, in order, on the CPU.

    The inputs are the first element of each batch. ``output`` is called instead of ``method.predict``, e.g. the
    method's encoder to get features. Raises a :class:`TrainingError` if a prediction is NaN or infinite.
    """
    output = method.predict if output is None else output
    batches = cast("DataLoader[Any]", fabric.setup_dataloaders(loader))
    method.to(fabric.device).eval()
    with fabric.autocast():
        predictions = torch.cat([output(inputs) for inputs, *_ in batches])
    if fabric.world_size > 1:
        # Process r of w predicted samples r, r + w, ...; the last samples may be repeated to give all equally many.
        gathered = [torch.empty_like(predictions) for _ in range(fabric.world_size)]
        dist.all_gather(gathered, predictions)
        predictions = torch.stack(gathered, dim=1).flatten(0, 1)[: len(loader.dataset)]  # type: ignore[arg-type]
    predictions = predictions.float().cpu()
    wrong = (~predictions.isfinite()).flatten(1).any(dim=1) if predictions.dim() > 1 else ~predictions.isfinite()
    if bool(wrong.any()):
        raise TrainingError(
            f"{int(wrong.sum())} of {len(wrong)} predictions are NaN or infinite, first that of sample "
            f"{int(wrong.nonzero()[0]) + 1}: train with a lower learning rate, or look for inputs of extreme size"
        )
    return predictions
