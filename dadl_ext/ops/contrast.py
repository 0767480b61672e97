"""The contrast operators: their fake kernels, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._shared.checks import FORMS, REDUCTIONS, check_contrast, check_group_contrast
from .._shared.dtypes import arithmetic_dtype
from ._gradient import scale_gradient
from ._rules import below_autograd, register_autocast, register_no_derivative


def similarity_logsumexp(
    query: Tensor, key: Tensor, key_mask: Tensor | None, scale: float, exclude_self: bool
) -> Tensor:
    """``log Σ_j exp(scale · q_i k_j)``, ``[B]``. The gradient of the query is formed in the same pass."""
    arguments = (query, key, key_mask, scale, exclude_self)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _SimilarityLogsumexp.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    lse, _ = torch.ops.dadl.similarity_logsumexp.default(*arguments, False)
    return lse  # type: ignore[no-any-return]


class _SimilarityLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, key_mask: Tensor | None, scale: float, exclude_self: bool
    ) -> Tensor:
        with_slope = ctx.needs_input_grad[0]
        with below_autograd():
            lse, slope = torch.ops.dadl.similarity_logsumexp.default(
                query, key, key_mask, scale, exclude_self, with_slope
            )
        ctx.save_for_backward(query, key, key_mask, lse.detach(), slope)
        ctx.scale, ctx.exclude_self = scale, exclude_self
        return lse  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, key_mask, lse, slope = ctx.saved_tensors
        query_gradient = key_gradient = None
        with below_autograd():
            if ctx.needs_input_grad[0]:
                query_gradient = scale_gradient(grad, slope, query)
            if ctx.needs_input_grad[1]:
                key_gradient = torch.ops.dadl.similarity_logsumexp_key_gradient.default(
                    grad, query, key, key_mask, lse, ctx.scale, ctx.exclude_self
                )
        return query_gradient, key_gradient, None, None, None


def supervised_contrast(features: Tensor, target: Tensor, classes: int, temperature: float) -> Tensor:
    """The row losses ``[n]`` of features with targets 0, ..., classes - 1."""
    with_slope = features.requires_grad and torch.is_grad_enabled()
    return _SupervisedContrast.apply(features, target, classes, temperature, with_slope)  # type: ignore[no-any-return, no-untyped-call]


class _SupervisedContrast(torch.autograd.Function):
    """Forms the whole gradient by hand: for small batches, autograd's bookkeeping would take longer than the loss."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, target: Tensor, classes: int, temperature: float, with_slope: bool
    ) -> Tensor:
        with below_autograd():
            lse, slope = torch.ops.dadl.similarity_logsumexp.default(
                features, features, None, 1 / temperature, True, with_slope
            )
            z = features.to(lse.dtype)
            sums = z.new_zeros(classes, z.shape[1]).index_add(0, target, z)
            positives = sums.index_select(0, target) - z
            count = target.new_zeros(classes).index_add(0, target, torch.ones_like(target)).index_select(0, target) - 1
            alone = count == 0
            share = 1 / (temperature * count.clamp_min(1).to(z.dtype))
            loss = (lse - (z * positives).sum(dim=1) * share).masked_fill(alone, 0)
        ctx.save_for_backward(features, target, lse, slope, positives, share, alone)
        ctx.classes, ctx.temperature = classes, temperature
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, target, lse, slope, positives, share, alone = ctx.saved_tensors
        with below_autograd():
            grad = grad.masked_fill(alone, 0)
            as_query = scale_gradient(grad, slope, features)
            as_key = torch.ops.dadl.similarity_logsumexp_key_gradient.default(
                grad, features, features, None, lse, 1 / ctx.temperature, True
            )
            pull = (grad * share)[:, None]
            pulling = pull * features
            sums = pulling.new_zeros(ctx.classes, pulling.shape[1]).index_add(0, target, pulling)
            pulled = pull * positives + (sums.index_select(0, target) - pulling)
            gradient = (as_query + as_key - pulled).to(features.dtype)
        return gradient, None, None, None, None


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
    numbers = temperature, FORMS.index(form), ignore_index, REDUCTIONS.index(reduction)
    arguments = (key, queue, target, slot_count, *numbers)
    if query.requires_grad and torch.is_grad_enabled():
        return _PseudoGroupContrast.apply(query, arguments)  # type: ignore[no-any-return, no-untyped-call]
    loss, _ = torch.ops.dadl.pseudo_group_contrast.default(query, *arguments, False)
    return loss  # type: ignore[no-any-return]


class _PseudoGroupContrast(torch.autograd.Function):
    """The arguments without a gradient are one tuple, because autograd spends time on each argument."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        with below_autograd():
            loss, slope = torch.ops.dadl.pseudo_group_contrast.default(query, *arguments, True)
        ctx.save_for_backward(slope, query)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return scale_gradient(grad, *ctx.saved_tensors), None


@torch.library.register_fake("dadl::similarity_logsumexp")
def _(
    query: Tensor, key: Tensor, key_mask: Tensor | None, scale: float, exclude_self: bool, with_slope: bool
) -> tuple[Tensor, Tensor]:
    check_contrast(query, key, scale, key_mask, exclude_self)
    dtype, (queries, d) = arithmetic_dtype(query), query.shape
    return query.new_empty(queries, dtype=dtype), query.new_empty((queries if with_slope else 0, d), dtype=dtype)


@torch.library.register_fake("dadl::similarity_logsumexp_key_gradient")
def _(grad: Tensor, query: Tensor, key: Tensor, *arguments: Any) -> Tensor:
    return key.new_empty(key.shape)


@torch.library.register_fake("dadl::pseudo_group_contrast")
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
    register_no_derivative(f"dadl::{_operator}", f"use dadl_ext.functional.{_operator}")
register_autocast("dadl::similarity_logsumexp", lambda query, key, *rest: (*_sides_of_autocast(query, key), *rest))
register_autocast("dadl::pseudo_group_contrast", _group_of_autocast)
register_no_derivative(
    "dadl::similarity_logsumexp_key_gradient",
    "leave the loss out of what needs a second derivative (create_graph=True), or use dadl_ext.reference",
)
