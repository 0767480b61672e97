"""Bins of labels, and what to say when most samples fall into one of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import SettingsError
from ..reweighting import bin_labels

BINS = 50
MOST_BINS = 10_000
MOST_NAMED = 5
FAR = 20.0
"""Interquartile ranges from the quartiles, beyond which a label is an outlier."""


@dataclass(frozen=True)
class LabelBins:
    """``count`` bins on ``[low, high]``, of equal width or between ``edges``; labels outside go to the edge bins."""

    low: float
    high: float
    count: int
    edges: tuple[float, ...] | None = None
    """Between the bins, if these are not of equal width; a bin includes its lower edge."""

    @classmethod
    def covering(cls, low: float, high: float, width: float) -> "LabelBins":
        """Bins of that width from ``low`` on, up to ``high`` or just above it."""
        needed = (high - low) / width
        if needed > MOST_BINS:
            raise SettingsError(f"bin width {width:g} makes {needed:.0f} bins of targets from {low:g} to {high:g}")
        count = max(1, math.ceil(needed - 1e-6))
        return cls(low, low + count * width, count)

    @classmethod
    def logarithmic(cls, labels: Tensor) -> "LabelBins":
        """Bins of equal ratio that cover positive labels."""
        low, high = float(labels.min()), float(labels.max())
        edges = torch.linspace(math.log(low), math.log(high), BINS + 1, dtype=torch.float64)[1:-1].exp()
        return cls(low, high, BINS, tuple(edges.tolist()))

    @classmethod
    def quantiles(cls, labels: Tensor) -> "LabelBins":
        """Bins with equally many of these labels each, or nearly so; equal labels share a bin."""
        ordered = labels.sort().values
        edges = ordered[[len(labels) * i // BINS for i in range(1, BINS)]].unique()
        edges = edges[edges > ordered[0]]
        return cls(float(ordered[0]), float(ordered[-1]), len(edges) + 1, tuple(edges.tolist()))

    @classmethod
    def known(cls, bins: tuple[float, float, int], edges: Sequence[float] | None) -> "LabelBins":
        """From facts of a run."""
        low, high, count = bins
        return cls(low, high, count, None if edges is None else tuple(edges))

    def numbers(self, labels: Tensor) -> Tensor:
        """The bin of each label, see :func:`dadl.bin_labels`."""
        if self.edges is None:
            return bin_labels(labels, self.low, self.high, self.count)
        labels = labels.contiguous()  # bucketize warns of others
        # Edges are rounded like the labels, so that a label that is an edge stays one.
        return torch.bucketize(labels, torch.tensor(self.edges, dtype=labels.dtype, device=labels.device), right=True)

    def bounds(self, number: int) -> tuple[float, float]:
        """The lower and upper edge of a bin."""
        if self.edges is None:
            width = (self.high - self.low) / self.count
            return self.low + number * width, self.low + (number + 1) * width
        edges = (self.low, *self.edges, self.high)
        return edges[number], edges[number + 1]

    def ranges(self, mask: Tensor) -> list[tuple[float, float]]:
        """The ranges of labels in the bins of a mask ``[count]``, where neighbours are joined."""
        ranges: list[tuple[float, float]] = []
        before = -2
        for number in mask.nonzero().flatten().tolist():
            low, high = self.bounds(number)
            if number == before + 1:
                low = ranges.pop()[0]
            ranges.append((low, high))
            before = number
        return ranges

    def counts(self, numbers: Tensor) -> Tensor:
        """The number of samples in each bin, from the bin of each sample."""
        return torch.bincount(numbers, minlength=self.count)


def skew_warning(bins: LabelBins, counts: Tensor, splits: Sequence[tuple[Sequence[str], Tensor]]) -> str | None:
    """Say so if more than half of the training samples are in one bin, or if labels are extreme outliers.

    ``splits`` are the names and the labels of the samples of each split, the training first; ``counts`` are those of
    the training in each bin.
    """
    train = splits[0][1][:: len(splits[0][1]) // 1_000_000 + 1]
    low, high = torch.quantile(train, train.new_tensor([0.25, 0.75])).tolist()
    reach = FAR * (high - low)
    rows = [
        (names[row], float(values[row]))
        for names, values in splits
        if reach > 0
        for row in ((values < low - reach) | (values > high + reach)).nonzero().flatten().tolist()
    ]
    named = ", ".join(f"{name} ({label:g})" for name, label in rows[:MOST_NAMED])
    if len(rows) > MOST_NAMED:
        named += f" and {len(rows) - MOST_NAMED} more"
    parts = []
    largest = int(counts.argmax())
    share = float(counts[largest] / counts.sum())
    if bins.count > 1 and share > 0.5:
        lower, upper = bins.bounds(largest)
        parts.append(
            f"{100 * share:.3g} % of the training samples are in one of {bins.count} label bins, from {lower:g} to "
            f"{upper:g}, where reweighting, LDS and FDS cannot tell them apart"
        )
    if rows:
        parts.append(f"far from the other targets, half of which are between {low:g} and {high:g}: {named}")
    return "; ".join([*parts, "see --bins-by and --target-transform"]) if parts else None
