"""RankSim in plain PyTorch, written to be read as its specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._shared.checks import LabelSimilarity, check_ranksim
from .._shared.dtypes import arithmetic_dtype
from .._shared.label_similarity import draw_priority, label_similarity_matrix
from ..distributed import gather_batch
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
    averaged_gradients: bool = False,
) -> Tensor:
    """See :func:`dadl_ext.functional.ranksim_loss`."""
    features, labels = check_ranksim(features, labels, interp_strength, weight, reduction, label_similarity)
    priority = draw_priority(labels, generator)
    if gather_distributed:
        features, labels, priority = gather_batch(features, labels, priority, averaged_gradients=averaged_gradients)

    chosen = select_subset(labels, priority)
    m = len(chosen)
    # Always in float64: with a small weight the perturbation is below the resolution of float32.
    x = features[chosen].double()
    label_matrix = label_similarity_matrix(labels[chosen], label_similarity)

    similarity = cosine_similarities(x.detach())
    # NaN anywhere in the batch must show, even in rows outside the subset.
    similarity = similarity + (0.0 * features.detach().double().square().sum(dim=1)).sum()
    similarity = similarity.masked_fill(label_matrix.isnan().any(), torch.nan)

    feature_ranks = integer_ranks(similarity)
    difference = (feature_ranks - integer_ranks(label_matrix)).double()
    rows = weight * (difference / max(m, 1)).square().sum(dim=1) / max(m, 1) + 0.0 * similarity.sum(dim=1)

    # The blackbox gradient with respect to the similarities. It does not depend on the upstream gradient.
    g = weight * 2 / max(m, 1) ** 2 * difference
    perturbed_ranks = integer_ranks(similarity + interp_strength * g)
    gradient = -(feature_ranks - perturbed_ranks).double() / (max(m, 1) * (interp_strength + 1e-8)) + 0.0 * similarity

    unit = F.normalize(x, dim=1, eps=1e-12)
    surrogate = (gradient * (unit @ unit.T)).sum(dim=1)
    rows = rows + (surrogate - surrogate.detach())  # keeps the value, adds the surrogate's gradient

    if reduction != "none":
        rows = rows.sum() / (max(m, 1) if reduction == "mean" else 1)
    return rows.to(arithmetic_dtype(features))


def select_subset(labels: Tensor, priority: Tensor) -> Tensor:
    """The row of lowest priority for each distinct label, in ascending label order (lexicographic for vectors).

    If all labels are distinct, every row in batch order.
    """
    if len(labels) == 0:
        return torch.arange(0, device=labels.device)
    # All NaN are equal, and the largest.
    nan = labels.isnan()
    keys = torch.stack([nan.to(labels.dtype), labels.masked_fill(nan, 0)], dim=-1).flatten(1)
    distinct, group = torch.unique(keys, dim=0, return_inverse=True)
    if len(distinct) == len(labels):
        return torch.arange(len(labels), device=labels.device)
    by_priority = torch.argsort(priority, stable=True)
    by_group = by_priority[torch.argsort(group[by_priority], stable=True)]
    first = torch.searchsorted(group[by_group], torch.arange(len(distinct), device=labels.device))
    return by_group[first]


def cosine_similarities(x: Tensor) -> Tensor:
    """``sign(d) sqrt(d² / (q_i q_j))`` with ``d = ⟨x_i, x_j⟩`` and ``q = max(‖x‖, 1e-12)²``.

    Up to rounding this is the product of the normalised rows, but equal cosines of integer rows stay equal. Those of
    single numbers are products of signs.
    """
    if x.shape[1] == 1:
        unit = F.normalize(x, dim=1)
        return unit @ unit.T
    inner = x @ x.T
    squared = x.square().sum(dim=1).clamp(min=1e-24)
    return torch.copysign((inner * inner / (squared[:, None] * squared[None, :])).sqrt(), inner)
