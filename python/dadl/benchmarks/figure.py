"""The figure of ``dadl bench``."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .harness import MILLISECONDS, BenchmarkTable, Numbers

# Okabe and Ito's palette: distinct with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LABEL_WIDTH = 18  # characters below a group of bars


def draw_benchmark(measured: Sequence[tuple[BenchmarkTable, Mapping[str, Numbers]]], machine: str) -> Figure:
    """Speedups over each candidate, or times over sizes: one panel for each table.

    Args:
        measured: tables and their rows.
        machine: name of the machine, shown at the bottom.
    """
    width = max(10.0, 1.7 * max(len(rows) for _, rows in measured))
    figure = Figure(figsize=(width, 4.2 * len(measured) + 0.8), layout=ConstrainedLayoutEngine(h_pad=0.12))
    figure.suptitle("How many times as fast?", fontsize=17, fontweight="bold")
    panels = figure.subplots(len(measured), squeeze=False).flat
    for axes, (table, rows) in zip(panels, measured, strict=True):
        (_draw_scaling if table.scaling else _draw_speedups)(axes, table, rows)
    figure.supxlabel(machine, fontsize=9, color="#555555")
    return figure


def _draw_speedups(axes: Axes, table: BenchmarkTable, rows: Mapping[str, Numbers]) -> None:
    columns = [column for column in table.columns if column.speedup]
    width = 0.8 / len(columns)
    for i, (column, color) in enumerate(zip(columns, COLORS, strict=False)):
        values = [column.value(numbers) for numbers in rows.values()]
        places = np.arange(len(rows)) + (i - (len(columns) - 1) / 2) * width
        heights = np.array([np.nan if value is None else value for value in values])
        # Bars start at 1, where both are equally fast: upwards is faster, downwards slower.
        axes.bar(places, heights - 1, width, bottom=1, color=color, label=column.title)
        for place, value in zip(places, values, strict=True):
            text = "–" if value is None else f"{value:.{column.digits}f}"
            height, above = (1.0, True) if value is None else (value, value >= 1)
            offset, align = ((0, 3), "bottom") if above else ((0, -3), "top")
            axes.annotate(text, (place, height), offset, textcoords="offset points", ha="center", va=align, fontsize=9)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    drawn = [value for column in columns for value in map(column.value, rows.values()) if value is not None]
    low, high = min(0.9, *drawn), max(2.0, *drawn)
    room = (high / low) ** 0.12  # for the numbers at the bars' ends
    axes.set_ylim(low / room, high * room)
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_xticks(range(len(rows)), [textwrap.fill(name, LABEL_WIDTH) for name in rows])
    axes.set_xlabel(table.header)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_title(f"{table.name}: ratio of times, above 1 is a gain", fontsize=13)
    axes.legend(ncols=len(columns), loc="upper center", bbox_to_anchor=(0.5, -0.24), frameon=False)


def _draw_scaling(axes: Axes, table: BenchmarkTable, rows: Mapping[str, Numbers]) -> None:
    times = [column for column in table.columns if column.under is None and column.scale == MILLISECONDS]
    for column, color in zip(times, COLORS, strict=False):
        measured = [(int(name), column.value(numbers)) for name, numbers in rows.items()]
        points = [(size, value) for size, value in measured if value is not None]
        axes.plot(*zip(*points, strict=True), marker="o", color=color, label=column.over)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([int(name) for name in rows], list(rows))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    axes.set_xlabel(table.header)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_title(f"{table.name}: time of a step", fontsize=13)
    axes.legend(frameon=False)
