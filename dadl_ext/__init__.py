"""Losses for few, noisy or imbalanced labels, over C++ and CUDA kernels.

Functions are in :mod:`dadl_ext.functional`, their plain-PyTorch meaning in :mod:`dadl_ext.reference`.
"""

from . import functional, reference
from ._library import build_info
from .class_queue import ClassQueue
from .losses import PseudoGroupContrastLoss, RankSimLoss, SupervisedContrastLoss

__all__ = [
    "ClassQueue",
    "PseudoGroupContrastLoss",
    "RankSimLoss",
    "SupervisedContrastLoss",
    "build_info",
    "functional",
    "reference",
]
