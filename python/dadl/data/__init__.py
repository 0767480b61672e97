"""Labels made imbalanced, noisy or ambiguous on purpose, and meta sets; in the modules, the data formats.

A format is one module, which reads a file or folder and names everything that is wrong with it.
"""

from ..lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
