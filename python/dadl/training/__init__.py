"""The training loop that all methods share."""

from .loop import (
    BEST,
    LAST,
    LOG,
    VALIDATION,
    EpochLog,
    Method,
    TensorRows,
    TrainingError,
    as_fetched,
    best_epoch,
    fit,
    of_all_processes,
    predict,
    tensor_loader,
)

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
    "of_all_processes",
    "predict",
    "tensor_loader",
]
