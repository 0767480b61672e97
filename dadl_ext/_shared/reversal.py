"""Gradient reversal."""

from typing import Any

import torch
from torch import Tensor


def reverse_gradient(input: Tensor, weight: float = 1.0) -> Tensor:
    r"""Return the input unchanged; its gradient is multiplied by ``-weight``.

    As in Ganin & Lempitsky (ICML 2015): the layers before it learn to raise a loss that the layers after it learn to
    lower. Differentiable any number of times.
    """
    return _Reversal.apply(input, weight)  # type: ignore[no-any-return]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.weight * grad, None
