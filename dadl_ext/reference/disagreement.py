"""Disagreement between members, in plain PyTorch. All pairs are formed."""

import itertools

import torch
from torch import Tensor

from .._shared.checks import check_disagreement
from .._shared.dtypes import arithmetic_dtype
from .._shared.members import as_members

__all__ = ["disagreement"]


def disagreement(predictions: Tensor, measure: str = "l1", *, reduction: str = "mean") -> Tensor:
    """See :func:`dadl_ext.functional.disagreement`."""
    check_disagreement(predictions, measure, reduction)
    members = as_members(predictions, measure)  # [K, B, R, C]
    rows = _rows(members.to(arithmetic_dtype(members)), measure)
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if reduction == "sum" else total / max(len(rows), 1)


def _rows(members: Tensor, measure: str) -> Tensor:
    """The row losses ``[B]``."""
    if measure == "js":
        log_p = members.log_softmax(dim=-1)
        log_mean = log_p.logsumexp(dim=0) - torch.tensor(len(members), dtype=log_p.dtype).log()
        divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=-1)
        return divergence.mean(dim=0).mean(dim=-1)
    if measure == "softmax_l1":
        members = members.softmax(dim=-1)
    pairs = list(itertools.permutations(range(len(members)), 2))
    if not pairs:
        return (members * 0).sum(dim=(0, 2, 3))
    return torch.stack([_distance(members[i], members[j], measure) for i, j in pairs]).mean(dim=0)


def _distance(a: Tensor, b: Tensor, measure: str) -> Tensor:
    """The distance ``[B]`` of two members ``[B, R, C]``."""
    if measure == "symmetric_kl":
        log_a, log_b = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
        return (log_a.exp() * (log_a - log_b)).sum(dim=-1).mean(dim=-1)
    difference = a - b
    if measure == "mse":
        return difference.square().mean(dim=(1, 2))
    if measure == "variance":  # half the mean squared difference of pairs
        return difference.square().mean(dim=(1, 2)) / 2
    return difference.abs().mean(dim=(1, 2))  # l1; softmax_l1 is the l1 of softmaxes
