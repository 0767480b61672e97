"""How large RankSim's gradient is beside the task's, where the two meet: at the features."""

import math
from collections.abc import Callable
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dadl_ext import RankSimLoss

from ..processes.sums import total

WARM_UP = 300
"""Steps of the task alone before shares are compared: at first the head is zero, and with it the task's gradient."""
COMPARED = 4
"""Batches on which they are compared."""
WEIGHTS = tuple(10 ** (exponent / 4) for exponent in range(-24, 17))


class GradientShare(nn.Module):
    """The norm of RankSim's gradient at the features over that of the task's, of all steps of an epoch together.

    It is measured as the backward pass comes by, which takes two sums for a step. The state holds the sums so far, so
    that a run that is resumed in the middle of an epoch goes on with them; checkpoints without them are loaded as well.
    """

    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Of the task's gradient and RankSim's, the same in all processes. A step's own sums are no buffer, because
        # DistributedDataParallel would overwrite them with those of the first process.
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))
        self._step: list[Tensor | float] = [0.0, 0.0]
        self.register_load_state_dict_pre_hook(_without_sums)

    def branches(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features for the task and for RankSim."""
        task, ranksim = features.view_as(features), features.view_as(features)
        for branch, place in ((task, 0), (ranksim, 1)):
            if self.training and branch.requires_grad:
                branch.register_hook(self._adder(place))
        return task, ranksim

    def end_step(self) -> None:
        """Add the step's sums of all processes; called by all of them."""
        self.squares += total(torch.stack([torch.as_tensor(square).to(self.squares) for square in self._step]))
        self._step = [0.0, 0.0]

    def take(self) -> float:
        """The share of the steps since the last call; NaN without a gradient of the task."""
        task, ranksim = self.squares.tolist()
        self.squares.zero_()
        return math.sqrt(ranksim / task) if task > 0 else math.nan

    def _adder(self, place: int) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            square = gradient.detach().double().square().sum()
            self._step[place] += square.nan_to_num(0, 0, 0)  # a step that overflowed is not made

        return add


def weights_of_shares(
    method: nn.Module,
    ranksim: RankSimLoss,
    loader: DataLoader[Any],
    epochs: int,
    device: torch.device,
    *shares: float,
) -> list[float] | None:
    """Weights γ at which RankSim's gradient is about ``shares`` times the task's; ``None`` without a gradient of that.

    Args:
        method: a fresh :class:`.Regression` without RankSim, which is trained for a while on the task alone.
        ranksim: its settings apart from γ.
        loader: training batches.
        epochs: the largest number of passes over them.
        device: where to compute.
        shares: in any order. There is a largest weight, for shares that are not reached.
    """
    method.to(device).train()
    on_device = lambda batch: [part.to(device) for part in batch]
    steps = min(WARM_UP, epochs * len(loader))
    optimizer, scheduler = method.configure_optimizer(steps)  # type: ignore[operator]
    for batch in islice(chain.from_iterable(repeat(loader)), steps):
        optimizer.zero_grad()
        method(on_device(batch)).backward()
        optimizer.step()
        scheduler.step()
    task, squares = 0.0, [0.0] * len(WEIGHTS)
    for batch in islice(loader, COMPARED):
        inputs, target, weight = on_device(batch)
        features = method.encoder(inputs).detach().requires_grad_()  # type: ignore[operator]
        labels = method.labels(target)  # type: ignore[operator]
        task += _squared(method.task(features, target, weight), features)  # type: ignore[operator]
        for i, value in enumerate(WEIGHTS):
            loss = RankSimLoss(interp_strength=ranksim.interp_strength, weight=value)
            squares[i] += _squared(loss(features, labels), features)
    if task <= 0:
        return None
    reached = [math.sqrt(square / task) for square in squares]
    enough = lambda wanted: (weight for weight, share in zip(WEIGHTS, reached, strict=True) if share >= wanted)
    return [next(enough(share), WEIGHTS[-1]) for share in shares]


def _squared(loss: Tensor, features: Tensor) -> float:
    (gradient,) = torch.autograd.grad(loss, features)
    return float(gradient.double().square().sum())


def _without_sums(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}squares", torch.zeros(2, dtype=torch.float64))
