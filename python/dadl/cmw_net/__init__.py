"""CMW-Net: sample weights that a small network learns on a meta set, for noisy, imbalanced or missing labels.

Importing this package needs only PyTorch. The training method is in :mod:`dadl.cmw_net.method`, its recipe in
:mod:`dadl.cmw_net.recipe`.
"""

from ..lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
