"""The disagreement operator: its fake kernel, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._shared.dtypes import arithmetic_dtype
from .._shared.members import MEASURES
from ._gradient import scale_gradient
from ._rules import below_autograd, register_float32_autocast, register_no_derivative


def disagreement(members: Tensor, measure: str, reduction: str) -> Tensor:
    """The reduced losses of members ``[K, B, R, C]``. The gradient is formed in the same pass."""
    number, mean = MEASURES.index(measure), reduction == "mean"
    if members.requires_grad and torch.is_grad_enabled():
        return _Disagreement.apply(members, number, mean, reduction)  # type: ignore[no-any-return]
    rows, _ = torch.ops.dadl.disagreement.default(members, number, mean, False)
    return rows if reduction == "none" else rows.sum()  # type: ignore[no-any-return]


class _Disagreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, members: Tensor, number: int, mean: bool, reduction: str) -> Tensor:
        with below_autograd():
            rows, gradient = torch.ops.dadl.disagreement.default(members, number, mean, True)
            loss: Tensor = rows if reduction == "none" else rows.sum()
        ctx.save_for_backward(gradient, members)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, members = ctx.saved_tensors
        return scale_gradient(grad, gradient, members, dim=1), None, None, None


@torch.library.register_fake("dadl::disagreement")
def _(predictions: Tensor, measure: int, mean: bool, with_gradient: bool) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(predictions)
    members, batch, *outputs = predictions.shape
    return predictions.new_empty(batch, dtype=dtype), predictions.new_empty(
        (members if with_gradient else 0, batch, *outputs), dtype=dtype
    )


register_no_derivative("dadl::disagreement", "use dadl_ext.functional.disagreement")
register_float32_autocast("dadl::disagreement")
