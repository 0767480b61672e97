"""The RankSim operators: their fake kernels, autograd and autocast rules."""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.dtypes import arithmetic_dtype
from .._shared.operation import Operation, apply, differentiated, keep, kept
from ._gradient import save_gradients, scale_gradient
from ._numbers import as_numbers, overload, register_numbers
from ._rules import below_autograd, call, register_float32_autocast, register_no_derivative

# (index, order, count) as in csrc/ops.cpp. Their sizes are fixed, so that the count can stay on the device.
Subset: TypeAlias = tuple[Tensor, Tensor, Tensor]


def ranksim_select(labels: Tensor, priority: Tensor) -> Subset:
    """The row of lowest priority for each distinct label, in ascending label order (batch order if all differ)."""
    return call(ops.ranksim_select.default, labels, priority)  # type: ignore[no-any-return]


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
    numbers = as_numbers(interp_strength, weight)
    arguments = (features, labels, priority, label_similarity, *numbers, mean)
    if differentiated(features):
        loss, _ = apply(_RankSimLoss, *arguments)
    else:
        loss, _ = overload(ops.ranksim_loss, numbers[0])(*arguments, False)
    return loss  # type: ignore[no-any-return]


class _RankSimLoss(Operation):
    @staticmethod
    def forward(
        features: Tensor,
        labels: Tensor,
        priority: Tensor,
        label_similarity: Tensor | None,
        strength: Any,
        weight: Any,
        mean: bool,
    ) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            return overload(ops.ranksim_loss, strength)(  # type: ignore[no-any-return]
                features, labels, priority, label_similarity, strength, weight, mean, True
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save_gradients(ctx, output[1:], inputs[:1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
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
    arguments = (features, labels, *subset, label_similarity, *as_numbers(interp_strength, weight))
    return apply(_RankSimRows, *arguments) if differentiated(features) else _RankSimRows.forward(*arguments)  # type: ignore[no-any-return]


class _RankSimRows(Operation):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return overload(ops.ranksim_rows, arguments[-1])(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        arguments = kept(ctx)
        operator = overload(ops.ranksim_rows_backward, arguments[-1])
        return call(operator, grad, *arguments), *(None,) * 7


@torch.library.register_fake(add_op_namespace_prefix("ranksim_select"))
def _(labels: Tensor, priority: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = labels.shape[0]
    return tuple(labels.new_empty(shape, dtype=torch.int64) for shape in ((n,), (n,), ()))  # type: ignore[return-value]


@torch.library.register_fake(add_op_namespace_prefix("ranksim_loss"))
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


@torch.library.register_fake(add_op_namespace_prefix("ranksim_rows"))
def _(features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape[:1], dtype=arithmetic_dtype(features))


@torch.library.register_fake(add_op_namespace_prefix("ranksim_rows_backward"))
def _(grad: Tensor, features: Tensor, *arguments: Any) -> Tensor:
    return features.new_empty(features.shape)


register_no_derivative("ranksim_loss", "its gradient is an output; use dadl_ext.functional.ranksim_loss")
register_no_derivative("ranksim_rows", "use dadl_ext.functional.ranksim_loss")
register_no_derivative(
    "ranksim_rows_backward",
    "RankSim's gradient passes through ranks, and their blackbox gradient has no second derivative. Leave the loss out "
    "of what needs one (create_graph=True), or detach it there",
)
for _operator in ("ranksim_loss", "ranksim_rows", "ranksim_rows_backward"):
    register_numbers(_operator)
for _operator in ("ranksim_loss", "ranksim_rows"):
    register_float32_autocast(_operator)
