"""Losses for few, noisy or imbalanced labels, over C++ and CUDA kernels.

Functions are in :mod:`dadl_ext.functional`, their plain-PyTorch meaning in :mod:`dadl_ext.reference`.
"""

from . import functional, reference
from ._library import build_info
from .modules import (
    ChiModelLoss,
    ClassQueue,
    DisagreementLoss,
    DropoutDisagreementLoss,
    GradientReversal,
    PseudoGroupContrastLoss,
    RankSimLoss,
    SupervisedContrastLoss,
)

__all__ = [
    "ChiModelLoss",
    "ClassQueue",
    "DisagreementLoss",
    "DropoutDisagreementLoss",
    "GradientReversal",
    "PseudoGroupContrastLoss",
    "RankSimLoss",
    "SupervisedContrastLoss",
    "build_info",
    "functional",
    "reference",
]
