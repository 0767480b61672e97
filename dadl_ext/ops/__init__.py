"""The compiled operators: typed wrappers with their fake kernels and their autograd, autocast and vmap rules."""

from .. import _library as _library  # loads the operators, for which the modules here register rules
