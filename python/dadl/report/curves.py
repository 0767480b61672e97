"""Learning curves. Training losses that are defined in different ways have axes of their own."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..training.loop import VALIDATION
from .arm import Arm
from .figure import PAGE, Panel, dress, new_figure, style, svg
from .results import Run

NOT_CURVES = ("epoch", "step", "lr", "seconds")
LOSS = "loss"
LOG_RANGE = 30  # losses with a larger range get a logarithmic axis, which shows the end of training
NOT_OF_THE_LOSS = frozenset(
    (
        *("data", "split", "seed", "split_seed", "val_fraction", "many", "few", "image_size", "outside"),
        *("epochs", "batch_size", "lr", "accumulate", "precision", "patience", "checkpoint_every", "keep", "criterion"),
        *("hidden", "backbone", "network", "fine_tune", "augment", "keep_positions", "weight_decay", "decimal"),
        *("thousands", "missing", "unknown", "retrain_from", "flip"),
    )
)
"""Settings that leave the definition of the training loss as it is. Any other that differs makes it another one."""


@dataclass(frozen=True)
class Curve:
    """A quantity over the epochs of a run; ``best_epoch`` is marked where there is one."""

    epochs: Sequence[float]
    values: Sequence[float]
    best_epoch: int | None


def curve_panels(name: str, arms: Sequence[Arm], first: str) -> list[Panel]:
    """Of every quantity that epochs log: losses first, then the validation score ``first``, then all others."""
    quantities = dict.fromkeys(
        key for arm in arms for run in arm.curves for epoch in run.history for key in epoch if key not in NOT_CURVES
    )
    order = [LOSS, VALIDATION + first]
    panels = []
    for quantity in sorted(quantities, key=lambda key: order.index(key) if key in order else len(order)):
        groups = _by_loss(arms) if quantity == LOSS else {"": list(arms)}
        for definition, group in groups.items():
            label = "Training loss" if quantity == LOSS else quantity
            title = f"{label}: {', '.join(arm.name for arm in group)}" if len(groups) > 1 else label
            series = {arm.index: [_curve(run, quantity) for run in arm.curves] for arm in group}
            panels.append(Panel(title, _draw(f"{name} {quantity} {definition}", series, title)))
    return panels


def _by_loss(arms: Sequence[Arm]) -> Mapping[str, list[Arm]]:
    """Arms whose training losses are defined alike."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        definitions = [
            {key: value for key, value in run.settings.items() if key not in NOT_OF_THE_LOSS} for run in arm.curves[:1]
        ]
        groups.setdefault(json.dumps(definitions, sort_keys=True), []).append(arm)
    return groups


def _curve(run: Run, quantity: str) -> Curve:
    points = [epoch for epoch in run.history if quantity in epoch]
    return Curve([epoch["epoch"] for epoch in points], [epoch[quantity] for epoch in points], run.best_epoch)


def _draw(name: str, series: Mapping[int, Sequence[Curve]], title: str) -> Markup:
    figure = new_figure()
    axes = dress(figure.subplots())
    for index, curves in series.items():
        color, line = style(index)
        for curve in curves:
            axes.plot(curve.epochs, curve.values, color=color, linestyle=line, linewidth=1.5)
            best = [(x, y) for x, y in zip(curve.epochs, curve.values, strict=True) if x == curve.best_epoch]
            if best:
                axes.plot(*best[0], "o", color=color, markeredgecolor=PAGE, markersize=8, zorder=3)
            elif len(curve.values) == 1:  # a line of one point is not seen
                axes.plot(curve.epochs, curve.values, "_", color=color, markersize=12)
    finite = [y for curves in series.values() for curve in curves for y in curve.values if math.isfinite(y)]
    if finite and min(finite) > 0 and max(finite) > LOG_RANGE * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("log scale")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return svg(figure, name, f"{title} over the epochs, a line for each run")
