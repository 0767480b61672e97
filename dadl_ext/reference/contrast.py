"""Contrast between queries and many keys, in plain PyTorch. All similarities are formed."""

import torch
from torch import Tensor

from .._shared.checks import (
    check_classes,
    check_contrast,
    check_group_contrast,
    check_sample_weight,
    check_supervised_contrast,
    class_labels,
)
from .._shared.dtypes import arithmetic_dtype
from .._shared.reduction import reduce_rows
from ..distributed import gather_batch

__all__ = ["pseudo_group_contrast", "similarity_logsumexp", "supervised_contrast"]


def _logsumexp(logits: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension; -inf with a zero gradient if there is nothing to sum."""
    # An infinite similarity has no softmax: the row is NaN, and so are its gradients.
    infinite = (logits == torch.inf).any(dim=-1, keepdim=True)
    logits = logits + torch.zeros_like(logits).masked_fill(infinite, torch.nan)
    empty = (logits == -torch.inf).all(dim=-1)
    if logits.shape[-1] == 0:
        return logits.sum(dim=-1) - torch.inf
    return torch.where(empty, -torch.inf, logits.masked_fill(empty[..., None], 0).logsumexp(dim=-1))


def similarity_logsumexp(
    query: Tensor, key: Tensor, *, scale: float = 1.0, key_mask: Tensor | None = None, exclude_self: bool = False
) -> Tensor:
    """See :func:`dadl_ext.functional.similarity_logsumexp`."""
    check_contrast(query, key, scale, key_mask, exclude_self)
    dtype = arithmetic_dtype(query)
    left_out = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
    if key_mask is not None:
        key = key.masked_fill(~key_mask[:, None], 0)  # NaN times a weight of 0 would be NaN
        left_out = left_out | ~key_mask
    if exclude_self:
        left_out = left_out | torch.eye(len(query), dtype=torch.bool, device=query.device)
    query = query.masked_fill(left_out.all(dim=1, keepdim=True), 0)
    key = key.masked_fill(left_out.all(dim=0)[:, None], 0)
    logits = scale * (query.to(dtype) @ key.to(dtype).T)
    return _logsumexp(logits.masked_fill(left_out, -torch.inf))


def pseudo_group_contrast(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.07,
    form: str = "cross_entropy",
    ignore_index: int = -1,
    sample_weight: Tensor | None = None,
    slot_count: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`dadl_ext.functional.pseudo_group_contrast`."""
    target = class_labels(target)
    slot_count = None if slot_count is None else class_labels(slot_count)
    check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction)
    if sample_weight is not None:
        check_sample_weight(sample_weight, target)
    classes, slots, _ = queue.shape
    check_classes(target, classes, ignore_index)
    dtype = arithmetic_dtype(query)
    q, k, keys = query.to(dtype), key.detach().to(dtype), queue.detach().to(dtype)
    valid = torch.ones(classes, slots, dtype=torch.bool, device=query.device)
    if slot_count is not None:
        valid = torch.arange(slots, device=query.device) < slot_count[:, None]
    keys = keys.masked_fill(~valid[:, :, None], 0)
    counted = target != ignore_index
    own_class = torch.where(counted, target, 0)

    own = (q * k).sum(dim=-1, keepdim=True) / temperature
    others = torch.einsum("bd,cnd->bcn", q, keys) / temperature
    denominator = _logsumexp(torch.cat([own, others.masked_fill(~valid, -torch.inf).flatten(1)], dim=1))
    rows = torch.arange(len(q), device=q.device)
    positives = own[:, 0] + others[rows, own_class].masked_fill(~valid[own_class], 0).sum(dim=1)
    count = 1 + valid[own_class].sum(dim=1)
    loss = denominator - positives / count.to(dtype)
    if form == "kl":
        loss = loss - count.to(dtype).log()
    return reduce_rows(loss, counted, sample_weight, reduction)


def supervised_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    reduction: str = "mean",
    gather_distributed: bool = False,
    averaged_gradients: bool = False,
) -> Tensor:
    """See :func:`dadl_ext.functional.supervised_contrast`."""
    features, labels = check_supervised_contrast(features, labels, temperature, reduction)
    if gather_distributed:
        features, labels = gather_batch(features, labels, averaged_gradients=averaged_gradients)
    z = features.to(arithmetic_dtype(features))
    logits = z @ z.T / temperature
    positive = (labels[:, None] == labels) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    count = positive.sum(dim=1)
    denominator = similarity_logsumexp(features, features, scale=1 / temperature, exclude_self=True)
    mean_positive = logits.masked_fill(~positive, 0).sum(dim=1) / count.clamp_min(1).to(z.dtype)
    anchors = count > 0
    loss = torch.where(anchors, denominator.masked_fill(~anchors, 0) - mean_positive, 0)
    return reduce_rows(loss, torch.ones_like(anchors), None, reduction)
