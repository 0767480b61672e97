from .meta_gradient import meta_weight_gradient as meta_weight_gradient
from .reweighter import MetaReweighter as MetaReweighter
from .reweighter import Reweighted as Reweighted
from .soft_labels import SoftLabelReweighter as SoftLabelReweighter
from .weak_labels import candidate_confidence as candidate_confidence
from .weak_labels import disambiguate as disambiguate
from .weak_labels import pseudo_label as pseudo_label
from .weight_net import CMWNet as CMWNet
