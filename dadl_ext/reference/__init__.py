"""The public functions in plain PyTorch: slow, short, and the meaning of every kernel.

Same names, arguments and semantics as :mod:`dadl_ext.functional`; the compiled operators are tested against these.
"""

from .ranking import rank
from .ranksim import ranksim_loss

__all__ = ["rank", "ranksim_loss"]
