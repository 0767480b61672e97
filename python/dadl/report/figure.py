"""What the figures of the page share: SVG with colours from the page, light or dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of text, ground and series."""

    ink: str
    page: str
    series: Sequence[str]


# Matplotlib cannot use CSS variables. It draws with these colours, which are replaced afterwards.
SCREEN = Theme("#010203", "#010204", [f"#0a000{i}" for i in range(7)])
PAPER = Theme("#1c1e21", "#ffffff", ["#0072b2", "#d55e00", "#009e73", "#b65c94", "#b07900", "#3d9fd6", "#606060"])
"""Where a figure stands alone, as a file: the colours of the light page."""
VARIABLES = {
    SCREEN.ink: "var(--ink)",
    SCREEN.page: "var(--page)",
    **{color: f"var(--color-{i})" for i, color in enumerate(SCREEN.series)},
}
INK, PAGE = SCREEN.ink, SCREEN.page
DASHES = ("", "6 2", "2 2", "6 2 2 2")
SIZE = (4.8, 3.0)

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Panel:
    """A figure of the page with its ``title``."""

    title: str
    svg: Markup


def color_variable(index: int) -> str:
    """The CSS colour of a series; colours repeat after seven, with other dashes."""
    return VARIABLES[style(index)[0]]


def dashes(index: int) -> str:
    """The ``stroke-dasharray`` of a series, empty for a solid line."""
    return DASHES[index // len(SCREEN.series) % len(DASHES)]


def style(index: int, theme: Theme = SCREEN) -> tuple[str, Any]:
    """Colour and line style of a series."""
    pattern = [float(length) for length in dashes(index).split()]
    return theme.series[index % len(theme.series)], (0, pattern) if pattern else "-"


def new_figure(height: float = SIZE[1], width: float = SIZE[0]) -> Figure:
    """An empty figure on the page's own ground."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure


def dress(axes: Axes, theme: Theme = SCREEN) -> Axes:
    """Axes in the colours of the theme, with faint horizontal lines."""
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.ink)
    axes.tick_params(which="both", colors=theme.ink)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(theme.ink)
    axes.grid(axis="y", color=theme.ink, alpha=0.15)
    axes.set_axisbelow(True)
    return axes


def svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an element of the page: text stays text, in the page's font; equal figures give equal elements.

    ``name`` is the page's own of it; ``description`` says what it shows to those who cannot see it.
    """
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.set("role", "img")
    root.set("aria-label", " ".join("".join(c if c.isprintable() else " " for c in description).split()))
    for child in root.findall("{http://www.w3.org/2000/svg}metadata"):
        root.remove(child)
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        group.attrib.pop("id", None)  # "axes_1" would be in every figure of the page
    text = re.sub("font-family: [^;]*; ", "", ElementTree.tostring(root, encoding="unicode"))
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return Markup(text)


def plain_text(text: str) -> str:
    """A name as it is, not as mathematics."""
    return text.replace("$", r"\$")
