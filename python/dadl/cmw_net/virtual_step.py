"""The parameters after an optimiser's next step, as a differentiable function of the gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise a ``TypeError`` for an optimiser that :func:`virtual_step` does not know."""
    if not isinstance(optimizer, SGD | Adam):
        raise TypeError(f"expected SGD, Adam or AdamW, whose steps can be taken virtually, got {type(optimizer)}")


def virtual_step(
    optimizer: Optimizer | float, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    r"""The parameters after the step that ``optimizer`` would take with ``gradients``; nothing is changed.

    A float is the learning rate :math:`\alpha` of plain gradient descent, :math:`w' = w - \alpha g`. SGD supports
    momentum, dampening, weight decay, Nesterov momentum and ``maximize``; Adam and AdamW support bias correction, both
    kinds of weight decay, ``amsgrad`` and ``maximize``; each as in PyTorch's own step. The result carries the graph of
    ``gradients``; parameters and the optimiser's state are constants. A parameter without a gradient, or one that the
    optimiser does not hold, does not move.
    """
    values = [parameter.detach() for parameter in parameters]
    if not isinstance(optimizer, Optimizer):
        return [w if g is None else w - optimizer * g for w, g in zip(values, gradients, strict=True)]
    check_optimizer(optimizer)
    update = _sgd if isinstance(optimizer, SGD) else _adam
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    moved = []
    for parameter, w, g in zip(parameters, values, gradients, strict=True):
        group = groups.get(id(parameter))
        if g is None or group is None:
            moved.append(w)
        else:
            moved.append(update(w, -g if group["maximize"] else g, group, optimizer.state.get(parameter, {})))
    return moved


def _sgd(w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    if group["weight_decay"] != 0:
        g = g + group["weight_decay"] * w
    momentum = group["momentum"]
    if momentum != 0:
        velocity = state.get("momentum_buffer")
        # The first step is not dampened.
        velocity = g if velocity is None else momentum * velocity + (1 - group["dampening"]) * g
        g = g + momentum * velocity if group["nesterov"] else velocity
    moved: Tensor = w - group["lr"] * g
    return moved


def _adam(w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    step = float(state.get("step", 0)) + 1
    if group["weight_decay"] != 0:
        if group["decoupled_weight_decay"]:
            w = w * (1 - group["lr"] * group["weight_decay"])
        else:
            g = g + group["weight_decay"] * w
    first = beta1 * state.get("exp_avg", 0) + (1 - beta1) * g
    second = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * g.square()
    if group["amsgrad"] and state:
        second = torch.maximum(state["max_exp_avg_sq"], second)
    # The square root has no finite derivative at 0. There the gradient has always been 0, and so is the step.
    positive = second > 0
    root = torch.where(positive, torch.where(positive, second, 1).sqrt(), 0) / (1 - beta2**step) ** 0.5
    moved: Tensor = w - group["lr"] / (1 - beta1**step) * first / (root + group["eps"])
    return moved
