"""The thin training layer over :mod:`dadl_ext`: what the losses are combined with, metrics, training, commands.

Importing this package needs PyTorch and NumPy. The training loop (:mod:`dadl.training`) and the commands need the
packages of ``pip install 'dadl[train]'``.
"""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from . import processes as _processes  # noqa: F401  # first of all
from .cmw_net import (
    CMWNet,
    MetaReweighter,
    SoftLabelReweighter,
    candidate_confidence,
    disambiguate,
    meta_weight_gradient,
    pseudo_label,
)
from .metrics import ErrorMetrics, RiskCoverage, risk_coverage, shot_metrics, shot_regions
from .networks.momentum_encoder import MomentumEncoder
from .ranksim import (
    BalancedMSE,
    FeatureDistributionSmoothing,
    FrozenEncoder,
    GaussianMixture,
    LabelDistributionSmoothing,
    bin_labels,
    bin_weights,
    focal_l1_loss,
    focal_mse_loss,
    retrain_head,
    weighted_huber_loss,
    weighted_l1_loss,
    weighted_mse_loss,
)

if TYPE_CHECKING:
    from .recipes import compare as compare

__all__ = [
    "BalancedMSE",
    "CMWNet",
    "ErrorMetrics",
    "FeatureDistributionSmoothing",
    "FrozenEncoder",
    "GaussianMixture",
    "LabelDistributionSmoothing",
    "MetaReweighter",
    "MomentumEncoder",
    "RiskCoverage",
    "SoftLabelReweighter",
    "bin_labels",
    "bin_weights",
    "candidate_confidence",
    "disambiguate",
    "focal_l1_loss",
    "focal_mse_loss",
    "meta_weight_gradient",
    "pseudo_label",
    "retrain_head",
    "risk_coverage",
    "shot_metrics",
    "shot_regions",
    "weighted_huber_loss",
    "weighted_l1_loss",
    "weighted_mse_loss",
]


def __getattr__(name: str) -> Any:
    """What needs the packages of ``dadl[train]`` is imported when it is asked for, and so not part of ``__all__``."""
    if name == "__version__":
        return importlib.metadata.version("dadl")
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .recipes import compare

    return compare
