"""The disagreement operator: its fake kernel, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.dtypes import arithmetic_dtype
from .._shared.members import MEASURES
from .._shared.operation import Operation, apply, differentiated
from ._gradient import save_gradients, scale_gradient
from ._rules import below_autograd, register_float32_autocast, register_no_derivative


def disagreement(members: Tensor, measure: str, reduction: str) -> Tensor:
    """The reduced losses of members ``[K, B, R, C]``. The gradient is formed in the same pass."""
    number, mean = MEASURES.index(measure), reduction == "mean"
    if differentiated(members):
        loss, _ = apply(_Disagreement, members, number, mean, reduction)
        return loss  # type: ignore[no-any-return]
    rows, _ = ops.disagreement.default(members, number, mean, False)
    return rows if reduction == "none" else rows.sum()  # type: ignore[no-any-return]


class _Disagreement(Operation):
    @staticmethod
    def forward(members: Tensor, number: int, mean: bool, reduction: str) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            rows, gradient = ops.disagreement.default(members, number, mean, True)
            return rows if reduction == "none" else rows.sum(), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save_gradients(ctx, output[1:], inputs[:1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, members = ctx.saved_tensors
        return scale_gradient(grad, gradient, members, dim=1), None, None, None


@torch.library.register_fake(add_op_namespace_prefix("disagreement"))
def _(predictions: Tensor, measure: int, mean: bool, with_gradient: bool) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(predictions)
    members, batch, *outputs = predictions.shape
    return predictions.new_empty(batch, dtype=dtype), predictions.new_empty(
        (members if with_gradient else 0, batch, *outputs), dtype=dtype
    )


register_no_derivative("disagreement", "use dadl_ext.functional.disagreement")
register_float32_autocast("disagreement")
