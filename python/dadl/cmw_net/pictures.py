"""What a weighting network has learnt: weights against losses, and the weights of right and of wrong labels."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .weight_net import CMWNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 25
# Okabe and Ito's palette: distinct with any colour vision.
FAMILY_COLORS = ("#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00")
CLEAN, CORRUPTED = "#0072B2", "#D55E00"


def draw_weights(weight_net: CMWNet, losses: Tensor, labels: Tensor, wrong: Tensor | None) -> "Figure":
    """The weight of a loss for each family of classes, and a histogram of the training samples' weights.

    Args:
        weight_net: on the CPU.
        losses: of the training samples at the end, ``[N]``.
        labels: their given labels, ``[N]``.
        wrong: whether the given label is not the true one, ``[N]``; ``None`` if that is not known.
    """
    from matplotlib.figure import Figure

    grid = torch.linspace(0, float(losses.quantile(0.99)) + 1e-6, 101)
    with torch.no_grad():
        curves, weights = weight_net.curves(grid).T, weight_net(losses, labels)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    curve_axes, histogram = figure.subplots(1, 2)
    for i, curve in enumerate(curves):
        name = f"family {i + 1} of {len(curves)}, by class size" if len(curves) > 1 else "all classes"
        curve_axes.plot(grid, curve, color=FAMILY_COLORS[i % len(FAMILY_COLORS)], label=name)
    curve_axes.set(xlabel="loss", ylabel="weight", ylim=(0, 1))
    curve_axes.grid(color="#dddddd")
    curve_axes.legend(fontsize=8)
    edges = torch.linspace(0, 1, BINS + 1).numpy()
    parts = {"all": (weights, CLEAN)}
    if wrong is not None:
        parts = {"right label": (weights[~wrong], CLEAN), "wrong label": (weights[wrong], CORRUPTED)}
    for name, (chosen, color) in parts.items():
        counts = torch.histc(chosen, BINS, 0, 1).numpy()
        histogram.stairs(counts, edges, fill=True, color=color, alpha=0.55, label=name)
    histogram.set(xlabel="weight", ylabel="training samples", xlim=(0, 1))
    histogram.legend(fontsize=8)
    return figure
