"""The RankSim operators: their fake kernels, autograd and autocast rules."""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._shared.dtypes import arithmetic_dtype
from ._gradient import scale_gradient
from ._rules import below_autograd, register_float32_autocast, register_no_derivative

# (index, order, count) as in csrc/ops.cpp. Their sizes are fixed, so that the count can stay on the device.
Subset: TypeAlias = tuple[Tensor, Tensor, Tensor]


def ranksim_select(labels: Tensor, priority: Tensor) -> Subset:
    """The row of lowest priority for each distinct label, in ascending label order (batch order if all differ)."""
    return torch.ops.dadl.ranksim_select.default(labels, priority)  # type: ignore[no-any-return]


def ranksim_loss(
    features: Tensor,
    labels: Tensor,
    priority: Tensor,
    label_similarity: Tensor | None,
    interp_strength: float,
    weight: float,
    mean: bool,
) -> Tensor:
    """The loss ``[]``. If a gradient is needed, it is formed in the same pass.

    The operator selects the subset too: a separate operator for that would take a tenth of a small batch's time.
    """
    arguments = (features, labels, priority, label_similarity, interp_strength, weight, mean)
    if features.requires_grad and torch.is_grad_enabled():
        return _RankSimLoss.apply(*arguments)  # type: ignore[no-any-return]
    loss, _ = torch.ops.dadl.ranksim_loss.default(*arguments, False)
    return loss  # type: ignore[no-any-return]


class _RankSimLoss(torch.autograd.Function):
    """A Function, because a registered rule parses the schema in each call: a sixth of the time of a small batch."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *arguments: Any) -> Tensor:
        with below_autograd():
            loss, gradient = torch.ops.dadl.ranksim_loss.default(features, *arguments, True)
        ctx.save_for_backward(gradient, features)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return scale_gradient(grad, *ctx.saved_tensors), *(None,) * 6


def ranksim_rows(
    features: Tensor,
    labels: Tensor,
    subset: Subset,
    label_similarity: Tensor | None,
    interp_strength: float,
    weight: float,
) -> Tensor:
    """The losses ``[n]`` of the rows of the subset, 0 beyond its count."""
    return torch.ops.dadl.ranksim_rows.default(  # type: ignore[no-any-return]
        features, labels, *subset, label_similarity, interp_strength, weight
    )


@torch.library.register_fake("dadl::ranksim_select")
def _(labels: Tensor, priority: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = labels.shape[0]
    return tuple(labels.new_empty(shape, dtype=torch.int64) for shape in ((n,), (n,), ()))  # type: ignore[return-value]


@torch.library.register_fake("dadl::ranksim_loss")
def _(
    features: Tensor,
    labels: Tensor,
    priority: Tensor,
    label_similarity: Tensor | None,
    interp_strength: float,
    weight: float,
    mean: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(features)
    shape = (features.shape[0] if with_gradient else 0, features.shape[1])
    return features.new_empty((), dtype=dtype), features.new_empty(shape, dtype=dtype)


@torch.library.register_fake("dadl::ranksim_rows")
def _(features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape[:1], dtype=arithmetic_dtype(features))


@torch.library.register_fake("dadl::ranksim_rows_backward")
def _(grad: Tensor, features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape)


def _rows_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.interp_strength, ctx.weight = inputs
    ctx.save_for_backward(*tensors)


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = torch.ops.dadl.ranksim_rows_backward(grad, *ctx.saved_tensors, ctx.interp_strength, ctx.weight)
    return gradient, *(None,) * 7


torch.library.register_autograd("dadl::ranksim_rows", _rows_backward, setup_context=_rows_setup_context)
register_no_derivative("dadl::ranksim_loss", "its gradient is an output; use dadl_ext.functional.ranksim_loss")
register_no_derivative(
    "dadl::ranksim_rows_backward",
    "RankSim's gradient passes through ranks, and their blackbox gradient has no second derivative. Leave the loss out "
    "of what needs one (create_graph=True), or detach it there",
)
for _operator in ("dadl::ranksim_loss", "dadl::ranksim_rows"):
    register_float32_autocast(_operator)
