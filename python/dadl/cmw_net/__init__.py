"""CMW-Net: sample weights that a small network learns on a meta set, for noisy, imbalanced or missing labels.

Importing this package needs only PyTorch. The training method is in :mod:`dadl.cmw_net.method`, its recipe in
:mod:`dadl.cmw_net.recipe`.
"""

from .meta_gradient import meta_weight_gradient
from .reweighter import MetaReweighter, Reweighted
from .soft_labels import SoftLabelReweighter
from .weak_labels import candidate_confidence, disambiguate, pseudo_label
from .weight_net import CMWNet

__all__ = [
    "CMWNet",
    "MetaReweighter",
    "Reweighted",
    "SoftLabelReweighter",
    "candidate_confidence",
    "disambiguate",
    "meta_weight_gradient",
    "pseudo_label",
]
