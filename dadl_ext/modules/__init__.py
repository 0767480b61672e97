"""The losses as modules."""

from .chi_model import ChiModelLoss, ChiModelTerms
from .class_queue import ClassQueue
from .contrast import PseudoGroupContrastLoss, SupervisedContrastLoss
from .disagreement import DisagreementLoss, DropoutDisagreementLoss, GradientReversal
from .ranksim import RankSimLoss

__all__ = [
    "ChiModelLoss",
    "ChiModelTerms",
    "ClassQueue",
    "DisagreementLoss",
    "DropoutDisagreementLoss",
    "GradientReversal",
    "PseudoGroupContrastLoss",
    "RankSimLoss",
    "SupervisedContrastLoss",
]
