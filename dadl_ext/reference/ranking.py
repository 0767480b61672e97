"""Ranks and their blackbox gradient, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from .._shared.checks import check_rank
from .._shared.dtypes import arithmetic_dtype


def integer_ranks(values: Tensor) -> Tensor:
    """``1 + #{j : x_j > x_i} + #{j > i : x_j = x_i}`` along the last dimension, as int64. NaN is the largest value."""
    n = values.shape[-1]
    ascending = torch.sort(values, dim=-1, stable=True).indices
    descending_position = torch.arange(n, 0, -1, device=values.device).expand(values.shape)
    return torch.empty_like(ascending).scatter_(-1, ascending, descending_position)


class _Rank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, interp_strength: float) -> Tensor:
        ranks = integer_ranks(values).to(values.dtype)
        ctx.save_for_backward(values, ranks)
        ctx.interp_strength = interp_strength
        return ranks

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, ranks = ctx.saved_tensors
        strength = ctx.interp_strength
        perturbed = integer_ranks(values + strength * grad).to(values.dtype)
        return -(ranks - perturbed) / (strength + 1e-8), None


def rank(input: Tensor, interp_strength: float = 2.0) -> Tensor:
    """See :func:`dadl_ext.functional.rank`."""
    check_rank(input, interp_strength)
    return _Rank.apply(input.to(arithmetic_dtype(input)), interp_strength)  # type: ignore[no-untyped-call, no-any-return]
