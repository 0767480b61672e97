"""Transforms of skewed targets: a network learns the transformed target and predicts in the target's own unit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..settings import Transform

LARGEST_LOG = 87.0  # beyond it exp overflows float32
MOST_KNOTS = 1000


class TargetTransform(nn.Module):
    """A strictly increasing function of targets; results are float64."""

    def forward(self, target: Tensor) -> Tensor:
        raise NotImplementedError

    def inverse(self, transformed: Tensor) -> Tensor:
        """Back to the target's unit."""
        raise NotImplementedError


class LogTransform(TargetTransform):
    """The natural logarithm, of positive targets."""

    def forward(self, target: Tensor) -> Tensor:
        return target.double().log()

    def inverse(self, transformed: Tensor) -> Tensor:
        return transformed.double().clamp(-LARGEST_LOG, LARGEST_LOG).exp()


class QuantileTransform(TargetTransform):
    """The share of training targets below, from 0 to 1: straight lines between knots.

    What is above the largest training target counts as that, and likewise below the smallest.
    """

    values: Tensor
    levels: Tensor

    def __init__(self, values: Tensor, levels: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.double(), persistent=False)
        self.register_buffer("levels", levels.double(), persistent=False)

    @classmethod
    def fitted(cls, target: Tensor) -> "QuantileTransform":
        """With at most 1000 knots, which are training targets. Equal targets share the level in the middle of
        theirs."""
        values, counts = target.double().unique(return_counts=True)
        levels = (counts.cumsum(0) - counts.double() / 2) / len(target)
        knots = torch.linspace(0, len(values) - 1, min(len(values), MOST_KNOTS), dtype=torch.float64).round().long()
        return cls(values[knots], levels[knots])

    def forward(self, target: Tensor) -> Tensor:
        return _interpolated(target.double(), self.values, self.levels)

    def inverse(self, transformed: Tensor) -> Tensor:
        return _interpolated(transformed.double(), self.levels, self.values)


def fitted_transform(kind: Transform, target: Tensor) -> TargetTransform | None:
    """The transform of training targets."""
    if kind == "log":
        return LogTransform()
    return QuantileTransform.fitted(target) if kind == "quantile" else None


def transform_facts(transform: TargetTransform | None) -> dict[str, Any]:
    """What :func:`known_transform` needs, as JSON values."""
    if transform is None:
        return {}
    if isinstance(transform, QuantileTransform):
        return {"transform": "quantile", "quantiles": [transform.values.tolist(), transform.levels.tolist()]}
    return {"transform": "log"}


def known_transform(facts: Mapping[str, Any]) -> TargetTransform | None:
    """The transform that these facts describe."""
    known = facts.get("transform")
    if known is None:
        return None
    if known == "log":
        return LogTransform()
    return QuantileTransform(*torch.tensor(facts["quantiles"], dtype=torch.float64))


def _interpolated(x: Tensor, points: Tensor, values: Tensor) -> Tensor:
    """The straight lines from point to point at x, constant outside."""
    x = x.clamp(points[0], points[-1])
    right = torch.searchsorted(points, x).clamp(1, len(points) - 1)
    left = right - 1
    share = (x - points[left]) / (points[right] - points[left])
    return values[left] + share * (values[right] - values[left])
