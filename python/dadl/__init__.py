"""The thin training layer over :mod:`dadl_ext`: what the losses are combined with, metrics, training, commands.

Importing this package needs PyTorch and NumPy. The training loop (:mod:`dadl.training`) and the commands need the
packages of ``pip install 'dadl[train]'``.
"""

from importlib.metadata import version

from . import processes as _processes  # noqa: F401  # first of all
from .lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
__version__ = version("dadl")
