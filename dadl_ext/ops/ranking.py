"""The ranking operators: their fake kernels, autograd, autocast and vmap rules."""

from typing import Any

import torch
from torch import Tensor

from .._shared.dtypes import arithmetic_dtype
from ._rules import register_float32_autocast, register_no_derivative


def rank(input: Tensor, interp_strength: float) -> Tensor:
    """Ranks along the last dimension, with a blackbox gradient of strength ``interp_strength``."""
    return torch.ops.dadl.rank.default(input, interp_strength)  # type: ignore[no-any-return]


@torch.library.register_fake("dadl::rank")
def _(input: Tensor, interp_strength: float) -> Tensor:
    return input.new_empty(input.shape, dtype=arithmetic_dtype(input))


@torch.library.register_fake("dadl::rank_backward")
def _(grad: Tensor, input: Tensor, ranks: Tensor, interp_strength: float) -> Tensor:
    return input.new_empty(input.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    input, ctx.interp_strength = inputs
    ctx.save_for_backward(input, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    input, ranks = ctx.saved_tensors
    return torch.ops.dadl.rank_backward(grad, input, ranks, ctx.interp_strength), None


torch.library.register_autograd("dadl::rank", _backward, setup_context=_setup_context)
register_no_derivative(
    "dadl::rank_backward",
    "ranks are piecewise constant, and their blackbox gradient has no second derivative. Leave rank out of what needs "
    "one (create_graph=True), or detach it there",
)
register_float32_autocast("dadl::rank")


@torch.library.register_vmap("dadl::rank")
def _(info: Any, in_dims: tuple[int | None, ...], input: Tensor, interp_strength: float) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return rank(input.movedim(in_dims[0], 0), interp_strength), 0


@torch.library.register_vmap("dadl::rank_backward")
def _(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, input: Tensor, ranks: Tensor, interp_strength: float
) -> tuple[Tensor, int]:
    batched = [
        value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip((grad, input, ranks), in_dims, strict=False)
    ]
    return torch.ops.dadl.rank_backward(*batched, interp_strength), 0
