"""The contrast operators: their fake kernels, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.checks import FORMS, REDUCTIONS, check_contrast, check_group_contrast
from .._shared.dtypes import arithmetic_dtype
from .._shared.operation import Operation, apply, differentiated, keep, kept
from ._gradient import save_gradients, scale_gradient
from ._numbers import as_numbers, overload, register_numbers
from ._rules import below_autograd, call, register_autocast, register_no_derivative


def similarity_logsumexp(
    query: Tensor, key: Tensor, key_mask: Tensor | None, scale: float, exclude_self: bool
) -> Tensor:
    """``log Σ_j exp(scale · q_i k_j)``, ``[B]``. The gradient of the query is formed in the same pass."""
    (scale,) = as_numbers(scale)
    arguments = (query, key, key_mask, scale, exclude_self)
    if differentiated(query, key):
        lse, _ = apply(_SimilarityLogsumexp, *arguments, differentiated(query))
    else:
        lse, _ = overload(ops.similarity_logsumexp, scale)(*arguments, False)
    return lse  # type: ignore[no-any-return]


class _SimilarityLogsumexp(Operation):
    @staticmethod
    def forward(  # type: ignore[override]
        query: Tensor, key: Tensor, key_mask: Tensor | None, scale: Any, exclude_self: bool, with_slope: bool
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return overload(ops.similarity_logsumexp, scale)(  # type: ignore[no-any-return]
                query, key, key_mask, scale, exclude_self, with_slope
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, key_mask, scale, exclude_self, _ = inputs
        lse, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
        keep(ctx, query, key, key_mask, lse, slope, scale, exclude_self)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 6
        query, key, key_mask, lse, slope, scale, exclude_self = kept(ctx)
        query_gradient = key_gradient = None
        if ctx.needs_input_grad[0]:
            query_gradient = scale_gradient(grad, slope, query)
        if ctx.needs_input_grad[1]:
            key_gradient = _key_gradient(grad, query, key, key_mask, lse.detach(), scale, exclude_self)
        return query_gradient, key_gradient, None, None, None, None


def _key_gradient(
    grad: Tensor, query: Tensor, key: Tensor, key_mask: Tensor | None, lse: Tensor, scale: Any, exclude_self: bool
) -> Tensor:
    operator = overload(ops.similarity_logsumexp_key_gradient, scale)
    return call(operator, grad, query, key, key_mask, lse, scale, exclude_self)  # type: ignore[no-any-return]


def supervised_contrast(features: Tensor, target: Tensor, others: Tensor, temperature: float) -> Tensor:
    """The row losses ``[n]`` of features with targets below n, each of which ``others`` more rows have."""
    (temperature,) = as_numbers(temperature)
    arguments = (features, target, others, 1 / temperature)
    if differentiated(features):
        loss, *_ = apply(_SupervisedContrast, *arguments, True)
    else:
        loss, *_ = _SupervisedContrast.forward(*arguments, False)
    return loss  # type: ignore[no-any-return]


class _SupervisedContrast(Operation):
    """Forms the whole gradient by hand: for small batches, autograd's bookkeeping would take longer than the loss."""

    @staticmethod
    def forward(  # type: ignore[override]
        features: Tensor, target: Tensor, others: Tensor, scale: Any, with_slope: bool
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            lse, slope = overload(ops.similarity_logsumexp, scale)(features, features, None, scale, True, with_slope)
            z = features.to(lse.dtype)
            positives = _class_sums(z, target) - z
            alone = others == 0
            share = (scale / others.to(z.dtype)).masked_fill(alone, 0)
            loss = (lse - (z * positives).sum(dim=1) * share).masked_fill(alone, 0)
        return loss, lse, slope, positives, share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, target, _, scale, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        keep(ctx, features, target, scale, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 5
        features, target, scale, lse, slope, positives, share = kept(ctx)
        with below_autograd():
            grad = grad.masked_fill(share == 0, 0)
            as_key = _key_gradient(grad, features, features, None, lse, scale, True)
            pull = grad * share
            pulling = pull[:, None] * features
            pushed = torch.addcmul(as_key.to(slope.dtype), grad[:, None], slope)
            pushed = torch.addcmul(pushed, pull[:, None], positives, value=-1)
            gradient = (pushed - _class_sums(pulling, target) + pulling).to(features.dtype)
        return gradient, None, None, None, None


def _class_sums(rows: Tensor, target: Tensor) -> Tensor:
    """For each row, the sum of those with its target."""
    return torch.zeros_like(rows).index_add(0, target, rows).index_select(0, target)


def pseudo_group_contrast(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    target: Tensor,
    slot_count: Tensor | None,
    temperature: float,
    form: str,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The row losses ``[B]``, or their sum or mean ``[]``. The gradient is formed in the same pass."""
    (temperature,) = as_numbers(temperature)
    numbers = temperature, FORMS.index(form), ignore_index, REDUCTIONS.index(reduction)
    arguments = (query, key, queue, target, slot_count, *numbers)
    if differentiated(query):
        loss, _ = apply(_PseudoGroupContrast, *arguments)
    else:
        loss, _ = overload(ops.pseudo_group_contrast, temperature)(*arguments, False)
    return loss  # type: ignore[no-any-return]


class _PseudoGroupContrast(Operation):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            return overload(ops.pseudo_group_contrast, arguments[5])(*arguments, True)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save_gradients(ctx, output[1:], inputs[:1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return scale_gradient(grad, *ctx.saved_tensors), *(None,) * 8


@torch.library.register_fake(add_op_namespace_prefix("similarity_logsumexp"))
def _(
    query: Tensor, key: Tensor, key_mask: Tensor | None, scale: float, exclude_self: bool, with_slope: bool
) -> tuple[Tensor, Tensor]:
    check_contrast(query, key, scale, key_mask, exclude_self)
    dtype, (queries, d) = arithmetic_dtype(query), query.shape
    return query.new_empty(queries, dtype=dtype), query.new_empty((queries if with_slope else 0, d), dtype=dtype)


@torch.library.register_fake(add_op_namespace_prefix("similarity_logsumexp_key_gradient"))
def _(grad: Tensor, query: Tensor, key: Tensor, *arguments: Any) -> Tensor:
    return key.new_empty(key.shape)


@torch.library.register_fake(add_op_namespace_prefix("pseudo_group_contrast"))
def _(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    target: Tensor,
    slot_count: Tensor | None,
    temperature: float,
    form: int,
    ignore_index: int,
    reduction: int,
    with_slope: bool,
) -> tuple[Tensor, Tensor]:
    check_group_contrast(
        query, key, queue, target, slot_count, temperature, FORMS[form], ignore_index, REDUCTIONS[reduction]
    )
    dtype, (queries, d) = arithmetic_dtype(query), query.shape
    shape = (queries,) if REDUCTIONS[reduction] == "none" else ()
    return query.new_empty(shape, dtype=dtype), query.new_empty((queries if with_slope else 0, d), dtype=dtype)


def _sides_of_autocast(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast keys in half precision meet queries in theirs, which tensor cores multiply; everything else is
    computed in float32, or in float64 where it is float64."""
    if key.dtype in (torch.float16, torch.bfloat16) and query.dtype in (key.dtype, torch.float32):
        return query.to(key.dtype), key
    if query.dtype == torch.float64 or key.dtype == torch.float64:
        return query, key
    return query.float(), key.float()


def _group_of_autocast(query: Tensor, key: Tensor, queue: Tensor, *rest: Any) -> tuple[Any, ...]:
    query, queue = _sides_of_autocast(query, queue)
    return query, key, queue, *rest


for _operator in ("similarity_logsumexp", "pseudo_group_contrast"):
    register_no_derivative(_operator, f"use dadl_ext.functional.{_operator}")
register_no_derivative(
    "similarity_logsumexp_key_gradient",
    "leave the loss out of what needs a second derivative (create_graph=True), or use dadl_ext.reference",
)
for _operator in ("similarity_logsumexp", "similarity_logsumexp_key_gradient", "pseudo_group_contrast"):
    register_numbers(_operator)
register_autocast("similarity_logsumexp", lambda query, key, *rest: (*_sides_of_autocast(query, key), *rest))
register_autocast("pseudo_group_contrast", _group_of_autocast)
