"""The Rank-N-Contrast operators: their fake kernels, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.checks import LABEL_DISTANCES, REDUCTIONS, SIMILARITIES
from .._shared.dtypes import arithmetic_dtype
from .._shared.operation import Operation, apply, differentiated, keep, kept
from ._gradient import scale_gradient
from ._numbers import as_numbers, overload, register_numbers
from ._rules import below_autograd, call, register_float32_autocast, register_no_derivative

_ROWS = REDUCTIONS.index("none")


def rank_n_contrast(
    features: Tensor, labels: Tensor, temperature: float, similarity: str, label_distance: str, reduction: str
) -> Tensor:
    """The loss ``[]``, with its gradient in the same pass where one is needed, or the losses ``[n]`` of the anchors."""
    (temperature,) = as_numbers(temperature)
    settings = temperature, SIMILARITIES.index(similarity), LABEL_DISTANCES.index(label_distance)
    arguments = (features, labels, *settings, REDUCTIONS.index(reduction))
    if not differentiated(features):
        loss, _ = overload(ops.rank_n_contrast, temperature)(*arguments, False)
    else:
        loss, _ = apply(_RankNContrast, *arguments)
    return loss  # type: ignore[no-any-return]


class _RankNContrast(Operation):
    """The gradient of the rows depends on the upstream gradients: it is formed in the backward."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            return overload(ops.rank_n_contrast, arguments[2])(*arguments, arguments[-1] != _ROWS)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        keep(ctx, *inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, labels, *settings, reduction, gradient = kept(ctx)
        if grad is None or reduction != _ROWS:
            return scale_gradient(grad, gradient, features), *(None,) * 5
        operator = overload(ops.rank_n_contrast_backward, settings[0])
        return call(operator, grad, features, labels, *settings), *(None,) * 5


@torch.library.register_fake(add_op_namespace_prefix("rank_n_contrast"))
def _(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    similarity: int,
    label_distance: int,
    reduction: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype, (n, d) = arithmetic_dtype(features), features.shape
    shape = (n,) if reduction == _ROWS else ()
    return features.new_empty(shape, dtype=dtype), features.new_empty((n if with_gradient else 0, d), dtype=dtype)


@torch.library.register_fake(add_op_namespace_prefix("rank_n_contrast_backward"))
def _(grad: Tensor, features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape)


register_no_derivative("rank_n_contrast", "use dadl_ext.functional.rank_n_contrast")
register_no_derivative(
    "rank_n_contrast_backward",
    "the gradient of Rank-N-Contrast is formed by hand and has no second derivative. Leave the loss out of what needs "
    "one (create_graph=True), or use dadl_ext.reference, which has one",
)
for _operator in ("rank_n_contrast", "rank_n_contrast_backward"):
    register_numbers(_operator)
register_float32_autocast("rank_n_contrast")
