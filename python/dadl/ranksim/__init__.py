"""Methods for imbalanced targets to combine with RankSim: losses, reweighting, smoothing, retraining.

The regulariser itself is :class:`dadl_ext.RankSimLoss`. Importing this package needs only PyTorch. The training method
is in :mod:`dadl.ranksim.method`, its recipe in :mod:`dadl.ranksim.recipe`.
"""

from .feature_smoothing import FeatureDistributionSmoothing
from .losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .retraining import FrozenEncoder, retrain_head
from .reweighting import LabelDistributionSmoothing, bin_labels, bin_weights, weighted_l1_loss, weighted_mse_loss

__all__ = [
    "BalancedMSE",
    "FeatureDistributionSmoothing",
    "FrozenEncoder",
    "GaussianMixture",
    "LabelDistributionSmoothing",
    "bin_labels",
    "bin_weights",
    "focal_l1_loss",
    "focal_mse_loss",
    "retrain_head",
    "weighted_huber_loss",
    "weighted_l1_loss",
    "weighted_mse_loss",
]
