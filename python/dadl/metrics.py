"""Errors over all labels, over labels with many, medium and few training samples, and under rejection.

Source: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Region = Literal["all", "many", "medium", "few"]
REGIONS: tuple[Region, ...] = ("all", "many", "medium", "few")
MANY, FEW = 100, 20
"""The limits of the regions in Yang et al."""
Array = Tensor | npt.NDArray[np.generic] | list[float] | list[int]


@dataclass(frozen=True)
class ErrorMetrics:
    """Errors of one region; NaN where it has no samples.

    ``mae`` mean absolute error, ``mse`` mean squared error, ``gm`` geometric mean of the absolute errors (1e-10 added
    to each, so that one exact prediction does not make it zero), ``bmae`` mean over label bins of each bin's MAE,
    ``pearson`` and ``spearman`` correlation of predictions and targets, and of their ranks (equal values share their
    mean rank). A correlation is also NaN where all predictions or all targets are equal.
    """

    samples: int = 0
    mae: float = math.nan
    mse: float = math.nan
    gm: float = math.nan
    bmae: float = math.nan
    pearson: float = math.nan
    spearman: float = math.nan


def shot_regions(counts: Array, *, many: int = MANY, few: int = FEW) -> dict[Region, Tensor]:
    """Which label bins belong to each region, as boolean masks ``[num_bins]`` of the training counts ``[num_bins]``.

    ``many``: more than 100 training samples; ``few``: fewer than 20, including empty bins; ``medium``: between.
    """
    if few > many:
        raise ValueError(f"expected few <= many, got few={few} and many={many}: the regions would overlap")
    n = torch.as_tensor(counts).cpu()
    if n.dim() != 1:
        raise ValueError(f"counts must be a vector [num_bins], got shape {list(n.shape)}")
    return {
        "all": torch.ones_like(n, dtype=torch.bool),
        "many": n > many,
        "medium": (n >= few) & (n <= many),
        "few": n < few,
    }


def fitting_limits(counts: Array) -> list[int]:
    """Limits ``many`` and ``few`` for these training counts ``[num_bins]``: 100 and 20 where every region has a bin.

    Where one has not, they are such that each has about a third of the bins with training samples. Equal counts stay in
    one region.
    """
    n = torch.as_tensor(counts).cpu()
    n = n[n > 0].sort().values
    regions = shot_regions(n, many=MANY, few=FEW)
    if len(n) == 0 or all(bool(mask.any()) for mask in regions.values()):
        return [MANY, FEW]
    few = int(n[(len(n) - 1) // 3]) + 1
    return [max(int(n[len(n) - 1 - (len(n) - 1) // 3]) - 1, few), few]


def shot_metrics(
    prediction: Array, target: Array, bins: Array, counts: Array, *, many: int = MANY, few: int = FEW
) -> dict[Region, ErrorMetrics]:
    """Errors and correlations of a regression, overall and by the number of training samples in the label's bin.

    Args:
        prediction: ``[N]``.
        target: ``[N]``.
        bins: the bin of each target, ``[N]``, integers in ``[0, num_bins)`` (see :func:`dadl.bin_labels`).
        counts: *training* samples per bin, ``[num_bins]``.
        many: a bin with more training samples is many-shot.
        few: a bin with fewer training samples is few-shot.

    Raises:
        ValueError: shapes that differ or are not vectors, bins that are not integers in ``[0, num_bins)``.
    """
    x, y = (torch.as_tensor(v).detach().cpu().double() for v in (prediction, target))
    index = torch.as_tensor(bins).cpu()
    if x.dim() != 1 or x.shape != y.shape or x.shape != index.shape:
        raise ValueError(
            "prediction, target and bins must be vectors of one length, "
            f"got shapes {list(x.shape)}, {list(y.shape)} and {list(index.shape)}"
        )
    regions = shot_regions(counts, many=many, few=few)
    num_bins = len(regions["all"])
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"bins must be integers, got {index.dtype}; dadl.bin_labels makes them from labels")
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_bins):
        raise ValueError(
            f"bins must be in [0, {num_bins}), the length of counts, "
            f"got values from {int(index.min())} to {int(index.max())}"
        )
    index = index.long()
    rows = {region: mask[index] for region, mask in regions.items()}
    return {region: _error_metrics(x[chosen], y[chosen], index[chosen]) for region, chosen in rows.items()}


def _error_metrics(x: Tensor, y: Tensor, bins: Tensor) -> ErrorMetrics:
    if len(x) == 0:
        return ErrorMetrics()
    error = (x - y).abs()
    _, group = torch.unique(bins, return_inverse=True)
    per_bin = torch.bincount(group, weights=error) / torch.bincount(group)
    return ErrorMetrics(
        samples=len(error),
        mae=error.mean().item(),
        mse=error.square().mean().item(),
        gm=(error + 1e-10).log().mean().exp().item(),
        bmae=per_bin.mean().item(),
        pearson=_correlation(x, y),
        spearman=_correlation(_ranks(x), _ranks(y)),
    )


def _correlation(x: Tensor, y: Tensor) -> float:
    if bool((x == x[0]).all() or (y == y[0]).all()):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x.norm() * y.norm()))


def _ranks(values: Tensor) -> Tensor:
    """Ascending ranks; equal values share their mean rank. NaN has no order, so a single one makes all ranks NaN."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(dim=0) - (counts - 1).double() / 2
    return ranks[group].masked_fill(values.isnan().any(), math.nan)


@dataclass(frozen=True)
class RiskCoverage:
    """``risk[i]`` is the error rate among the ``coverage[i]`` of the samples with the highest scores."""

    coverage: Tensor
    risk: Tensor

    @property
    def area(self) -> float:
        """The mean risk over all coverages (AURC); lower is better, NaN without samples."""
        return float(self.risk.mean())

    def coverage_at(self, risk: float) -> float:
        """The largest coverage whose risk is not above ``risk``, 0 if there is none."""
        reached = self.coverage[self.risk <= risk]
        return float(reached.max()) if len(reached) else 0.0


def risk_coverage(scores: Array, correct: Array) -> RiskCoverage:
    """How the error falls as samples with low scores are rejected, as in selective classification.

    The scores may be a classifier's confidence, or the weights that :class:`dadl.CMWNet` gives: where training labels
    are noisy, ``correct`` says whether a label is the true one. (Geifman & El-Yaniv, NeurIPS 2017.)

    Args:
        scores: ``[N]``; samples with equal scores are accepted together and share one risk.
        correct: ``[N]``, true or 1 where the prediction is right.

    Raises:
        ValueError: other shapes, or NaN scores.
    """
    score = torch.as_tensor(scores).double().cpu()
    wrong = 1 - torch.as_tensor(correct).double().cpu()
    if score.dim() != 1 or score.shape != wrong.shape:
        raise ValueError(f"expected scores and correct [N], got {list(score.shape)} and {list(wrong.shape)}")
    if score.isnan().any():
        raise ValueError("scores must not be NaN: a sample without a score can be neither accepted nor rejected")
    order = score.argsort(descending=True, stable=True)
    accepted = torch.arange(1, len(score) + 1)
    errors = wrong[order].cumsum(dim=0)
    # The last sample of a run of equal scores stands for the whole run.
    _, run, lengths = torch.unique_consecutive(score[order], return_inverse=True, return_counts=True)
    last = (lengths.cumsum(dim=0) - 1)[run]
    return RiskCoverage(accepted[last].double() / max(len(score), 1), (errors / accepted)[last])


def higher_is_better(metric: str) -> bool:
    """Whether higher is better, by the name of a metric: accuracies and correlations; all others are errors."""
    return any(word in metric.lower() for word in ("accuracy", "pearson", "spearman"))
