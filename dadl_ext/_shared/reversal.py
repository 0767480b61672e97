"""Gradient reversal."""

from typing import Any

from torch import Tensor

from .checks import check_no_tangent
from .operation import Operation, apply


def reverse_gradient(input: Tensor, weight: float = 1.0) -> Tensor:
    r"""Return the input unchanged; its gradient is multiplied by ``-weight``.

    As in Ganin & Lempitsky (ICML 2015): the layers before it learn to raise a loss that the layers after it learn to
    lower. Differentiable any number of times.
    """
    check_no_tangent("reverse_gradient", input)
    return apply(_Reversal, input, weight)  # type: ignore[no-any-return]


class _Reversal(Operation):
    @staticmethod
    def forward(input: Tensor, weight: float) -> Tensor:  # type: ignore[override]
        return input.view_as(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        _, ctx.weight = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.weight * grad, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor, weight: float) -> tuple[Tensor, int | None]:  # type: ignore[override]
        return apply(_Reversal, input, weight), in_dims[0]
