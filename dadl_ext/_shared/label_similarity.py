"""RankSim's random subset, and the similarities of labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import LabelSimilarity, check_similarity_matrix
from .operation import drawn


def draw_priority(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform float64 for each row. Of the rows with equal labels the lowest is chosen, which is a uniform choice.

    Drawn even if no labels repeat, so that the generator always advances by the batch size.
    """
    n = labels.shape[0]
    if generator is None:
        return drawn("ranksim_loss", lambda: torch.rand(n, dtype=torch.float64, device=labels.device))
    return torch.rand(n, dtype=torch.float64, device=generator.device, generator=generator).to(labels.device)


def label_similarity_matrix(labels: Tensor, label_similarity: LabelSimilarity, padded: bool = False) -> Tensor:
    """``[m, m]`` similarities of the subset's labels ``[m]`` or ``[m, k]``, in the labels' own dtype.

    ``padded`` means that the labels continue beyond the subset, so that a given matrix may have fewer rows.
    """
    with torch.autocast(labels.device.type, enabled=False):  # ties decide ranks
        matrix = _matrix(labels, label_similarity)
    if matrix.shape[0] != labels.shape[0] and not (padded and isinstance(label_similarity, Tensor)):
        raise ValueError(
            f"the label-similarity matrix must be [m, m] for the m = {labels.shape[0]} distinct labels of the batch, "
            f"got {tuple(matrix.shape)}"
        )
    return matrix.detach()


def _matrix(labels: Tensor, label_similarity: LabelSimilarity) -> Tensor:
    if isinstance(label_similarity, Tensor):
        return label_similarity
    if callable(label_similarity):
        matrix = label_similarity(labels)
        check_similarity_matrix(matrix, labels.device)
        return matrix
    vectors = labels if labels.dim() == 2 else labels[:, None]
    if label_similarity == "cosine":
        unit = F.normalize(vectors if vectors.is_floating_point() else vectors.double(), dim=1)
        return unit @ unit.T
    difference = vectors[:, None, :] - vectors[None, :, :]
    if label_similarity == "negative_l2" and labels.dim() == 2:
        # The square has the same order as the distance, and keeps integers exact. For scalars, L2 is L1.
        return -difference.square().sum(dim=2)
    return -difference.abs().sum(dim=2)
