"""The figure of ``dadl demo self-tuning``."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ...output import mean_and_standard_error

Drawing = npt.NDArray[np.uint8]

# Okabe and Ito's palette: distinct with any colour vision.
LINES = {
    "Fine-tuning": ("#0072B2", "o"),
    "FixMatch": ("#009E73", "s"),
    "Self-Tuning": ("#D55E00", "D"),
}
SHADES = ("#D55E00", "#CC79A7", "#56B4E9", "#444444")


def draw_self_tuning(
    accuracy: Mapping[str, Mapping[int, Sequence[float]]],
    purity: Mapping[int, npt.NDArray[np.floating]],
    steps: npt.NDArray[np.integer],
    examples: Sequence[tuple[Drawing, Sequence[Drawing]]],
    attribution: str,
) -> Figure:
    """Accuracy against the share of labels, purity of the queue over time, and examples of the data.

    Args:
        accuracy: for each arm and percentage of labels the test accuracies in %, one per seed.
        purity: for each percentage of labels the queue's purity, ``[seeds, len(steps)]``, in [0, 1].
        steps: when the purity was measured, in training steps.
        examples: drawings of a radical and of characters that are filed under it, as many for every radical.
        attribution: the data's, shown at the bottom.
    """
    figure = Figure(figsize=(13, 9), layout=ConstrainedLayoutEngine(h_pad=0.1))
    figure.suptitle(
        "Under which radical is a character filed? Learning from few labels", fontsize=17, fontweight="bold"
    )
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    accuracy_axes, purity_axes = figure.add_subfigure(grid[0]).subplots(1, 2)
    _draw_accuracy(accuracy_axes, accuracy)
    _draw_purity(purity_axes, purity, steps)
    _draw_examples(figure.add_subfigure(grid[1]), examples)
    figure.supxlabel(attribution, fontsize=9, color="#555555")
    return figure


def _draw_accuracy(axes: Axes, accuracy: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    ratios = sorted({ratio for by_ratio in accuracy.values() for ratio in by_ratio})
    seeds = 0
    for name, by_ratio in accuracy.items():
        color, marker = LINES[name]
        x = [ratios.index(ratio) for ratio in by_ratio]
        mean, error = np.array([mean_and_standard_error(values) for values in by_ratio.values()]).T
        seeds = len(next(iter(by_ratio.values())))
        axes.errorbar(x, mean, np.nan_to_num(error), color=color, marker=marker, markersize=6, capsize=3, label=name)
    axes.set_xticks(range(len(ratios)), [f"{ratio} %" for ratio in ratios])
    axes.set_xlabel("training characters whose radical is known")
    axes.set_ylabel("test accuracy in %")
    axes.grid(axis="y", color="#dddddd")
    note = f"mean of {seeds} seeds ± standard error" if seeds > 1 else "one seed"
    axes.set_title(f"(a) Accuracy, higher is better\n{note}", fontsize=13)
    axes.legend(loc="lower right")


def _draw_purity(axes: Axes, purity: Mapping[int, npt.NDArray[np.floating]], steps: npt.NDArray[np.integer]) -> None:
    for (ratio, values), color in zip(purity.items(), SHADES, strict=False):
        mean = 100 * values.mean(axis=0)
        axes.plot(steps, mean, color=color, marker=".", label=f"{ratio} % (at the end {mean[-1]:.0f} %)")
    axes.set_ylim(0, 104)
    axes.set_xlabel("training steps")
    axes.set_ylabel("keys in the queue that are in their true class, in %")
    axes.grid(axis="y", color="#dddddd")
    axes.set_title(
        "(b) Purity of Self-Tuning's class queue\nits keys stand under labels and pseudo-labels", fontsize=13
    )
    axes.legend(title="labels", loc="lower right")


def _draw_examples(panel: SubFigure, examples: Sequence[tuple[Drawing, Sequence[Drawing]]]) -> None:
    panel.suptitle("(c) Radicals (framed), and characters that dictionaries file under them", fontsize=13)
    rows = 3
    per_row = -(-len(examples) // rows)
    columns = per_row * (2 + len(examples[0][1]))  # an empty column after each radical's characters
    cells = panel.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for i, (radical, characters) in enumerate(examples):
        row, first = i // per_row, (i % per_row) * (2 + len(characters))
        for j, image in enumerate((radical, *characters)):
            cell = cells[row, first + j]
            cell.imshow(255 - image, cmap="gray", vmin=0, vmax=255)
            if j == 0:
                cell.set_axis_on()
                cell.set_xticks([])
                cell.set_yticks([])
