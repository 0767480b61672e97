"""The figure of ``dadl demo ranksim``."""

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from ...metrics import Region, shot_regions

Matrix = npt.NDArray[np.floating]

# Okabe and Ito's palette: distinct with any colour vision. A task loss keeps its colour, RankSim's lines are solid.
LINES = {
    "L1": ("#0072B2", "--", "o"),
    "L1 + RankSim": ("#0072B2", "-", "o"),
    "LDS": ("#D55E00", "--", "s"),
    "LDS + RankSim": ("#D55E00", "-", "s"),
}
SHADES: dict[Region, tuple[str, str]] = {
    "many": ("#ffffff", "many: more than 100"),
    "medium": ("#ececec", "medium: 20 to 100"),
    "few": ("#d0d0d0", "few: fewer than 20"),
}


def draw_ranksim(
    counts: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    test_counts: npt.NDArray[np.integer],
    label_mae: Mapping[str, Matrix],
    similarities: Mapping[str, Matrix],
    seeds: int,
    attribution: str,
) -> Figure:
    """Imbalance, error and similarities at a glance.

    Args:
        counts: training samples per label, from label 0.
        labels: the test labels in ascending order, ``[L]``.
        test_counts: test samples of each of ``labels``.
        label_mae: for each arm the test MAE of each of ``labels``, averaged over seeds.
        similarities: for each title a similarity matrix ``[L, L]`` in the order of ``labels``, the labels' own first.
        seeds: how many seeds were averaged.
        attribution: the data's, shown at the bottom.
    """
    figure = Figure(figsize=(13, 9.4), layout=ConstrainedLayoutEngine(h_pad=0.1))
    figure.suptitle("How many strokes has a character? Regression with rare labels", fontsize=17, fontweight="bold")
    grid = figure.add_gridspec(2, 1)
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    histogram, error = top.subplots(1, 2)
    _draw_counts(histogram, counts)
    _draw_errors(error, counts, labels, test_counts, label_mae, seeds)
    bottom.suptitle(
        "(c) Do features order characters as their labels do?  Similarity of every two labels, rank within its row",
        fontsize=13,
    )
    panels = bottom.subplots(1, len(similarities))
    ranks = {title: _ranks(matrix) for title, matrix in similarities.items()}
    reference = next(iter(ranks.values()))
    for axes, (title, matrix) in zip(panels, ranks.items(), strict=True):
        if matrix is not reference:
            title += f"\nmean squared difference from labels {np.square(matrix - reference).mean():.4f}"
        image = _draw_ranks(axes, labels, title, matrix)
    panels[0].set_ylabel("label: number of strokes")
    bar = bottom.colorbar(image, ax=panels, shrink=0.85, ticks=(0, 1))
    bar.ax.set_yticklabels(["least\nsimilar", "most\nsimilar"])
    figure.supxlabel(attribution, fontsize=9, color="#555555")
    return figure


def _shade(axes: Axes, counts: npt.NDArray[np.integer]) -> None:
    masks = shot_regions(counts)
    region_of = {label: next(r for r in SHADES if masks[r][label]) for label in range(1, len(counts))}
    for region, members in groupby(region_of, key=region_of.__getitem__):
        span = list(members)
        axes.axvspan(span[0] - 0.5, span[-1] + 0.5, color=SHADES[region][0], zorder=0)
    axes.set_xlim(0.5, len(counts) - 0.5)
    axes.set_xlabel("label: number of strokes")


def _draw_counts(axes: Axes, counts: npt.NDArray[np.integer]) -> None:
    _shade(axes, counts)
    axes.bar(np.arange(1, len(counts)), counts[1:], color="#555555", width=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("training samples (characters, log scale)")
    axes.set_title("(a) Some labels are common, some are rare", fontsize=13)
    keys = [Patch(facecolor=color, edgecolor="#888888", label=text) for color, text in SHADES.values()]
    axes.legend(handles=keys, title="training samples per label", loc="upper right")


def _draw_errors(
    axes: Axes,
    counts: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    test_counts: npt.NDArray[np.integer],
    label_mae: Mapping[str, Matrix],
    seeds: int,
) -> None:
    _shade(axes, counts)
    for name, values in label_mae.items():
        color, style, marker = LINES[name]
        face = color if style == "-" else "white"
        axes.plot(labels, values, style, color=color, marker=marker, markersize=4, markerfacecolor=face, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"test MAE in strokes (mean of {seeds} {'seed' if seeds == 1 else 'seeds'})")
    axes.set_title("(b) Error by label, lower is better", fontsize=13)
    axes.legend(loc="upper center")
    common = labels[test_counts >= 5]
    if len(common) and common[-1] < labels[-1]:
        note = f"labels above {common[-1]}:\nat most 4 test characters each"
        axes.text(0.99, 0.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=9)


def _ranks(similarity: Matrix) -> Matrix:
    """The ranks in each row, scaled to [0, 1], with 1 for the most similar."""
    ranks: Matrix = similarity.argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float64)
    ranks /= max(similarity.shape[1] - 1, 1)
    return ranks


def _draw_ranks(axes: Axes, labels: npt.NDArray[np.integer], title: str, ranks: Matrix) -> AxesImage:
    edges = (-0.5, len(labels) - 0.5)
    image = axes.imshow(ranks, cmap="viridis", vmin=0, vmax=1, extent=(*edges, *edges[::-1]))
    ticks = [i for i, label in enumerate(labels) if label == 1 or label % 5 == 0]
    axes.set_xticks(ticks, [str(labels[i]) for i in ticks])
    axes.set_yticks(ticks, [str(labels[i]) for i in ticks])
    axes.set_xlabel("label: number of strokes")
    axes.set_title(title, fontsize=11)
    return image
