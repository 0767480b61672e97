"""Scores of predictions, and rows of ``predictions.csv``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..output import Cells
from .recipe import Evaluation, Scores


def score_cells(table: Scores) -> Cells:
    """The scores as cells of a table, with one seed."""
    return {row: {column: [value] for column, value in columns.items()} for row, columns in table.items()}


def prediction_rows(part: Evaluation, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``predictions.csv``: each sample's name, and what was predicted for it."""
    return [
        {"name": name} | dict(zip(columns, values, strict=True))
        for name, *values in zip(part.names, *columns.values(), strict=True)
    ]


def unscored(predicted: Tensor) -> Scores:
    """Refuse to score samples without a target."""
    raise ValueError("these samples have no target to evaluate predictions by")


CLASS_COLUMNS = ("error %", "accuracy %", "class accuracy %")


def class_scores(predicted: Tensor, target: Tensor) -> Scores:
    """Error and accuracy in %, over the samples and averaged over the classes present, from logits ``[N, C]``."""
    right = (predicted.argmax(dim=1) == target).double()
    counts = torch.bincount(target)
    by_class = (torch.bincount(target, right) / counts)[counts > 0]
    accuracy = 100 * float(right.mean())
    values = (100 - accuracy, accuracy, 100 * float(by_class.mean()))
    return {"all": dict(zip(CLASS_COLUMNS, values, strict=True))}


def class_truth(target: Tensor) -> dict[str, Any]:
    """The arguments of an :class:`.Evaluation` that say which classes ``[N]`` are the true ones."""
    return {"targets": {"target": target.tolist()}, "region_sizes": {"all": len(target)}}


def class_columns(predicted: Tensor, names: Sequence[str] = ()) -> Mapping[str, Sequence[Any]]:
    """The predicted class of each sample, its name if there are any, and its probability, from logits ``[N, C]``."""
    confidence, label = predicted.softmax(dim=1).max(dim=1)
    labels = label.tolist()
    named = {"class": [names[number] for number in labels]} if names else {}
    return {"label": labels, **named, "confidence": confidence.tolist()}
