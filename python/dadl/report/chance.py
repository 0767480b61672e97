"""The figure of a comparison: differences to the reference with their intervals, for each row and arm."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..comparison.judgement import Judgement
from ..comparison.numbers import span
from ..comparison.statistics import Difference
from ..comparison.verdict import row_name
from ..metrics import higher_is_better
from .arm import Arm
from .figure import PAPER, SCREEN, Panel, Theme, dress, new_figure, plain_text, style, svg

LINE = 0.34  # inches for each arm


def difference_panels(name: str, judgement: Judgement, arms: Sequence[Arm], reference: str) -> list[Panel]:
    """A panel for each row of the scores that has differences."""
    panels = []
    others = [arm for arm in arms if arm.name != reference]
    for row in judgement.scores:
        shown = [difference for arm in others if (difference := judgement.difference(arm.name, row))]
        if shown:
            figure = new_figure(height=0.9 + LINE * len(others))
            _draw(figure.subplots(), judgement, others, row, reference, SCREEN)
            title = f"{row_name(row)} {judgement.column}"
            said = "; ".join(f"{d.arm} {d.mean:+.4g} ({d.low:.4g} to {d.high:.4g})" for d in shown)
            panels.append(Panel(title, svg(figure, f"{name} difference {row}", f"Difference to {reference}: {said}")))
    return panels


def difference_figure(judgement: Judgement, arms: Sequence[Arm], reference: str) -> Figure:
    """All rows side by side, on white: the picture to show elsewhere."""
    others = [arm for arm in arms if arm.name != reference]
    rows = [row for row in judgement.scores if any(judgement.difference(arm.name, row) for arm in others)]
    figure = new_figure(height=1.3 + LINE * max(1, len(others)), width=1.6 + 2.4 * max(1, len(rows)))
    figure.patch.set_visible(True)
    panels = figure.subplots(1, max(1, len(rows)), squeeze=False)[0]
    for i, (axes, row) in enumerate(zip(panels, rows, strict=False)):
        _draw(axes, judgement, others, row, reference, PAPER)
        size = judgement.sizes.get(row)
        count = "" if size is None else f"\n{span(*size.test)} test samples"
        axes.set_title(plain_text(f"{row_name(row)} {judgement.column}") + count, fontsize=10)
        if i:
            axes.set_yticklabels([])
    if not rows:
        dress(panels[0], PAPER).set_title("nothing to compare yet", fontsize=10)
    return figure


def _draw(axes: Axes, judgement: Judgement, arms: Sequence[Arm], row: str, reference: str, theme: Theme) -> None:
    dress(axes, theme)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=theme.ink, alpha=0.15)
    axes.axvline(0, color=theme.ink, linewidth=1)
    for y, arm in enumerate(arms):
        difference = judgement.difference(arm.name, row)
        if difference is not None:
            _draw_one(axes, y, difference, style(arm.index, theme)[0], theme)
    axes.set_yticks(range(len(arms)), [plain_text(_short(arm.name)) for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    better = "higher is better →" if higher_is_better(judgement.column) else "← lower is better"
    axes.set_xlabel(plain_text(f"difference to {_short(reference)}\n{better}"))


def _draw_one(axes: Axes, y: int, difference: Difference, color: str, theme: Theme) -> None:
    """Filled if it is found, hollow if not, a cross if nothing is known of chance."""
    if not difference.has_interval:
        axes.plot(difference.mean, y, "x", color=color)
        return
    axes.plot([difference.low, difference.high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
    ground = color if difference.found else theme.page
    axes.plot(difference.mean, y, "o", color=color, markerfacecolor=ground, markersize=7, markeredgewidth=1.8)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
