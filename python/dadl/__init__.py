"""The thin training layer over :mod:`dadl_ext`: companions of the losses, metrics, the training loop, jobs.

Importing this package needs PyTorch and NumPy. The loop (:mod:`dadl.training`) and the demo jobs need the packages of
``pip install 'dadl[train]'``.
"""

from .cmw_net import CMWNet
from .feature_smoothing import FeatureDistributionSmoothing
from .meta_gradient import meta_weight_gradient
from .meta_reweighter import MetaReweighter
from .metrics import ErrorMetrics, RiskCoverage, risk_coverage, shot_metrics, shot_regions
from .momentum_encoder import MomentumEncoder
from .regression_losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .retraining import FrozenEncoder, retrain_head
from .reweighting import (
    LabelDistributionSmoothing,
    bin_labels,
    bin_weights,
    weighted_l1_loss,
    weighted_mse_loss,
)
from .soft_labels import SoftLabelReweighter
from .weak_labels import candidate_confidence, disambiguate, pseudo_label

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
