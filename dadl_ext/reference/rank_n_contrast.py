"""Rank-N-Contrast in plain PyTorch, written to be read as its specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.checks import check_rank_n_contrast
from .._shared.dtypes import arithmetic_dtype
from ..distributed import gather_batch


def rank_n_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    similarity: str = "negative_l2",
    label_distance: str = "l1",
    reduction: str = "mean",
    gather_distributed: bool = False,
    averaged_gradients: bool = False,
) -> Tensor:
    """See :func:`dadl_ext.functional.rank_n_contrast`."""
    features, labels = check_rank_n_contrast(features, labels, temperature, similarity, label_distance, reduction)
    if gather_distributed:
        features, labels = gather_batch(features, labels, averaged_gradients=averaged_gradients)

    n, x = len(features), features.double()
    distances = label_distances(labels, label_distance)
    if similarity == "cosine":
        unit = F.normalize(x, dim=1, eps=1e-12)
        similarities = unit @ unit.T / temperature
    else:
        similarities = -torch.linalg.vector_norm(x[:, None] - x[None], dim=2) / temperature
    # What is not finite must show, also in a batch of one.
    broken = distances.isnan().any() | ~x.detach().square().sum().isfinite()
    poison = x.new_zeros(()).masked_fill(broken, torch.nan)

    rows = []
    for i in range(n):
        others = torch.arange(n, device=x.device) != i
        s, distance = similarities[i, others], distances[i, others]
        at_least_as_far = distance[None, :] >= distance[:, None]  # [j, k]
        denominators = s.expand(n - 1, n - 1).masked_fill(~at_least_as_far, -torch.inf).logsumexp(dim=1)
        rows.append((denominators - s).sum() / max(n - 1, 1))
    losses = torch.stack(rows) + poison if rows else x.sum(dim=1)
    if reduction != "none":
        losses = losses.sum() / (max(n, 1) if reduction == "mean" else 1)
    return losses.to(arithmetic_dtype(features))


def label_distances(labels: Tensor, label_distance: str) -> Tensor:
    """``[n, n]``, of which only the order counts: scalars in their own dtype, vectors in float64, L2 squared.

    NaN where a label is not finite.
    """
    if labels.dim() == 1:
        difference = labels[:, None] - labels[None]
        if labels.is_floating_point():
            return difference.abs()
        # A distance of int64 labels may need 64 bits without a sign; with the highest flipped, their order is signed.
        unsigned = torch.where(labels[:, None] >= labels[None], difference, -difference)
        return unsigned ^ torch.iinfo(torch.int64).min
    vectors = labels.double()
    total = vectors.new_zeros(len(labels), len(labels))
    for column in vectors.T:  # in this order, because rounding decides ties
        difference = column[:, None] - column[None]
        total = total + (difference.square() if label_distance == "l2" else difference.abs())
    return total
