"""The features of a sample from the embeddings of its texts."""

import torch
from torch import Tensor


def combine(embeddings: Tensor) -> Tensor:
    """Embeddings ``[B, T, d]`` of each sample's texts to features ``[B, F]``, F = :func:`combined_width` of T and d.

    A pair u, v becomes [u; v; |u − v|; u ∘ v]; the embeddings of any other number of texts are concatenated.
    """
    if embeddings.shape[1] != 2:
        return embeddings.flatten(1)
    u, v = embeddings.unbind(dim=1)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def combined_width(texts: int, width: int) -> int:
    """The number of features of a sample with that many texts, whose embeddings have that width."""
    return width * (4 if texts == 2 else texts)
