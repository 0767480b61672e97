"""The compiled operators: typed wrappers with their fake kernels, autograd, autocast and vmap rules, per family."""
