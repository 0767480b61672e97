"""Losses of single predictions besides weighted L1 and squared errors: Huber and focal.

Source of the focal losses: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reweighting import Reduction, difference, weighted_mean


def weighted_huber_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean", *, beta: float = 1.0
) -> Tensor:
    """``w h(x - y)`` with ``h(e) = e² / (2 β)`` where ``|e| < β`` and ``|e| - β / 2`` elsewhere.

    Huber's loss over β, so that large errors count as in the L1 loss whatever β is. Arguments and errors as for
    :func:`dadl.weighted_l1_loss`.

    Args:
        input: predictions, any shape.
        target: as ``input``.
        weight: as ``input``, or one weight per sample ``[N]``; ``None`` is all ones.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        beta: the error at which the parabola becomes a line, positive.

    Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    check_positive(beta=beta)
    error = difference(input, target)
    return weighted_mean(
        F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta), weight, reduction
    )


def focal_l1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    beta: float = 0.2,
    gamma: float = 1.0,
) -> Tensor:
    r"""``w |e| f(e)`` of errors ``e = x - y``, where :math:`f(e) = (2\,\mathrm{sigmoid}(\beta |e|) - 1)^\gamma`.

    f grows from 0 to 1, so well-predicted samples count less. The gradient passes through f. Arguments and errors as
    for :func:`dadl.weighted_l1_loss`.

    Args:
        input: predictions, any shape.
        target: as ``input``.
        weight: as ``input``, or one weight per sample ``[N]``; ``None`` is all ones.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        beta: scale of f: the larger, the smaller the errors that count in full; positive.
        gamma: exponent of f: the larger, the less small errors count; 0 turns f off.

    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021.
    """
    error = difference(input, target).abs()
    return weighted_mean(error * _focus(error, beta, gamma), weight, reduction)


def focal_mse_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    beta: float = 0.2,
    gamma: float = 1.0,
) -> Tensor:
    """``w e² f(e)``; f, arguments, errors and source as for :func:`focal_l1_loss`."""
    error = difference(input, target).abs()
    return weighted_mean(error.square() * _focus(error, beta, gamma), weight, reduction)


def _focus(error: Tensor, beta: float, gamma: float) -> Tensor:
    check_positive(beta=beta)
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    # 2 sigmoid(t) - 1 = tanh(t / 2). If γ < 1, its slope at an error of 0 is infinite, but there is no error to weight.
    return (error * (beta / 2)).tanh().masked_fill(error == 0, 1) ** gamma


def check_positive(**values: float) -> None:
    """Raise a ``ValueError`` that names the first of these values that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
