"""The thin training layer over :mod:`dadl_ext`: companions of the losses, metrics, the training loop, jobs.

Importing this package needs PyTorch and NumPy. The loop (:mod:`dadl.training`) and the demo jobs need the packages of
``pip install 'dadl[train]'``.
"""

from .metrics import ErrorMetrics, shot_metrics, shot_regions
from .momentum_encoder import MomentumEncoder
from .reweighting import (
    LabelDistributionSmoothing,
    bin_labels,
    bin_weights,
    weighted_l1_loss,
    weighted_mse_loss,
)

__all__ = [
    "ErrorMetrics",
    "LabelDistributionSmoothing",
    "MomentumEncoder",
    "bin_labels",
    "bin_weights",
    "shot_metrics",
    "shot_regions",
    "weighted_l1_loss",
    "weighted_mse_loss",
]
