"""Networks, batches, optimisers and their steps by hand, for the meta gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

CLASSES, N, META = 4, 12, 8

cross_entropy = partial(F.cross_entropy, reduction="none")


def network(*, bias: bool = True, last: nn.Module | None = None) -> nn.Sequential:
    """Convolutions and dense layers, with and without batch normalisation after them, in float64."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=bias),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(24, 7, bias=bias),
        nn.BatchNorm1d(7, track_running_stats=False),
        nn.Softplus(),
        nn.Identity() if last is None else last,
        nn.Linear(7, CLASSES),
    ).double()


def batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (n,), generator=generator)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd weight decay": lambda p: SGD(p, lr=0.1, weight_decay=0.05),
    "sgd momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    "sgd dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.4),
    "sgd nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "sgd maximize": lambda p: SGD(p, lr=0.1, momentum=0.9, maximize=True),
    "adam": lambda p: Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    "adam weight decay": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "adam amsgrad": lambda p: Adam(p, lr=0.01, betas=(0.5, 0.6), amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}


def by_hand(w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """One parameter after one step, from the definitions; ``state`` is the optimiser's before the step."""
    g = -g if group.get("maximize") else g
    if "momentum" in group:
        g = g + group["weight_decay"] * w
        if group["momentum"] == 0:
            return w - group["lr"] * g
        buffer = state.get("momentum_buffer")
        buffer = g if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * g
        return w - group["lr"] * (g + group["momentum"] * buffer if group["nesterov"] else buffer)
    beta1, beta2 = group["betas"]
    t = int(state["step"]) + 1 if state else 1
    if group["decoupled_weight_decay"]:
        w = w - group["lr"] * group["weight_decay"] * w
    else:
        g = g + group["weight_decay"] * w
    m = beta1 * state["exp_avg"] + (1 - beta1) * g if state else (1 - beta1) * g
    v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g if state else (1 - beta2) * g * g
    if group["amsgrad"] and state:
        v = torch.where(v > state["max_exp_avg_sq"], v, state["max_exp_avg_sq"])
    root = (v / (1 - beta2**t) + 1e-300).sqrt()  # differentiable where the gradient has always been zero
    return w - group["lr"] * (m / (1 - beta1**t)) / (root + group["eps"])


def warmed_up(model: nn.Module, make: Callable[[Any], Optimizer], steps: int = 3) -> Optimizer:
    """An optimiser in the middle of a training."""
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    for seed in range(steps):
        inputs, target = batch(N, 100 + seed)
        optimizer.zero_grad()
        cross_entropy(model(inputs), target).mean().backward()
        optimizer.step()
    return optimizer


def relative_error(value: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 0
    return float((value - expected).norm() / expected.norm())


class Failure(Exception):
    pass
