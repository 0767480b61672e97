"""Methods for imbalanced targets to combine with RankSim: losses, reweighting, smoothing, retraining.

The regulariser itself is :class:`dadl_ext.RankSimLoss`. Importing this package needs only PyTorch. The training method
is in :mod:`dadl.ranksim.method`, its recipe in :mod:`dadl.ranksim.recipe`.
"""

from ..lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
