"""Weights of classes in the cross-entropy, a baseline for imbalanced labels."""

from torch import Tensor


def class_weights(kind: str, counts: Tensor) -> Tensor | None:
    """Weights ``[C]`` of classes with ``counts`` ``[C]`` samples, N in all.

    ``"inverse"``: N/n; ``"sqrt-inverse"``: √(N/n); ``"effective"``: 1/(1 − βⁿ) with β = 1 − 1/N, after Cui et al.,
    "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019; ``"none"``: ``None``. A class without samples
    has weight 0.
    """
    if kind == "none":
        return None
    n = counts.double()
    total = n.sum()
    share = n / total
    effective = -((n * (-1 / total).log1p()).expm1())
    weights = {"inverse": 1 / share, "sqrt-inverse": share.rsqrt(), "effective": 1 / effective}[kind]
    return weights.where(n > 0, 0.0).float()
