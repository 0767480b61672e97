"""Losses for few, noisy or imbalanced labels, on C++ and CUDA kernels.

The functions are in :mod:`dadl_ext.functional`. :mod:`dadl_ext.reference` has the same functions in plain PyTorch.
"""

from . import _operators, functional, reference
from ._library import build_info
from .modules import (
    ChiModelLoss,
    ClassQueue,
    DisagreementLoss,
    DropoutDisagreementLoss,
    GradientReversal,
    PseudoGroupContrastLoss,
    RankNContrastLoss,
    RankSimLoss,
    SupervisedContrastLoss,
)

__version__ = _operators.VERSION

__all__ = [
    "ChiModelLoss",
    "ClassQueue",
    "DisagreementLoss",
    "DropoutDisagreementLoss",
    "GradientReversal",
    "PseudoGroupContrastLoss",
    "RankNContrastLoss",
    "RankSimLoss",
    "SupervisedContrastLoss",
    "build_info",
    "functional",
    "reference",
]
