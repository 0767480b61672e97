"""``dadl bench``: the speed of the operators and the meta step, compared with PyTorch and other libraries."""
