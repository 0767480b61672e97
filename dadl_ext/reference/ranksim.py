"""RankSim in plain PyTorch, readable as its specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import LabelSimilarity, check_ranksim
from .._distributed import gather_batch
from .._labels import draw_priority, label_similarity_matrix
from .ranking import integer_ranks


def ranksim_loss(
    features: Tensor,
    labels: Tensor,
    *,
    interp_strength: float = 2.0,
    weight: float = 1.0,
    reduction: str = "sum",
    label_similarity: LabelSimilarity = None,
    generator: torch.Generator | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """See :func:`dadl_ext.functional.ranksim_loss`."""
    features, labels = check_ranksim(features, labels, interp_strength, weight, reduction, label_similarity)
    priority = draw_priority(labels, generator)
    if gather_distributed:
        features, labels, priority = gather_batch(features, labels, priority)

    chosen = select_subset(labels, priority)
    m = len(chosen)
    x = features[chosen]
    x = x if x.dtype == torch.float64 else x.float()
    y = labels[chosen]

    similarity = tie_preserving_cosine(x.detach())
    # NaN anywhere in the batch must show, also in rows that the subset left out.
    similarity = similarity + (0.0 * features.detach().to(x.dtype).square().sum(dim=1)).sum()
    if label_similarity is None and y.dim() == 1:
        matrix = -(y[:, None] - y[None, :]).abs()
    else:
        matrix = label_similarity_matrix(y, label_similarity)
    similarity = similarity.masked_fill(matrix.isnan().any(), torch.nan)
    label_ranks = integer_ranks(matrix)
    feature_ranks = integer_ranks(similarity)

    difference = (feature_ranks - label_ranks).to(x.dtype) / m
    rows = weight * difference.square().mean(dim=1) if m else x.sum(dim=1)
    rows = rows + 0.0 * similarity.sum(dim=1)  # NaN stays visible

    # The blackbox gradient with respect to the similarities, as a function of `weight` alone.
    g = weight * (2 / max(m, 1)) * difference
    perturbed_ranks = integer_ranks(similarity + interp_strength * g)
    gradient = -(feature_ranks - perturbed_ranks).to(x.dtype) / max(m, 1) / (interp_strength + 1e-8)
    gradient = gradient + 0.0 * similarity

    unit = F.normalize(x, dim=1, eps=1e-12)
    surrogate = (gradient * (unit @ unit.T)).sum(dim=1)
    rows = rows.detach() + (surrogate - surrogate.detach())  # the value of rows, the gradient of the surrogate

    if reduction == "none":
        return rows
    total = rows.sum()
    return total / max(m, 1) if reduction == "mean" else total


def select_subset(labels: Tensor, priority: Tensor) -> Tensor:
    """The row of lowest priority for each distinct label, in ascending label order (lexicographic for vectors).

    When all labels are distinct, every row in batch order.
    """
    if len(labels) == 0:
        return torch.arange(0, device=labels.device)
    distinct, group = torch.unique(labels, dim=0, return_inverse=True)
    if len(distinct) == len(labels):
        return torch.arange(len(labels), device=labels.device)
    by_priority = torch.argsort(priority, stable=True)
    by_group = by_priority[torch.argsort(group[by_priority], stable=True)]
    first = torch.searchsorted(group[by_group], torch.arange(len(distinct), device=labels.device))
    return by_group[first]


def tie_preserving_cosine(x: Tensor) -> Tensor:
    """Cosine similarities from the Gram matrix: sign(d) sqrt(d² / (q_i q_j)), d = ⟨x_i, x_j⟩, q = max(‖x‖, 1e-12)².

    Equal to the product of the normalised rows up to rounding, but columns with equal cosines stay equal where the
    inner products are exact (small-integer features). Each row is first scaled by a power of two, which is exact.
    """
    squared = x.square().sum(dim=1).clamp(min=1e-24)
    mantissa, exponent = torch.frexp(squared)
    scale = torch.ldexp(torch.ones_like(squared), -torch.div(exponent, 2, rounding_mode="trunc"))
    inner = (x @ x.T) * scale[:, None] * scale[None, :]
    scaled = squared * scale * scale
    return torch.copysign((inner * inner / (scaled[:, None] * scaled[None, :])).sqrt(), inner)
