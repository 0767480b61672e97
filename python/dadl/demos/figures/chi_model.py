"""The figure of ``dadl demo chi-model``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ...output import Cells, mean_and_standard_error

Array = npt.NDArray[np.floating]

# Okabe and Ito's palette: distinct with any colour vision.
ARM_COLORS = ("#444444", "#56B4E9", "#CC79A7", "#009E73", "#0072B2", "#D55E00")
POINT_COLORS = {
    "first stroke starts": "#0072B2",
    "first stroke ends": "#56B4E9",
    "last stroke starts": "#E69F00",
    "last stroke ends": "#D55E00",
}
HEADS, FEATURES, BOTH = "#D55E00", "#0072B2", "#222222"


@dataclass(frozen=True)
class Duel:
    """The disagreement after some ``steps``, and how much of its change so far is due to heads and features."""

    steps: list[int]
    disagreement: list[float]
    heads: list[float]
    features: list[float]


class Glyph(NamedTuple):
    """A character, uint8 with ink 255, and its key points (x, y) in [0, 1], ``[4, 2]``: true, and each arm's."""

    image: npt.NDArray[np.uint8]
    truth: Array
    predicted: Mapping[str, Array]


def draw_chi_model(
    errors: Cells, glyphs: Sequence[Glyph], duels: Mapping[str, Sequence[Duel]], attribution: str
) -> Figure:
    """Errors relative to labels alone, predicted key points, and the game during training.

    Args:
        errors: for each arm, labels alone first, and each "question? measure" the test errors, one per seed.
        glyphs: characters of the test set.
        duels: for each task the χ-Model's game, one per seed.
        attribution: the data's, shown at the bottom.
    """
    figure = Figure(figsize=(14, 14), layout=ConstrainedLayoutEngine(h_pad=0.12))
    figure.suptitle("Few labels, many unlabelled images: what does agreement teach?", fontsize=17, fontweight="bold")
    grid = figure.add_gridspec(3, 1, height_ratios=(4, 4.3, 4))
    top, middle, bottom = (figure.add_subfigure(grid[row]) for row in range(3))
    _draw_errors(top, errors)
    _draw_glyphs(middle, glyphs)
    _draw_duels(bottom, duels)
    figure.supxlabel(attribution, fontsize=9, color="#555555")
    return figure


def _draw_errors(panel: SubFigure, errors: Cells) -> None:
    reference, *others = errors
    seeds = len(next(iter(errors[reference].values())))
    note = f"mean of {seeds} seeds ± standard error, paired by seed" if seeds > 1 else "one seed"
    panel.suptitle(
        f"(a) Change of the test error by each way to use unlabelled images, in % of that with labels only\n"
        f"left of the line is better; {note}",
        fontsize=13,
    )
    rows = range(len(others))
    columns = panel.subplots(1, len(errors[reference]), sharey=True)
    for axes, (task, baseline) in zip(columns, errors[reference].items(), strict=True):
        for row, arm, color in zip(rows, others, ARM_COLORS[1:], strict=True):
            change = [100 * (value / base - 1) for value, base in zip(errors[arm][task], baseline, strict=True)]
            mean, error = mean_and_standard_error(change)
            axes.errorbar(mean, row, xerr=np.nan_to_num(error), fmt="o", color=color, markersize=8, capsize=4)
        axes.axvline(0, color=ARM_COLORS[0], linewidth=1.5)
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.set_yticks(rows, others)
        axes.margins(x=0.15)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        question, measure = task.split("? ")
        error = mean_and_standard_error(baseline)[0]
        axes.set_title(f"{question}?\n{measure}: {error:.2f} with labels only", fontsize=11)
        axes.set_xlabel("change in %")


def _draw_glyphs(panel: SubFigure, glyphs: Sequence[Glyph]) -> None:
    panel.suptitle("(b) Where the first and the last stroke of test characters start and end", fontsize=13)
    arms = list(glyphs[0].predicted)
    cells = panel.subplots(len(arms), len(glyphs), squeeze=False)
    for row, arm in zip(cells, arms, strict=True):
        row[0].set_ylabel(arm, fontsize=12)
        for axes, glyph in zip(row, glyphs, strict=True):
            _draw_glyph(axes, glyph.image, glyph.truth, glyph.predicted[arm])
    keys = [Line2D([], [], color=color, marker="s", linestyle="", label=name) for name, color in POINT_COLORS.items()]
    keys.append(Line2D([], [], color="#222222", marker="o", markerfacecolor="none", linestyle="", label="truth"))
    keys.append(Line2D([], [], color="#222222", marker="x", linestyle="", label="predicted"))
    panel.legend(handles=keys, ncols=len(keys), loc="outside lower center", frameon=False)


def _draw_glyph(axes: Axes, image: npt.NDArray[np.uint8], truth: Array, predicted: Array) -> None:
    axes.imshow(255 - image // 3, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    for color, true, found in zip(POINT_COLORS.values(), truth, predicted, strict=True):
        axes.plot(*np.stack([true, found]).T, color=color, linewidth=1)
        axes.plot(*true, "o", color=color, markersize=9, markerfacecolor="none", markeredgewidth=1.5)
        axes.plot(*found, "x", color=color, markersize=6, markeredgewidth=2)
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_duels(panel: SubFigure, duels: Mapping[str, Sequence[Duel]]) -> None:
    panel.suptitle(
        "(c) χ-Model's game: how far two heads on two views disagree, and who has changed that since the start\n"
        "each on the same unlabelled images, without dropout",
        fontsize=13,
    )
    for axes, (task, by_seed) in zip(panel.subplots(1, len(duels), squeeze=False)[0], duels.items(), strict=True):
        steps = by_seed[0].steps
        heads, features, both = (
            np.mean([getattr(duel, part) for duel in by_seed], axis=0) for part in ("heads", "features", "disagreement")
        )
        axes.axhline(0, color="#999999", linewidth=1)
        axes.plot(steps, heads, color=HEADS, label="change by the heads")
        axes.plot(steps, features, color=FEATURES, label="change by the features")
        axes.plot(steps, both, color=BOTH, linewidth=2.5, label="disagreement")
        axes.set_title(task, fontsize=11)
        axes.set_xlabel("training steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color="#dddddd")
    axes.figure.axes[0].set_ylabel("disagreement")
    handles, labels = axes.get_legend_handles_labels()
    panel.legend(handles, labels, ncols=3, loc="outside lower center", frameon=False)
