"""What the operators and the meta step cost on this machine, beside PyTorch and other libraries: ``dadl bench``."""
