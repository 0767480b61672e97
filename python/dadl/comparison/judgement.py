"""A comparison judged: its scores in the column of the criterion, the differences, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..checks import check
from ..documents import read_json
from ..options import Count
from ..runs.folder import RESULTS
from .numbers import span
from .results import Comparison
from .samples import Array, Regions, read_predictions, row_errors
from .statistics import Difference, Sampling, Values, differences
from .verdict import Verdict, verdict


class _Counted(TypedDict):
    test: Count


class _Region(_Counted, total=False):
    train: Count
    labels: list[tuple[float, float]]


@dataclass(frozen=True)
class RegionSize:
    """The fewest and the most ``test`` and ``train`` samples of a row over the splits, and the ranges of its labels."""

    test: tuple[int, int]
    train: tuple[int, int] | None = None
    labels: Sequence[tuple[float, float]] = ()

    @property
    def text(self) -> str:
        """``"42 test samples, 210 training samples, labels 3 to 20 and 61 to 90"``."""
        parts = [f"{span(*self.test)} test samples"]
        parts += [] if self.train is None else [f"{span(*self.train)} training samples"]
        if self.labels:
            named = [f"{low:.4g} to {high:.4g}" for low, high in self.labels]
            many = f"{self.labels[0][0]:.4g} to {self.labels[-1][1]:.4g} in {len(named)} stretches"
            parts.append(f"labels {' and '.join(named) if len(named) < 3 else many}")
        return ", ".join(parts)


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
    row, column = comparison.criterion_cell
    scores = comparison.values(column)
    sampling = _sampling(comparison, scores, column)
    share = comparison.test_share if math.isfinite(comparison.test_share) else 0.0  # nothing has been tested yet
    found = differences(scores, comparison.reference, column, test_share=share, sampling=sampling)
    sizes = _sizes(comparison)
    samples = {name: size.test for name, size in sizes.items()}
    told = verdict(found, reference=comparison.reference, row=row, rows=list(scores), samples=samples)
    return Judgement(row, column, scores, found, sizes, told)


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
            if predictions is None:
                return {}
            names.add(tuple(predictions.names))
            members = regions.members(predictions.target) if regions and predictions.target is not None else {}
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


def _sizes(comparison: Comparison) -> dict[str, RegionSize]:
    """The samples of each row, from the runs of the reference, one for each split."""
    reference = next(arm for arm in comparison.arms if arm.name == comparison.reference)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in {unit.split: run for unit, run in reference.runs.items()}.values():
        regions = read_json(run / RESULTS).get("regions", {})
        check(regions, Mapping[str, _Region], f"{run / RESULTS}: regions")
        for row, region in regions.items():
            found.setdefault(row, []).append(region)
    return {row: _size(regions) for row, regions in found.items()}


def _size(regions: Sequence[Mapping[str, Any]]) -> RegionSize:
    extremes = lambda key: (min(region[key] for region in regions), max(region[key] for region in regions))
    labels = [region.get("labels", ()) for region in regions]
    same = all(ranges == labels[0] for ranges in labels)
    train = extremes("train") if all("train" in region for region in regions) else None
    return RegionSize(extremes("test"), train, [(low, high) for low, high in labels[0]] if same else ())
