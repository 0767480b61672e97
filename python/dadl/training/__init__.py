"""The training loop that all methods share."""

from ..data.rows import TensorRows, as_fetched, tensor_loader
from .loop import BEST, LAST, LOG, VALIDATION, EpochLog, TrainingError, best_epoch, fit, predict
from .method import Method

__all__ = [
    "BEST",
    "LAST",
    "LOG",
    "VALIDATION",
    "EpochLog",
    "Method",
    "TensorRows",
    "TrainingError",
    "as_fetched",
    "best_epoch",
    "fit",
    "predict",
    "tensor_loader",
]
