"""Differentiable functions over the compiled operators."""

from .._shared.reversal import reverse_gradient
from .contrast import pseudo_group_contrast, similarity_logsumexp, supervised_contrast
from .disagreement import disagreement
from .dropout import dropout_disagreement, dropout_linear
from .rank_n_contrast import rank_n_contrast
from .ranking import rank
from .ranksim import ranksim_loss

__all__ = [
    "disagreement",
    "dropout_disagreement",
    "dropout_linear",
    "pseudo_group_contrast",
    "rank",
    "rank_n_contrast",
    "ranksim_loss",
    "reverse_gradient",
    "similarity_logsumexp",
    "supervised_contrast",
]
