"""``dadl report``: one page that compares runs, made from the files in their folders."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ProblemsError
from ..files import check_output_file, write_text
from ..metrics import REGIONS, higher_is_better
from ..output import mean_and_standard_error
from .figure import Curve, color_variable, dashes, draw_bars, draw_curves
from .results import Run, read_results

CURVES_IN_SIGHT = 3  # the others are collapsed
NOT_CURVES = ("epoch", "step", "lr", "seconds")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, under one ``label``; ``index`` determines their colour."""

    index: int
    label: str
    runs: Sequence[Run]

    @property
    def color(self) -> str:
        return color_variable(self.index)

    @property
    def dashes(self) -> str:
        return dashes(self.index)

    def statistic(self, row: str, column: str) -> tuple[float, float] | None:
        """Mean and standard error of a test metric; None if no run of the group has it."""
        if not any(column in run.test.get(row, {}) for run in self.runs):
            return None
        return mean_and_standard_error([run.test.get(row, {}).get(column, math.nan) for run in self.runs])


@dataclass(frozen=True)
class Metric:
    """A column of the table of test metrics: the statistics of every group, and which are best."""

    row: str
    column: str
    statistics: Sequence[tuple[float, float] | None]

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.column)

    @cached_property
    def ranked(self) -> list[int]:
        """Groups with a number, best first."""
        means = {i: cell[0] for i, cell in enumerate(self.statistics) if cell and not math.isnan(cell[0])}
        return sorted(means, key=means.__getitem__, reverse=self.higher_is_better)

    def is_best(self, index: int) -> bool:
        """Whether no group has a better number; false if there is nothing to compare with."""
        return len(self.ranked) > 1 and self.mean(index) == self.mean(self.ranked[0])

    def mean(self, index: int) -> float:
        cell = self.statistics[index]
        return cell[0] if cell else math.nan

    def error(self, index: int) -> float:
        cell = self.statistics[index]
        return cell[1] if cell else math.nan

    def number(self, value: float) -> str:
        """Format with as many decimals as give the largest number of the column four digits."""
        largest = max((abs(self.mean(i)) for i in self.ranked if math.isfinite(self.mean(i))), default=0.0)
        digits = 3 - math.floor(math.log10(largest)) if largest else 3
        return "NaN" if math.isnan(value) else f"{value:.{max(0, digits)}f}"

    def cell(self, index: int) -> str:
        if self.statistics[index] is None:
            return "–"
        error = self.error(index)
        return self.number(self.mean(index)) + ("" if math.isnan(error) else f" ± {self.number(error)}")


@dataclass(frozen=True)
class Differences:
    """Facts about several things: those ``equal`` for all, and ``rows`` with the other facts, named in ``columns``."""

    equal: Mapping[str, str]
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, facts: Mapping[str, Mapping[str, str]]) -> "Differences":
        names = list(dict.fromkeys(name for of_one in facts.values() for name in of_one))
        by_name = {name: [of_one.get(name, "–") for of_one in facts.values()] for name in names}
        columns = [name for name in names if len(set(by_name[name])) > 1]
        return cls(
            {name: by_name[name][0] for name in names if name not in columns},
            columns,
            {label: [by_name[name][i] for name in columns] for i, label in enumerate(facts)},
        )


@dataclass(frozen=True)
class Panel:
    """A figure of a quantity, with its title."""

    quantity: str
    title: str
    svg: Markup


class Section:
    """The runs of one recipe, as the template shows them."""

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name, self.runs, self.groups = name, runs, _group(runs)
        tests = {_text(run.samples.get("test")) for run in runs}
        self.comparable = len(tests) == 1
        columns: dict[str, dict[str, None]] = {}
        for run in runs:
            for row, cells in run.test.items():
                columns.setdefault(row, {}).update(dict.fromkeys(cells))
        self.rows = {
            row: [Metric(row, column, [group.statistic(row, column) for group in self.groups]) for column in of_row]
            for row, of_row in columns.items()
        }
        self.metrics = [metric for of_row in self.rows.values() for metric in of_row]
        self.settings = Differences.of({group.label: _settings(group) for group in self.groups})
        self.samples = Differences.of({run.name: _texts(run.samples) for run in runs})
        self.environment = Differences.of({run.name: _texts(run.environment) for run in runs})
        self.curves = _curves(name, self.groups)
        self.bars = self._bars()

    def name_of(self, metric: Metric) -> str:
        return f"{metric.column} ({metric.row})" if len(self.rows) > 1 else metric.column

    @property
    def summary(self) -> str:
        """Which configuration is best on the first test metric, and how certain that is."""
        if not self.metrics:
            return "No test metrics."
        metric = self.metrics[0]
        name, ranked, labels = self.name_of(metric), metric.ranked, [group.label for group in self.groups]
        if not ranked:
            return f"No run has a number for the test {name}."
        if not self.comparable:
            counts = ", ".join(dict.fromkeys(_text(run.samples.get("test")) for run in self.runs))
            return f"Not compared: the runs were tested on different numbers of samples ({counts})."
        best = ranked[0]
        if len(ranked) == 1:
            others = "" if len(labels) == 1 else "; the others have none"
            return f"{labels[best]} has a test {name} of {metric.cell(best)}{others}."
        superlative, side = ("highest", "above") if metric.higher_is_better else ("lowest", "below")
        second = ranked[1]
        gap = abs(metric.mean(best) - metric.mean(second))
        if gap == 0:
            shared = [labels[i] for i in ranked if metric.is_best(i)]
            together = f"{', '.join(shared[:-1])} and {shared[-1]}"
            return f"{together} share the {superlative} test {name}, {metric.number(metric.mean(best))}."
        base = abs(metric.mean(second))
        percent = f" ({100 * gap / base:.1f} %)" if base and "%" not in name else ""
        lead = f"{labels[best]} has the {superlative} test {name}, {metric.cell(best)}"
        return f"{lead}: {metric.number(gap)}{percent} {side} {labels[second]}, the next. {self._surety(gap, metric)}"

    def _surety(self, gap: float, metric: Metric) -> str:
        error = math.hypot(*(metric.error(i) for i in metric.ranked[:2]))
        if math.isnan(error):
            return "Without several seeds of both, this difference may be chance."
        verdict = ", so it may be chance" if gap < 2 * error else ""
        return f"The standard error of this difference is {metric.number(error)}{verdict}."

    @property
    def caution(self) -> str:
        """A warning to read before comparing numbers; empty if there is none."""
        if self.comparable and "data" in self.settings.columns:
            return "The runs use different data: compare their numbers only if the test parts are the same."
        return ""

    def _bars(self) -> list[Panel]:
        rows = [row for row in REGIONS if row in self.rows]
        if rows in ([], ["all"]):
            return []
        columns = dict.fromkeys(metric.column for row in rows for metric in self.rows[row])
        nothing = (math.nan, math.nan)
        return [
            Panel(
                column,
                f"{column}, {'higher' if higher_is_better(column) else 'lower'} is better",
                draw_bars(
                    f"{self.name} bars {column}",
                    rows,
                    [[group.statistic(row, column) or nothing for row in rows] for group in self.groups],
                ),
            )
            for column in columns
        ]


class Unfinished:
    """Runs without results yet, and how far they have come."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.groups = [Group(i, run.name, [run]) for i, run in enumerate(runs)]
        self.curves = _curves("unfinished", self.groups)


def write_report(runs: Sequence[Path], output: Path) -> None:
    """Compare runs on one self-contained HTML page.

    Args:
        runs: folders written by ``dadl train``. Runs of one recipe are compared with each other, and runs that differ
            only in the seed are averaged. Unfinished runs are shown by their learning curves.
        output: the file to write; its folder is created if necessary.

    Raises:
        ProblemsError: no runs, a folder that is not a run or is given twice, results that cannot be read, or an
            ``output`` that is a folder; with a line for each problem. Then nothing is written.
        OutputError: the page cannot be written.
    """
    problems: list[str] = []
    if not runs:
        problems.append("no runs: name at least one folder that `dadl train` wrote")
    if output.is_dir():
        problems.append(f"{output}: is a folder; name a file for the report, such as {output / 'report.html'}")
    else:
        check_output_file(output)
    folders = [folder.resolve() for folder in runs]
    for folder, times in Counter(folders).items():
        if times > 1:
            problems.append(f"{folder}: given {times} times; name every run once")
    shared = Counter(folder.name for folder in folders)
    found = [
        read_results(given, folder.name if shared[folder.name] == 1 else str(given), problems)
        for given, folder in zip(runs, folders, strict=True)
    ]
    if problems:
        raise ProblemsError(problems)
    finished = [run for run in found if run is not None and run.finished]
    unfinished = [run for run in found if run is not None and not run.finished]
    recipes = dict.fromkeys(run.recipe for run in finished)
    environment = Environment(
        loader=PackageLoader("dadl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        sections=[Section(recipe, [run for run in finished if run.recipe == recipe]) for recipe in recipes],
        unfinished=Unfinished(unfinished) if unfinished else None,
        curves_in_sight=CURVES_IN_SIGHT,
        duration=_duration,
        nan=math.nan,
    )
    write_text(output, page, errors="replace")  # file names may not be valid UTF-8


def _group(runs: Iterable[Run]) -> list[Group]:
    """Group runs with equal settings except for the seed. A repeated seed gets its own group, because it says nothing
    about the spread over seeds."""
    repetitions: Counter[str] = Counter()
    members: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        own, common = (
            json.dumps(settings, sort_keys=True)
            for settings in (run.settings, {key: value for key, value in run.settings.items() if key != "seed"})
        )
        members.setdefault((common, repetitions[own]), []).append(run)
        repetitions[own] += 1
    labels = [_label(group) for group in members.values()]
    return [
        Group(i, label if labels.count(label) == 1 else ", ".join(run.name for run in group), group)
        for i, (label, group) in enumerate(zip(labels, members.values(), strict=True))
    ]


def _label(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in equal).rstrip("0123456789-_. ")
    return f"{common or ', '.join(names)} ({len(runs)} seeds)"


def _settings(group: Group) -> dict[str, str]:
    seeds = [_text(run.settings["seed"]) for run in group.runs if "seed" in run.settings]
    return _texts(group.runs[0].settings) | ({"seed": ", ".join(seeds)} if seeds else {})


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): _text(value) for key, value in facts.items()}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _curves(name: str, groups: Sequence[Group]) -> list[Panel]:
    quantities = dict.fromkeys(key for group in groups for run in group.runs for epoch in run.history for key in epoch)
    return [
        Panel(
            quantity,
            "Training loss" if quantity == "loss" else quantity,
            draw_curves(f"{name} {quantity}", [[_curve(run, quantity) for run in group.runs] for group in groups]),
        )
        for quantity in quantities
        if quantity not in NOT_CURVES
    ]


def _curve(run: Run, quantity: str) -> Curve:
    points = [epoch for epoch in run.history if quantity in epoch]
    return Curve([epoch["epoch"] for epoch in points], [epoch[quantity] for epoch in points], run.best_epoch)
