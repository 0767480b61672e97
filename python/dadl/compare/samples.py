"""The test samples of runs: what was predicted for each, its error, and the region that it belongs to."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..documents import read_json
from ..errors import SettingsError
from ..metrics import shot_regions
from ..ranksim.bins import LabelBins
from ..runs.folder import PREDICTIONS, RESULTS

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

NAME, TARGET, PREDICTION, LABEL, CONFIDENCE = "name", "target", "prediction", "label", "confidence"
AGREEMENT = 1e-4
"""Errors of single samples are used only if their mean is the score up to this share of it."""


@dataclass(frozen=True)
class Predictions:
    """``predictions.csv``: the ``names`` of the test samples, and its numbers by ``columns``."""

    names: Sequence[str]
    columns: Mapping[str, Array]

    @property
    def target(self) -> Array | None:
        """The true value or class of each sample; None in what earlier versions wrote."""
        return self.columns.get(TARGET)

    def errors(self, column: str) -> Array | None:
        """Of each sample, such that their mean is the score in that column; None if it is no such mean."""
        target = self.target
        if target is None:
            return None
        if LABEL in self.columns:
            wrong = 100.0 * (self.columns[LABEL] != target)
            return {"error %": wrong, "accuracy %": 100.0 - wrong}.get(column)
        if PREDICTION in self.columns:
            error = np.abs(self.columns[PREDICTION] - target)
            return {"MAE": error, "MSE": error**2}.get(column)
        return None


def read_predictions(run: Path) -> Predictions | None:
    """What a run wrote about its test samples; None if there is no such file.

    Raises a :class:`.SettingsError` if it cannot be read.
    """
    path = run / PREDICTIONS
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv.reader(file)
        if NAME not in header or any(len(row) != len(header) for row in rows):
            raise ValueError(f"expected a column {NAME!r}, and as many fields in each row as columns")
        fields = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
        numbers = {key: np.array(fields[key], dtype=np.float64) for key in header if key != NAME}
    except (OSError, ValueError, csv.Error) as error:
        raise SettingsError(f"{path}: cannot be read ({str(error)[:200]}); train this run again") from None
    return Predictions(fields[NAME], numbers)


@dataclass(frozen=True)
class Regions:
    """The label bins of a run, with their training samples, and the regions that they form."""

    bins: LabelBins
    counts: list[int]
    many: int
    few: int

    @classmethod
    def of_run(cls, run: Path) -> "Regions | None":
        """From the facts and settings of a tested run; None if its labels have no bins."""
        results = read_json(run / RESULTS)
        facts, settings = (results.get(key) or {} for key in ("facts", "settings"))
        if "bins" not in facts or "counts" not in facts:
            return None
        many, few = (facts.get(key, settings.get(key)) for key in ("many", "few"))
        if not isinstance(many, int) or not isinstance(few, int):
            return None
        try:
            low, high, count = facts["bins"]
            bins = LabelBins(low, high, count, tuple(facts["edges"]) if "edges" in facts else None)
            edges = [bins.bounds(number)[1] for number in range(bins.count)]
            if len(facts["counts"]) != bins.count or not all(map(math.isfinite, edges)):
                raise ValueError(f"{len(facts['counts'])} counts of {bins.count} bins")
        except (TypeError, ValueError, IndexError) as error:
            raise SettingsError(f"{run}: its label bins cannot be read ({error}); train this run again") from None
        return cls(bins, facts["counts"], many, few)

    @cached_property
    def edges(self) -> Array:
        """The edges of all bins, ``[count + 1]``."""
        return np.array([self.bins.bounds(0)[0], *(self.bins.bounds(i)[1] for i in range(self.bins.count))])

    @cached_property
    def _bins_of(self) -> Mapping[str, Mask]:
        regions = shot_regions(self.counts, many=self.many, few=self.few)
        return {name: chosen.numpy() for name, chosen in regions.items()}

    def members(self, target: Array) -> Mapping[str, Mask]:
        """Which samples belong to each region."""
        numbers = self.bins.numbers(torch.from_numpy(target)).numpy()
        return {name: chosen[numbers] for name, chosen in self._bins_of.items()}

    def training(self, region: str) -> int:
        """The number of training samples in a region."""
        return int(np.array(self.counts)[self._bins_of[region]].sum())

    def labels(self, region: str) -> str:
        """The labels of a region, ``"below 20 and above 61"``; of more than two stretches only the outer ends."""
        chosen = np.concatenate([[False], self._bins_of[region], [False]])
        starts, ends = (chosen[1:] & ~chosen[:-1]).nonzero()[0], (~chosen[1:] & chosen[:-1]).nonzero()[0]
        if not len(starts):
            return "none"
        stretches = [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
        if len(stretches) <= 2:
            return " and ".join(self._stretch(*stretch) for stretch in stretches)
        return f"{self._stretch(stretches[0][0], stretches[-1][1])}, in {len(stretches)} stretches"

    def _stretch(self, start: int, end: int) -> str:
        if (start, end) == (0, self.bins.count):
            return f"{self.edges[0]:.4g} to {self.edges[-1]:.4g}"
        if start == 0:
            return f"below {self.edges[end]:.4g}"
        if end == self.bins.count:
            return f"above {self.edges[start]:.4g}"
        return f"{self.edges[start]:.4g} to {self.edges[end]:.4g}"


def row_errors(predictions: Predictions, members: Mask | None, row: str, column: str, score: float) -> Array | None:
    """The errors of the test samples in a row of the scores; None if their mean is not the ``score``.

    ``members``: which samples belong to the row; None if that is not known.
    """
    errors = predictions.errors(column)
    if errors is None or (members is None and row != "all"):
        return None
    chosen = errors if members is None else errors[members]
    if not len(chosen) or not math.isclose(float(chosen.mean()), score, rel_tol=AGREEMENT):
        return None
    return chosen
