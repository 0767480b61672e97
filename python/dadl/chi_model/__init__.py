"""The χ-Model and its baselines: few labels for any target, be it numbers, positions or classes."""

from .method import (
    CLASSIFICATION,
    KEY_POINTS,
    MCD,
    REGRESSION,
    ChiModel,
    FewLabels,
    LabelsOnly,
    MeanTeacher,
    Objective,
    PiModel,
    RDrop,
    UnevenRows,
    mlp_head,
    uneven_loader,
)

__all__ = [
    "CLASSIFICATION",
    "KEY_POINTS",
    "MCD",
    "REGRESSION",
    "ChiModel",
    "FewLabels",
    "LabelsOnly",
    "MeanTeacher",
    "Objective",
    "PiModel",
    "RDrop",
    "UnevenRows",
    "mlp_head",
    "uneven_loader",
]
