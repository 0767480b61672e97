"""The Rank-N-Contrast operators: their fake kernels, autograd, autocast and vmap rules."""

from typing import Any

import torch
from torch import Tensor

from .._shared.checks import LABEL_DISTANCES, REDUCTIONS, SIMILARITIES
from .._shared.dtypes import arithmetic_dtype
from . import _gradient as _gradient  # registers the rules of scale_gradient
from ._rules import register_float32_autocast, register_no_derivative

_ROWS = REDUCTIONS.index("none")


def rank_n_contrast(
    features: Tensor, labels: Tensor, temperature: float, similarity: str, label_distance: str, reduction: str
) -> Tensor:
    """The loss ``[]``, with its gradient in the same pass where one is needed, or the losses ``[n]`` of the anchors."""
    settings = temperature, SIMILARITIES.index(similarity), LABEL_DISTANCES.index(label_distance)
    number = REDUCTIONS.index(reduction)
    # The gradient of the rows depends on the upstream gradients: it is formed in the backward.
    with_gradient = number != _ROWS and features.requires_grad and torch.is_grad_enabled()
    loss, _ = torch.ops.dadl.rank_n_contrast.default(features, labels, *settings, number, with_gradient)
    return loss  # type: ignore[no-any-return]


@torch.library.register_fake("dadl::rank_n_contrast")
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


@torch.library.register_fake("dadl::rank_n_contrast_backward")
def _(grad: Tensor, features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, labels, *ctx.settings, ctx.reduction, ctx.with_gradient = inputs
    ctx.save_for_backward(features, labels, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    features, labels, gradient = ctx.saved_tensors
    if ctx.reduction == _ROWS:
        slope = torch.ops.dadl.rank_n_contrast_backward(grad, features, labels, *ctx.settings)
    elif ctx.with_gradient:
        # Not the wrapper, which looks at the value of grad: here it may have none.
        slope = torch.ops.dadl.scale_gradient(grad, gradient, features, 0)
    else:
        raise RuntimeError("dadl::rank_n_contrast has no gradient without with_gradient; set it, or use functional")
    return slope, *(None,) * 6


def _register_vmap(operator: Any) -> None:
    """One call for each batch of the dimension that is mapped over."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def at(i: int) -> list[Any]:
            return [
                value if dim is None else value.select(dim, i) for value, dim in zip(arguments, in_dims, strict=True)
            ]

        results = [operator(*at(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0, 0)

    torch.library.register_vmap(operator.name(), rule)


torch.library.register_autograd("dadl::rank_n_contrast", _backward, setup_context=_setup_context)
register_no_derivative(
    "dadl::rank_n_contrast_backward",
    "the gradient of Rank-N-Contrast is formed by hand and has no second derivative. Leave the loss out of what needs "
    "one (create_graph=True), or use dadl_ext.reference, which has one",
)
register_float32_autocast("dadl::rank_n_contrast")
for _operator in (torch.ops.dadl.rank_n_contrast.default, torch.ops.dadl.rank_n_contrast_backward.default):
    _register_vmap(_operator)
