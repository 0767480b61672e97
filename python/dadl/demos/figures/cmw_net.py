"""The figure of ``dadl demo cmw-net``."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ...output import Cells, mean_and_standard_error

HISTOGRAM_BINS = 25

Curves = Mapping[str, npt.NDArray[np.floating]]
Histograms = Mapping[str, tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]]

# Okabe and Ito's palette: distinct with any colour vision.
ARM_COLORS = ("#999999", "#444444", "#56B4E9", "#0072B2", "#D55E00", "#009E73")
FAMILY_COLORS = ("#D55E00", "#CC79A7", "#0072B2")
FAMILY_NAMES = {1: ("all classes",), 2: ("small classes", "large classes"), 3: ("small", "medium", "large classes")}
CLEAN, CORRUPTED = "#0072B2", "#D55E00"


def draw_cmw_net(
    accuracy: Cells,
    losses: npt.NDArray[np.floating],
    curves: Curves,
    histograms: Histograms,
    attribution: str,
) -> Figure:
    """Accuracies of all arms, and what CMW-Net has learnt: weights against losses, and the distribution of weights.

    Args:
        accuracy: for each arm and column the test accuracies in %, one per seed.
        losses: ``[L]``.
        curves: for each kind of labels the weights of these losses, ``[families, L]``.
        histograms: for each kind of noise, counts of the weights on [0, 1] of clean and of corrupted samples.
        attribution: the data's, shown at the bottom.
    """
    figure = Figure(figsize=(13, 12), layout=ConstrainedLayoutEngine(h_pad=0.12))
    figure.suptitle("Weighing samples by what a few clean ones say", fontsize=17, fontweight="bold")
    grid = figure.add_gridspec(3, 1, height_ratios=(4, 3, 3))
    top, middle, bottom = (figure.add_subfigure(grid[row]) for row in range(3))
    _draw_accuracy(top.subplots(), accuracy)
    middle.suptitle("(b) CMW-Net's weight of a loss, by the size of its class", fontsize=13)
    for axes, (name, weights) in zip(middle.subplots(1, len(curves), sharey=True).flat, curves.items(), strict=True):
        _draw_curves(axes, name, losses, weights)
    bottom.suptitle("(c) CMW-Net's weights of the training samples at the end", fontsize=13)
    for axes, (name, counts) in zip(bottom.subplots(1, len(histograms)).flat, histograms.items(), strict=True):
        _draw_histograms(axes, name, *counts)
    figure.supxlabel(attribution, fontsize=9, color="#555555")
    return figure


def _draw_accuracy(axes: Axes, accuracy: Cells) -> None:
    columns = list(next(iter(accuracy.values())))
    width = 0.8 / len(accuracy)
    for i, ((arm, cells), color) in enumerate(zip(accuracy.items(), ARM_COLORS, strict=True)):
        mean, error = np.array([mean_and_standard_error(cells[column]) for column in columns]).T
        x = np.arange(len(columns)) + (i - (len(accuracy) - 1) / 2) * width
        axes.bar(x, mean, width, yerr=np.nan_to_num(error), color=color, capsize=3, label=arm)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("test accuracy in %")
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_title("(a) Accuracy, higher is better", fontsize=13)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)


def _draw_curves(axes: Axes, name: str, losses: npt.NDArray[np.floating], weights: npt.NDArray[np.floating]) -> None:
    families = FAMILY_NAMES.get(len(weights), tuple(f"family {i + 1}" for i in range(len(weights))))
    for curve, family, color in zip(weights, families, FAMILY_COLORS, strict=False):
        axes.plot(losses, curve, color=color, label=family)
    axes.set_ylim(0, 1)
    axes.set_xlabel("loss")
    axes.set_ylabel("weight")
    axes.grid(color="#dddddd")
    axes.set_title(name, fontsize=12)
    axes.legend()


def _draw_histograms(axes: Axes, name: str, clean: npt.NDArray[np.integer], corrupted: npt.NDArray[np.integer]) -> None:
    edges = np.linspace(0, 1, len(clean) + 1)
    for counts, color, label in ((clean, CLEAN, "right label"), (corrupted, CORRUPTED, "wrong label")):
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.55, label=label)
    axes.set_xlim(0, 1)
    axes.set_xlabel("weight")
    axes.set_ylabel("training samples")
    axes.set_title(name, fontsize=12)
    axes.legend()
