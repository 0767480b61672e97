"""The training loop that all methods share; devices, precision, processes and checkpoints are Lightning Fabric's."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset


class Method(nn.Module, ABC):
    """What one training method adds to the loop.

    Everything that a checkpoint must hold is in the module's ``state_dict``, auxiliary networks and queues included.
    Precision, gradient accumulation and several processes need nothing from a method: its ``forward`` is a plain
    function from a batch to a loss.
    """

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """The training loss of one batch of the loader, averaged over its samples."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """Predictions ``[B, ...]``; called in evaluation mode, without gradients."""

    @abstractmethod
    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimiser of the loss and its schedule, which advances after each of the ``total_steps`` steps."""

    def after_step(self) -> None:
        """Called after each optimiser step, e.g. to move a momentum encoder."""


def fit(
    fabric: Fabric,
    method: Method,
    loader: DataLoader[Any],
    *,
    epochs: int,
    seed: int = 0,
    accumulate: int = 1,
    checkpoint: Path | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[float]:
    """Train ``method`` in place and return the mean training loss of each epoch.

    Each epoch draws its randomness from ``(seed, epoch)`` alone, so that a run repeats and one that resumes continues
    as if it had never stopped. (With several processes the order of samples after a resume is another one.)

    Args:
        fabric: devices, precision and processes.
        method: what to train.
        loader: training batches.
        epochs: passes over ``loader``.
        seed: of shuffling, dropout and whatever else draws random numbers.
        accumulate: batches whose gradients are averaged before each step.
        checkpoint: written after each epoch; if the file exists, training continues from it.
        on_step: called after each optimiser step, e.g. to show progress.
    """
    if accumulate < 1 or epochs < 1:
        raise ValueError(f"expected epochs >= 1 and accumulate >= 1, got epochs={epochs}, accumulate={accumulate}")
    fabric.seed_everything(seed, verbose=False)
    batches = cast("DataLoader[Any]", fabric.setup_dataloaders(loader))
    if len(batches) == 0:
        raise ValueError("the loader has no batches: give it samples, or at least batch_size of them with drop_last")
    optimizer, scheduler = method.configure_optimizer(epochs * math.ceil(len(batches) / accumulate))
    module, wrapped_optimizer = fabric.setup(method, optimizer)
    state = {"method": module, "optimizer": wrapped_optimizer, "scheduler": scheduler, "history": []}
    if checkpoint is not None and checkpoint.exists():
        fabric.load(checkpoint, state)
    history: list[float] = state["history"]

    for epoch in range(len(history), epochs):
        fabric.seed_everything(
            int(np.random.SeedSequence((seed, epoch, fabric.global_rank)).generate_state(1)[0]), verbose=False
        )
        method.train()
        total = torch.zeros((), device=fabric.device)
        stream = iter(batches)
        while group := list(islice(stream, accumulate)):
            for i, batch in enumerate(group, start=1):
                with fabric.no_backward_sync(module, enabled=i < len(group)):
                    loss = module(batch)
                    fabric.backward(loss / len(group))
                total += loss.detach()
            wrapped_optimizer.step()
            wrapped_optimizer.zero_grad()
            scheduler.step()
            method.after_step()
            if on_step is not None:
                on_step()
        history.append(cast(Tensor, fabric.all_reduce(total / len(batches), reduce_op="mean")).item())
        if checkpoint is not None:
            fabric.save(checkpoint, state)
    return history


@torch.no_grad()
def predict(
    fabric: Fabric, method: Method, loader: DataLoader[Any], output: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Predictions for every sample of an unshuffled loader, in order, on the CPU.

    The inputs are the first element of each batch. ``output`` is evaluated in place of ``method.predict``, e.g. the
    method's encoder for its features.
    """
    output = method.predict if output is None else output
    batches = cast("DataLoader[Any]", fabric.setup_dataloaders(loader))
    method.to(fabric.device).eval()
    with fabric.autocast():
        predictions = torch.cat([output(inputs) for inputs, *_ in batches])
    if fabric.world_size > 1:
        # Process r of w predicted samples r, r + w, ...; the last ones may be repeated to give each as many.
        gathered = cast(Tensor, fabric.all_gather(predictions))
        predictions = gathered.transpose(0, 1).flatten(0, 1)[: len(loader.dataset)]  # type: ignore[arg-type]
    return predictions.float().cpu()


class TensorRows(Dataset[tuple[Tensor, ...]]):
    """Tensors with a common first dimension; a batch is one indexing operation instead of one per sample."""

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors or any(len(tensor) != len(tensors[0]) for tensor in tensors):
            raise ValueError(f"expected tensors of one length, got lengths {[len(tensor) for tensor in tensors]}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def as_fetched(batch: Any) -> Any:
    """Collate nothing: for data sets whose ``__getitems__`` returns a whole batch."""
    return batch


def tensor_loader(*tensors: Tensor, batch_size: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of tensors that fit into memory, e.g. ``(images, targets)``."""
    return DataLoader(TensorRows(*tensors), batch_size=batch_size, shuffle=shuffle, collate_fn=as_fetched)
