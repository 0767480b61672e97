"""The figures of ``dadl report``: SVG with colours from the page, light or dark."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

# Matplotlib cannot use CSS variables. It draws with these colours, which are replaced afterwards.
INK, PAGE = "#010203", "#010204"
SERIES_COLORS = tuple(f"#0a000{i}" for i in range(7))
VARIABLES = {INK: "var(--ink)", PAGE: "var(--page)"} | {c: f"var(--color-{i})" for i, c in enumerate(SERIES_COLORS)}
DASHES = ("", "6 2", "2 2", "6 2 2 2")
LOG_RANGE = 30  # losses with a larger range get a logarithmic axis, which shows the end of training

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Curve:
    """A quantity over the epochs of a run; ``best_epoch`` is marked where there is one."""

    epochs: Sequence[float]
    values: Sequence[float]
    best_epoch: int | None


def color_variable(index: int) -> str:
    """The CSS colour of a series; colours repeat after seven, with other dashes."""
    return VARIABLES[SERIES_COLORS[index % len(SERIES_COLORS)]]


def dashes(index: int) -> str:
    """The ``stroke-dasharray`` of a series, empty for a solid line."""
    return DASHES[index // len(SERIES_COLORS) % len(DASHES)]


def draw_curves(name: str, series: Sequence[Sequence[Curve]]) -> Markup:
    """Learning curves; the curves of one series, which are seeds, share a colour. ``name`` is the page's own of it."""
    figure, axes = _panel()
    for i, curves in enumerate(series):
        color, style = _style(i)
        for curve in curves:
            axes.plot(curve.epochs, curve.values, color=color, linestyle=style, linewidth=1.5)
            best = [(x, y) for x, y in zip(curve.epochs, curve.values, strict=True) if x == curve.best_epoch]
            if best:
                axes.plot(*best[0], "o", color=color, markeredgecolor=PAGE, markersize=8, zorder=3)
            elif len(curve.values) == 1:  # a line of one point is not seen
                axes.plot(curve.epochs, curve.values, "_", color=color, markersize=12)
    finite = [y for curves in series for curve in curves for y in curve.values if math.isfinite(y)]
    if finite and min(finite) > 0 and max(finite) > LOG_RANGE * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("log scale")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _svg(figure, name)


def draw_bars(name: str, rows: Sequence[str], series: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """For each of ``rows`` a bar per series: a mean and its standard error, which is NaN for a single seed."""
    figure, axes = _panel()
    width = 0.8 / len(series)
    for i, cells in enumerate(series):
        mean, error = np.array(cells).T
        x = np.arange(len(rows)) + (i - (len(series) - 1) / 2) * width
        color, style = _style(i)
        # Where colours repeat, bars are outlines.
        axes.bar(x, mean, width * 0.85, facecolor="none" if dashes(i) else color, edgecolor=color, linestyle=style)
        seeds = np.isfinite(error)
        if seeds.any():
            axes.errorbar(x[seeds], mean[seeds], error[seeds], fmt="none", ecolor=INK, capsize=3, linewidth=1.2)
    axes.set_xticks(range(len(rows)), rows)
    axes.tick_params(axis="x", length=0)
    return _svg(figure, name)


def _style(index: int) -> tuple[str, Any]:
    """Colour and line style of a series."""
    pattern = [float(length) for length in dashes(index).split()]
    return SERIES_COLORS[index % len(SERIES_COLORS)], (0, pattern) if pattern else "-"


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    axes.tick_params(which="both", colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an element of the page: text stays text, in the page's font; equal figures give equal elements."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    for child in root.findall("{http://www.w3.org/2000/svg}metadata"):
        root.remove(child)
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        group.attrib.pop("id", None)  # "axes_1" would be in every figure of the page
    text = re.sub("font-family: [^;]*; ", "", ElementTree.tostring(root, encoding="unicode"))
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return Markup(text)
