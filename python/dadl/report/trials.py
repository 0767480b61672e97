"""The trials that chose an arm's settings: validation against each tuned setting."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..comparison.results import Trial
from .arm import Arm
from .figure import Panel, dress, new_figure, plain_text, style, svg


def trial_panels(name: str, arms: Sequence[Arm], criterion: str) -> list[Panel]:
    """A panel for each tuned setting; what diverged is a cross at the upper edge, what was chosen is filled."""
    settings = dict.fromkeys(key for arm in arms for key in arm.arm.tuned)
    panels = []
    for setting in settings:
        tried = [(arm, chosen, trial) for arm in arms for chosen, trial in _trials(arm) if setting in trial.settings]
        if tried:
            shown = dict.fromkeys(arm.name for arm, *_ in tried)
            told = f"Validation {criterion} of the trials of {', '.join(shown)} against {setting}"
            panels.append(Panel(setting, svg(_draw(setting, tried, criterion), f"{name} trials {setting}", told)))
    return panels


def _draw(setting: str, tried: Sequence[tuple[Arm, bool, Trial]], criterion: str) -> Figure:
    figure = new_figure()
    axes = dress(figure.subplots())
    values = [trial.settings[setting] for *_, trial in tried]
    texts = list(dict.fromkeys(map(str, values)))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        places = [float(value) for value in values]
        positive = [place for place in places if place > 0]
        if min(places) > 0 and max(places) > 10 * min(places):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(places) < 100 * min(places) else (1,)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif min(places) == 0 and positive:
            axes.set_xscale("symlog", linthresh=min(positive))
    else:
        places = [float(texts.index(str(value))) for value in values]
        axes.set_xticks(range(len(texts)), [plain_text(text) for text in texts])
    for x, (arm, chosen, trial) in zip(places, tried, strict=True):
        color = style(arm.index)[0]
        if math.isfinite(trial.score):
            axes.plot(x, trial.score, "o", color=color, markerfacecolor=color if chosen else "none")
        else:
            axes.plot(x, 1, "x", color=color, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set_xlabel(plain_text(setting))
    axes.set_ylabel(plain_text(f"validation {criterion}"))
    return figure


def _trials(arm: Arm) -> list[tuple[bool, Trial]]:
    """Whether a trial's settings were chosen, and the trial."""
    found = []
    for split, trials in arm.arm.trials.items():
        chosen = arm.arm.chosen.get(split, {})
        same = lambda trial, chosen=chosen: chosen and all(trial.settings.get(k) == v for k, v in chosen.items())
        found += [(bool(same(trial)), trial) for trial in trials]
    return found
