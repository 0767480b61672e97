"""Figures of single test samples: errors by label, predictions against truth, confidence of classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.ticker import NullFormatter

from ..comparison.samples import CONFIDENCE, LABEL, PREDICTION, TARGET, Array, Predictions, Regions, read_predictions
from ..metrics import risk_coverage
from .arm import Arm
from .figure import INK, Panel, dress, new_figure, style, svg

MOST_POINTS = 300  # in a scatter plot, for each arm
FEWEST_IN_BIN = 5
MOST_BINS = 24
CONFIDENCE_BINS = 10


@dataclass(frozen=True)
class TestSamples:
    """The predictions of every arm, a part for each of its runs; and the label bins, where labels have any."""

    arms: Sequence[tuple[Arm, Sequence[Predictions]]]
    regions: Regions | None

    __test__ = False  # no class of tests

    @classmethod
    def read(cls, arms: Sequence[Arm]) -> "TestSamples":
        """Of all runs whose predictions stand beside the target."""
        read = [(arm, [read_predictions(folder) for folder in arm.arm.runs.values()]) for arm in arms]
        found = [(arm, [part for part in parts if part is not None and TARGET in part.columns]) for arm, parts in read]
        kept = [(arm, parts) for arm, parts in found if parts]
        folders = [folder for arm, _ in kept for folder in arm.arm.runs.values()]
        return cls(kept, Regions.of_run(folders[0]) if folders else None)

    def regression(self, runs: int | None = None) -> list[tuple[Arm, Array, Array]]:
        """Arm, target and prediction of all samples of so many runs, for recipes that predict one number."""
        return [
            (arm, _joined(parts[:runs], TARGET), _joined(parts[:runs], PREDICTION))
            for arm, parts in self.arms
            if PREDICTION in parts[0].columns
        ]

    def classes(self) -> list[tuple[Arm, Array, Array]]:
        """Arm, confidence and whether the class is right, of all samples, for recipes that predict classes."""
        return [
            (arm, _joined(parts, CONFIDENCE), (_joined(parts, LABEL) == _joined(parts, TARGET)).astype(np.float64))
            for arm, parts in self.arms
            if {LABEL, CONFIDENCE} <= parts[0].columns.keys()
        ]


def label_panels(name: str, samples: TestSamples) -> list[Panel]:
    """The error against the label, with the histogram of the training labels under it."""
    found = samples.regression()
    if not found:
        return []
    pooled = np.concatenate([target for _, target, _ in found])
    edges = _bins(pooled, samples.regions)
    figure = new_figure(height=4.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        dress(axes)
    for arm, target, prediction in found:
        color, line = style(arm.index)
        x, y = _by_bin(target, np.abs(prediction - target), edges)
        upper.plot(x, y, color=color, linestyle=line, linewidth=1.5, marker="o", markersize=3)
    upper.set_ylabel("mean absolute error")
    upper.set_ylim(bottom=0)
    if samples.regions is None:
        lower.hist(pooled, bins=40, color=INK, alpha=0.45)
        lower.set_ylabel("test")
    else:
        counts = np.array(samples.regions.counts, dtype=float)
        lower.stairs(counts, samples.regions.edges, fill=True, color=INK, alpha=0.45)
        lower.set_ylabel("training")
        if counts.max() > 50 * max(1.0, float(np.median(counts))):
            lower.set_yscale("log")
            lower.yaxis.set_minor_formatter(NullFormatter())
    if _is_logarithmic(samples.regions):
        lower.set_xscale("log")
    lower.set_xlabel("label")
    told = f"Mean absolute error of {', '.join(arm.name for arm, *_ in found)} by label, above a histogram of labels"
    return [Panel("Error by label, above the number of training samples", svg(figure, f"{name} labels", told))]


def prediction_panels(name: str, samples: TestSamples) -> list[Panel]:
    """Predictions against truth, a panel for each arm, all with the same axes."""
    found = samples.regression(runs=1)
    if not found:
        return []
    everything = np.concatenate([values for _, *both in found for values in both])
    low, high = float(everything.min()), float(everything.max())
    logarithmic = _is_logarithmic(samples.regions) and low > 0
    panels = []
    for arm, target, prediction in found:
        chosen = _spread_out(target)
        figure = new_figure()
        axes = dress(figure.subplots())
        axes.plot([low, high], [low, high], color=INK, linewidth=1, alpha=0.5)
        axes.plot(target[chosen], prediction[chosen], ".", color=style(arm.index)[0], markersize=4, alpha=0.6)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("truth")
        axes.set_ylabel("prediction")
        told = f"Predictions of {arm.name} against the truth, {len(chosen)} of {len(target)} test samples of one run"
        panels.append(Panel(arm.name, svg(figure, f"{name} predictions {arm.index}", told)))
    return panels


def class_panels(name: str, samples: TestSamples) -> list[Panel]:
    """Risk against coverage, and accuracy against confidence."""
    found = samples.classes()
    if not found:
        return []
    return [
        Panel("Error among the samples that are most certain", _risk_coverage(name, found)),
        Panel("Accuracy by confidence", _calibration(name, found)),
    ]


def _risk_coverage(name: str, found: Sequence[tuple[Arm, Array, Array]]) -> Markup:
    figure = new_figure()
    axes = dress(figure.subplots())
    areas = []
    for arm, confidence, right in found:
        color, line = style(arm.index)
        curve = risk_coverage(confidence.tolist(), right.tolist())
        every = max(1, len(curve.coverage) // 200)  # a line needs no more points
        axes.plot(100 * curve.coverage[::every], 100 * curve.risk[::every], color=color, linestyle=line, linewidth=1.5)
        areas.append(f"{arm.name} {100 * curve.area:.2f} %")
    axes.set_xlabel("coverage: the most certain samples, %")
    axes.set_ylabel("error among them, %")
    axes.set_ylim(bottom=0)
    return svg(figure, f"{name} risk", f"Error by coverage; on average over all coverages {', '.join(areas)}")


def _calibration(name: str, found: Sequence[tuple[Arm, Array, Array]]) -> Markup:
    figure = new_figure()
    axes = dress(figure.subplots())
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, alpha=0.5)
    told = []
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    for arm, confidence, right in found:
        color, line = style(arm.index)
        numbers = np.digitize(confidence, edges[1:-1])
        counts = np.bincount(numbers, minlength=CONFIDENCE_BINS)
        shown = counts > 0
        sums = (np.bincount(numbers, values, CONFIDENCE_BINS)[shown] for values in (confidence, right))
        x, y = (values / counts[shown] for values in sums)
        axes.plot(100 * x, 100 * y, color=color, linestyle=line, linewidth=1.5, marker="o", markersize=4)
        told.append(f"{arm.name} {100 * float(np.abs(x - y) @ counts[shown] / counts.sum()):.1f} %")
    axes.set_xlabel("mean confidence, %")
    axes.set_ylabel("accuracy, %")
    return svg(figure, f"{name} calibration", f"Accuracy by confidence; they are apart on average by {', '.join(told)}")


def _joined(parts: Sequence[Predictions], column: str) -> Array:
    return np.concatenate([part.columns[column] for part in parts])


def _bins(target: Array, regions: Regions | None) -> Array:
    """Edges of neighbouring label bins, taken together until each has enough test samples."""
    fine = np.linspace(target.min(), target.max(), 2 * MOST_BINS + 1) if regions is None else regions.edges
    counts = np.histogram(np.clip(target, fine[0], fine[-1]), fine)[0]
    enough = max(FEWEST_IN_BIN, len(target) / MOST_BINS / 4)
    edges, held = [fine[0]], 0
    for count, end in zip(counts, fine[1:], strict=True):
        held += count
        if held >= enough:
            edges.append(end)
            held = 0
    if held and len(edges) > 1:
        edges[-1] = fine[-1]
    return np.array(edges if len(edges) > 1 else [fine[0], fine[-1]])


def _by_bin(target: Array, error: Array, edges: Array) -> tuple[Array, Array]:
    """The mean label and the mean error of each bin that has samples."""
    numbers = np.digitize(target, edges[1:-1])
    counts = np.bincount(numbers, minlength=len(edges) - 1)
    shown = counts > 0
    x, y = (np.bincount(numbers, values, len(edges) - 1)[shown] / counts[shown] for values in (target, error))
    return x, y


def _spread_out(target: Array) -> npt.NDArray[np.intp]:
    """At most so many samples, evenly by rank: half of them by rank of the label, half over its range."""
    if len(target) <= MOST_POINTS:
        return np.arange(len(target))
    order = np.argsort(target, kind="stable")
    by_rank = order[np.linspace(0, len(order) - 1, MOST_POINTS // 2).round().astype(int)]
    wanted = np.linspace(target.min(), target.max(), MOST_POINTS // 2)
    over_range = order[np.searchsorted(target[order], wanted).clip(max=len(order) - 1)]
    return np.unique(np.concatenate([by_rank, over_range]))


def _is_logarithmic(regions: Regions | None) -> bool:
    """Whether the label bins have equal ratio rather than equal width."""
    if regions is None or regions.bins.edges is None or regions.edges[0] <= 0:
        return False
    steps = np.diff(np.log(regions.edges))
    return bool(np.allclose(steps, steps.mean(), rtol=0.01))
