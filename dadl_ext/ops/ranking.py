"""The ranking operators: their fake kernels, autograd, autocast and vmap rules."""

from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.dtypes import arithmetic_dtype
from .._shared.operation import Operation, apply, differentiated, keep, kept
from ._numbers import as_numbers, overload, register_numbers
from ._rules import Underivable, below_autograd, call, register_float32_autocast, register_no_derivative


def rank(input: Tensor, interp_strength: float) -> Tensor:
    """Ranks along the last dimension, with a blackbox gradient of strength ``interp_strength``."""
    (strength,) = as_numbers(interp_strength)
    if differentiated(input):
        return apply(_Rank, input, strength)  # type: ignore[no-any-return]
    return overload(ops.rank, strength)(input, strength)  # type: ignore[no-any-return]


class _Rank(Operation):
    @staticmethod
    def forward(input: Tensor, strength: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return overload(ops.rank, strength)(input, strength)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, strength = inputs
        keep(ctx, input, output, strength)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, ranks, strength = kept(ctx)
        operator = overload(ops.rank_backward, strength)
        return call(operator, grad, input, ranks, strength, operation=_RankBackward), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor, strength: Any) -> tuple[Tensor, int]:  # type: ignore[override]
        assert in_dims[0] is not None
        return apply(_Rank, input.movedim(in_dims[0], 0), strength), 0


class _RankBackward(Underivable):
    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:  # type: ignore[override]
        operator, *tensors, strength = arguments
        batched = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(tensors, in_dims[1:], strict=False)
        ]
        return apply(_RankBackward, operator, *batched, strength), 0


@torch.library.register_fake(add_op_namespace_prefix("rank"))
def _(input: Tensor, interp_strength: float) -> Tensor:
    return input.new_empty(input.shape, dtype=arithmetic_dtype(input))


@torch.library.register_fake(add_op_namespace_prefix("rank_backward"))
def _(grad: Tensor, input: Tensor, ranks: Tensor, interp_strength: float) -> Tensor:
    return input.new_empty(input.shape)


register_no_derivative("rank", "use dadl_ext.functional.rank")
register_no_derivative(
    "rank_backward",
    "ranks are piecewise constant, and their blackbox gradient has no second derivative. Leave rank out of what needs "
    "one (create_graph=True), or detach it there",
)
for _operator in ("rank", "rank_backward"):
    register_numbers(_operator)
register_float32_autocast("rank")
