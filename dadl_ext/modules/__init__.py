"""The losses as modules."""

import sys

from .chi_model import ChiModelLoss, ChiModelTerms
from .class_queue import ClassQueue
from .contrast import PseudoGroupContrastLoss, SupervisedContrastLoss
from .disagreement import DisagreementLoss, DropoutDisagreementLoss, GradientReversal
from .rank_n_contrast import RankNContrastLoss
from .ranksim import RankSimLoss

__all__ = [
    "ChiModelLoss",
    "ChiModelTerms",
    "ClassQueue",
    "DisagreementLoss",
    "DropoutDisagreementLoss",
    "GradientReversal",
    "PseudoGroupContrastLoss",
    "RankNContrastLoss",
    "RankSimLoss",
    "SupervisedContrastLoss",
]

# Pickles of version 0.1 name these classes by the modules that they were in.
for _module in ("losses", "chi_model", "class_queue"):
    sys.modules[f"dadl_ext.{_module}"] = sys.modules[__name__]
