"""Labels made imbalanced, noisy or ambiguous on purpose, and meta sets; in the modules, the data formats.

A format is one module, which reads a file or folder and names everything that is wrong with it.
"""

from .labels import (
    CIFAR10_FLIPS,
    Labels,
    PmdType,
    balanced_subset,
    flip_noise,
    hybrid_noise,
    long_tail,
    long_tail_counts,
    lowest_loss_subset,
    partial_labels,
    pmd_noise,
    symmetric_noise,
)

__all__ = [
    "CIFAR10_FLIPS",
    "Labels",
    "PmdType",
    "balanced_subset",
    "flip_noise",
    "hybrid_noise",
    "long_tail",
    "long_tail_counts",
    "lowest_loss_subset",
    "partial_labels",
    "pmd_noise",
    "symmetric_noise",
]
