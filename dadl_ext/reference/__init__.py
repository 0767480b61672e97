"""The public functions in plain PyTorch: slow, short, and the meaning of every kernel.

Same names, arguments and semantics as :mod:`dadl_ext.functional`; the compiled operators are tested against these.
"""

from .contrast import pseudo_group_contrast, similarity_logsumexp, supervised_contrast
from .disagreement import disagreement
from .dropout import dropout_disagreement, dropout_linear
from .ranking import rank
from .ranksim import ranksim_loss

__all__ = [
    "disagreement",
    "dropout_disagreement",
    "dropout_linear",
    "pseudo_group_contrast",
    "rank",
    "ranksim_loss",
    "similarity_logsumexp",
    "supervised_contrast",
]
