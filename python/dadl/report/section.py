"""A comparison as the template of the page shows it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..comparison.judgement import Judgement, judge
from ..comparison.numbers import with_error
from ..comparison.results import Comparison, Unit
from ..comparison.statistics import Values, shared_units
from ..comparison.verdict import row_name
from ..metrics import higher_is_better
from ..output import mean_and_standard_error
from .arm import Arm
from .chance import difference_panels
from .curves import curve_panels
from .figure import Panel, svg
from .results import Run
from .samples import TestSamples, class_panels, label_panels, prediction_panels
from .trials import trial_panels


@dataclass(frozen=True)
class Facts:
    """Facts about several things: those ``equal`` for all, and ``rows`` with the other facts, named in ``columns``."""

    equal: Mapping[str, str]
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, facts: Mapping[str, Mapping[str, str]]) -> "Facts":
        names = list(dict.fromkeys(name for of_one in facts.values() for name in of_one))
        by_name = {name: [of_one.get(name, "–") for of_one in facts.values()] for name in names}
        columns = [name for name in names if len(set(by_name[name])) > 1]
        return cls(
            {name: by_name[name][0] for name in names if name not in columns},
            columns,
            {label: [by_name[name][i] for name in columns] for i, label in enumerate(facts)},
        )


@dataclass(frozen=True)
class Cell:
    """An arm in one row of the scores: its ``mean``, its ``difference`` to the reference, and whether it is ``best``.

    ``side``: ``"better"`` or ``"worse"`` where the difference is found.
    """

    arm: Arm
    mean: str
    difference: str
    side: str
    best: bool


@dataclass(frozen=True)
class RowTable:
    """All arms in one row of the scores."""

    title: str
    size: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Sentence:
    """Of the verdict, about an arm."""

    text: str
    arm: Arm | None = None


class Section:
    """A comparison and the results of its runs, ``runs[arm][unit]``."""

    def __init__(
        self,
        comparison: Comparison,
        runs: Mapping[str, Mapping[Unit, Run]],
        unfinished: Mapping[str, Sequence[Run]],
        pictures: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.comparison, self.name = comparison, comparison.recipe
        self.arms = [
            Arm(i, arm, runs.get(arm.name, {}), unfinished.get(arm.name, ())) for i, arm in enumerate(comparison.arms)
        ]
        self.runs = [run for arm in self.arms for run in arm.runs.values()]
        self.judgement: Judgement = judge(comparison)
        self.failures = [
            f"{failure.arm}, {_place(failure.folder)}: {failure.reason}" for failure in comparison.failures
        ]
        self.unfinished = [run for arm in self.arms for run in arm.unfinished]
        self.pictures = [
            Panel(title, svg(figure, f"{self.name} picture {i}", title)) for i, (title, figure) in enumerate(pictures)
        ]
        tests = {json.dumps(run.samples.get("test")) for run in self.runs}
        self.comparable = len(tests) <= 1
        self.settings = Facts.of({arm.name: _settings(arm) for arm in self.arms if arm.runs})
        self.samples = Facts.of({run.name: _texts(run.samples) for run in self.runs})
        self.environment = Facts.of({run.name: _texts(run.environment) for run in self.runs})
        self.curves = curve_panels(self.name, [arm for arm in self.arms if arm.runs], self.criterion)
        self.trials = trial_panels(self.name, self.arms, self.criterion)
        self.differences = (
            difference_panels(self.name, self.judgement, self.arms, comparison.reference) if self.comparable else []
        )
        samples = TestSamples.read(self.arms) if self.comparable else TestSamples([], None)
        self.by_label = label_panels(self.name, samples)
        self.predictions = prediction_panels(self.name, samples)
        self.classes = class_panels(self.name, samples)

    @property
    def criterion(self) -> str:
        return f"{self.judgement.row} {self.judgement.column}"

    @property
    def direction(self) -> str:
        return "higher is better" if higher_is_better(self.judgement.column) else "lower is better"

    @property
    def heading(self) -> str:
        """The recipe and its data."""
        data = self.settings.equal.get("data")
        return f"{self.name}, {data.rpartition('/')[2]}" if data else self.name

    @cached_property
    def sentences(self) -> Sequence[Sentence]:
        """The verdict; of a single arm, its score."""
        row, column = self.judgement.row, self.judgement.column
        if not column:
            return [Sentence("No test scores.")]
        if not self.comparable:
            counts = ", ".join(dict.fromkeys(_text(run.samples.get("test")) for run in self.runs))
            return [Sentence(f"Not compared: the runs were tested on different numbers of samples ({counts}).")]
        if len(self.arms) == 1:
            cell = self._cell(self.arms[0], self.judgement.scores[row], row, [])
            return [Sentence(f"{self.arms[0].name} has a test {column} of {cell.mean}.", self.arms[0])]
        by_name = {arm.name: arm for arm in self.arms}
        told = self.judgement.verdict.sentences
        return [Sentence(text, by_name.get(arm)) for arm, text in told.items()]

    @property
    def notes(self) -> Sequence[str]:
        return self.judgement.verdict.notes if self.comparable and len(self.arms) > 1 else ()

    @property
    def caution(self) -> str:
        """A warning to read before comparing numbers; empty if there is none."""
        if self.comparable and "data" in self.settings.columns:
            return "The runs use different data: compare their numbers only if the test parts are the same."
        return ""

    @cached_property
    def tables(self) -> Sequence[RowTable]:
        """The column of the criterion, a table for each row of the scores."""
        return self._tables(self.judgement.column)

    @cached_property
    def other_columns(self) -> Mapping[str, Sequence[RowTable]]:
        return {column: self._tables(column) for column in self.comparison.columns if column != self.judgement.column}

    @property
    def several_splits(self) -> bool:
        return len({unit.split for arm in self.arms for unit in arm.runs}) > 1

    @property
    def several_losses(self) -> bool:
        return sum(panel.title.startswith("Training loss") for panel in self.curves) > 1

    @property
    def missing(self) -> Sequence[str]:
        """The planned runs that have neither a test nor failed."""
        failed = {failure.folder for failure in self.comparison.failures}
        lacking = {
            arm.name: [
                f"split {unit.split}, seed {unit.seed}"
                for unit in self.comparison.planned
                if unit not in arm.arm.runs
                and arm.arm.folder / f"split-{unit.split}" / f"seed-{unit.seed}" not in failed
            ]
            for arm in self.arms
        }
        return [f"{name}: no test yet of {'; '.join(units)}" for name, units in lacking.items() if units]

    @property
    def every_run(self) -> Sequence[tuple[str, Sequence[str]]]:
        row, column = self.judgement.row, self.judgement.column
        return [
            (
                run.name,
                [
                    str(len(run.history)),
                    "–" if run.best_epoch is None else str(run.best_epoch),
                    duration(run.seconds),
                    with_error(run.test.get(row, {}).get(column, math.nan), math.nan),
                ],
            )
            for run in self.runs
        ]

    @property
    def chosen(self) -> Facts:
        """The tuned settings of each arm, as chosen in each split in turn."""
        tuned = list(dict.fromkeys(key for arm in self.arms for values in arm.arm.chosen.values() for key in values))
        chosen = {arm.name: arm.arm.chosen for arm in self.arms if arm.arm.chosen}
        own = lambda splits, key: [_text(splits[split][key]) for split in sorted(splits) if key in splits[split]]
        return Facts(
            {}, tuned, {name: [", ".join(own(splits, key)) or "–" for key in tuned] for name, splits in chosen.items()}
        )

    def _tables(self, column: str) -> list[RowTable]:
        told = column == self.judgement.column
        tables = []
        for row, of_arms in (self.judgement.scores if told else self.comparison.values(column)).items():
            size = self.judgement.sizes.get(row)
            means = {name: _mean(of_arms, name)[0] for name in of_arms}
            finite = [mean for mean in means.values() if math.isfinite(mean)]
            best = (max if higher_is_better(column) else min)(finite) if len(finite) > 1 and self.comparable else None
            cells = [self._cell(arm, of_arms, row if told else "", [] if best is None else [best]) for arm in self.arms]
            if finite:
                tables.append(RowTable(f"{row_name(row)} {column}", "" if size is None else size.text, cells))
        return tables

    def _cell(self, arm: Arm, of_arms: Values, row: str, best: Sequence[float]) -> Cell:
        mean, error = _mean(of_arms, arm.name)
        difference = self.judgement.difference(arm.name, row) if self.comparable else None
        if arm.name == self.comparison.reference and row and len(self.arms) > 1:
            text = "reference"
        elif difference is None:
            text = ""
        elif difference.same:
            text = "the same"
        else:
            text = ("+" if difference.mean > 0 else "") + with_error(difference.mean, difference.error)
        side = ("better" if difference.better else "worse") if difference is not None and difference.found else ""
        return Cell(arm, with_error(mean, error), text, side, mean in best)


def _mean(of_arms: Values, name: str) -> tuple[float, float]:
    """Mean and standard error over the seeds; with several splits over the splits.

    Of the units that are compared, so that means differ by the differences; of all its own if none is.
    """
    shared = shared_units(of_arms)[0] if len(of_arms) > 1 else []
    of_splits: dict[int, list[float]] = {}
    for unit, value in of_arms[name].items():
        if math.isfinite(value) and (not shared or unit in shared):
            of_splits.setdefault(unit.split, []).append(value)
    if not of_splits:
        return math.nan, math.nan
    (first, *others) = of_splits.values()
    return mean_and_standard_error([sum(part) / len(part) for part in of_splits.values()] if others else first)


def _settings(arm: Arm) -> dict[str, str]:
    """The settings of an arm's runs, defaults included; several values where its runs differ."""
    runs = list(arm.runs.values())
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return {
        str(name): ", ".join(dict.fromkeys(_text(run.settings[name]) for run in runs if name in run.settings))
        for name in names
    }


def _place(folder: Path) -> str:
    """``"split 0, seed 1"`` for ``split-0/seed-1``."""
    return f"{folder.parent.name}, {folder.name}".replace("-", " ")


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): _text(value) for key, value in facts.items()}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
