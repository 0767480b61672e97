"""The random subset and the similarities of vector labels, shared by the compiled functions and the reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import LabelSimilarity, check_similarity_matrix


def draw_priority(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform float64 per row: among rows of equal label the lowest is chosen, which is a uniform choice.

    Drawn whether or not labels repeat, so that a generator advances by the batch size whatever the labels are.
    """
    n = labels.shape[0]
    if generator is None:
        return torch.rand(n, dtype=torch.float64, device=labels.device)
    return torch.rand(n, dtype=torch.float64, device=generator.device, generator=generator).to(labels.device)


def label_similarity_matrix(labels: Tensor, label_similarity: LabelSimilarity, padded: bool = False) -> Tensor:
    """``[m, m]`` similarities of the subset's labels ``[m]`` or ``[m, k]``, in the labels' own dtype.

    ``padded`` tells that the labels go on beyond the subset, so that a ready matrix may be smaller.
    """
    if isinstance(label_similarity, Tensor):
        matrix = label_similarity
    elif callable(label_similarity):
        matrix = label_similarity(labels)
        check_similarity_matrix(matrix, labels.device)
    else:
        vectors = labels if labels.dim() == 2 else labels[:, None]
        if label_similarity == "cosine":
            unit = F.normalize(vectors if vectors.is_floating_point() else vectors.double(), dim=1)
            matrix = unit @ unit.T
        else:
            difference = vectors[:, None, :] - vectors[None, :, :]
            if label_similarity == "negative_l2" and labels.dim() == 2:
                # The square orders as the distance does, and keeps integers exact. Scalars need none: L2 is L1.
                matrix = -difference.square().sum(dim=2)
            else:
                matrix = -difference.abs().sum(dim=2)
    if len(matrix) != len(labels) and not (padded and isinstance(label_similarity, Tensor)):
        raise ValueError(
            f"the label-similarity matrix must be [m, m] for the m = {len(labels)} distinct labels of the batch, "
            f"got {tuple(matrix.shape)}"
        )
    return matrix.detach()
