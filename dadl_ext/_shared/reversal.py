"""The identity whose gradient is reversed, shared by the compiled functions and the reference."""

from typing import Any

import torch
from torch import Tensor


def reverse_gradient(input: Tensor, weight: float = 1.0) -> Tensor:
    r"""The input as it is; its gradient is multiplied by ``-weight``.

    As in Ganin & Lempitsky (ICML 2015): what comes before is trained to raise what comes after is trained to lower.
    Differentiable any number of times.
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
