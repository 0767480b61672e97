"""A comparison judged: its scores in the column of the criterion, the differences, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .comparison import Comparison
from .numbers import span
from .samples import Array, Regions, read_predictions, row_errors
from .statistics import Difference, Sampling, Values, differences
from .verdict import Verdict, verdict


@dataclass(frozen=True)
class RegionSize:
    """The fewest and the most ``test`` and ``training`` samples of a row over the splits, and its ``labels``."""

    test: tuple[int, int]
    training: tuple[int, int] | None = None
    labels: str = ""

    @property
    def text(self) -> str:
        """``"42 test samples, 210 training samples, labels above 61"``."""
        parts = [f"{span(*self.test)} test samples"]
        parts += [] if self.training is None else [f"{span(*self.training)} training samples"]
        return ", ".join([*parts, *([f"labels {self.labels}"] if self.labels else [])])


@dataclass(frozen=True)
class Judgement:
    """What is said of a comparison in one ``column`` of its scores, chosen by ``row`` of the criterion."""

    row: str
    column: str
    scores: Mapping[str, Values]
    """``scores[row][arm][unit]``."""
    differences: Sequence[Difference]
    sizes: Mapping[str, RegionSize]
    verdict: Verdict

    def difference(self, arm: str, row: str) -> Difference | None:
        """That of an arm in a row; None where there is nothing to compare."""
        return next((d for d in self.differences if (d.arm, d.row) == (arm, row)), None)


def judge(comparison: Comparison) -> Judgement:
    """The verdict on a comparison, from its scores and the test samples of its runs.

    Raises a :class:`.SettingsError` if files of a run cannot be read.
    """
    row, column = criterion_of(comparison)
    scores = scores_of(comparison, column)
    sampling = _sampling(comparison, scores, column)
    found = differences(scores, comparison.reference, column, test_share=comparison.test_share, sampling=sampling)
    sizes = _sizes(comparison, list(scores))
    samples = {name: size.test for name, size in sizes.items()}
    told = verdict(found, reference=comparison.reference, row=row, rows=list(scores), samples=samples)
    return Judgement(row, column, scores, found, sizes, told)


def columns_of(comparison: Comparison) -> list[str]:
    """All columns of the scores."""
    tables = [table for arm in comparison.arms for table in arm.scores.values()]
    return list(dict.fromkeys(column for table in tables for cells in table.values() for column in cells))


def criterion_of(comparison: Comparison) -> tuple[str, str]:
    """Row and column of the criterion; without one, the first score."""
    tables = [table for arm in comparison.arms for table in arm.scores.values()]
    cells = [(row, column) for table in tables for row, cells in table.items() for column in cells]
    first = cells[0] if cells else ("all", "")
    return next(((row, column) for row, column in cells if f"{row} {column}" == comparison.criterion), first)


def scores_of(comparison: Comparison, column: str) -> dict[str, Values]:
    """``scores[row][arm][unit]`` in a column."""
    tables = [table for arm in comparison.arms for table in arm.scores.values()]
    rows = dict.fromkeys(row for table in tables for row, cells in table.items() if column in cells)
    return {
        row: {
            arm.name: {unit: table.get(row, {}).get(column, math.nan) for unit, table in arm.scores.items()}
            for arm in comparison.arms
        }
        for row in rows
    }


def _sampling(comparison: Comparison, scores: Mapping[str, Values], column: str) -> dict[tuple[str, str], Sampling]:
    """The chance of the test samples, for comparisons in one split whose scores are means over samples."""
    arms = {arm.name: arm for arm in comparison.arms}
    units = [unit for unit in arms[comparison.reference].runs if all(unit in arm.runs for arm in arms.values())]
    if len({unit.split for unit in units}) != 1:
        return {}
    regions = Regions.of_run(arms[comparison.reference].runs[units[0]])
    errors: dict[tuple[str, str], list[Array]] = {}
    names: set[tuple[str, ...]] = set()
    for arm in arms.values():
        for unit in units:
            predictions = read_predictions(arm.runs[unit])
            if predictions is None or predictions.target is None:
                return {}
            names.add(tuple(predictions.names))
            members = regions.members(predictions.target) if regions else {}
            for row, values in scores.items():
                found = row_errors(predictions, members.get(row), row, column, values[arm.name].get(unit, math.nan))
                if found is not None:
                    errors.setdefault((arm.name, row), []).append(found)
    if len(names) != 1:  # other test samples cannot be paired
        return {}
    whole = {key: of_units for key, of_units in errors.items() if len(of_units) == len(units)}
    return {
        (arm, row): Sampling.of(of_units, whole[comparison.reference, row])
        for (arm, row), of_units in whole.items()
        if arm != comparison.reference and (comparison.reference, row) in whole
    }


def _sizes(comparison: Comparison, rows: Sequence[str]) -> dict[str, RegionSize]:
    """The samples of each row, from the runs of the reference, one for each split."""
    reference = next(arm for arm in comparison.arms if arm.name == comparison.reference)
    of_splits = list({unit.split: run for unit, run in reference.runs.items()}.values())
    everything = comparison.sizes.get("test", 0)
    whole = {row: RegionSize((everything, everything)) for row in rows if row == "all" or len(rows) == 1}
    found: dict[str, list[tuple[int, int, str]]] = {}
    for run in of_splits:
        regions, predictions = Regions.of_run(run), read_predictions(run)
        if regions is None or predictions is None or predictions.target is None:
            return whole
        for row, chosen in regions.members(predictions.target).items():
            if row in rows:
                found.setdefault(row, []).append((int(chosen.sum()), regions.training(row), regions.labels(row)))
    sizes = {}
    for row, of_row in found.items():
        test, training, labels = zip(*of_row, strict=True)
        ranges = (min(test), max(test)), (min(training), max(training))
        sizes[row] = RegionSize(*ranges, labels[0] if len(set(labels)) == 1 else "")
    return whole | sizes
