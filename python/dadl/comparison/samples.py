"""The test samples of runs: what was predicted for each, its error, and the region that it belongs to."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from ..checks import check
from ..documents import read_json
from ..errors import SettingsError
from ..metrics import shot_regions
from ..options import Count, between
from ..ranksim.labels.bins import MOST_BINS, LabelBins
from ..runs.folder import PREDICTIONS, RESULTS

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

NAME, TARGET, PREDICTION, LABEL, CONFIDENCE = "name", "target", "prediction", "label", "confidence"
WORDS = (NAME, "class")
"""The columns of ``predictions.csv`` that hold no numbers."""

AGREEMENT = 1e-4
"""Errors of single samples are used only if their mean is the score up to this share of it."""


class _BinFacts(TypedDict):
    bins: tuple[float, float, Annotated[int, between(1, MOST_BINS)]]
    counts: list[Count]
    limits: tuple[Count, Count]


@dataclass(frozen=True)
class Predictions:
    """``predictions.csv``: the ``names`` of the test samples, and its numbers by ``columns``; no names of classes."""

    names: Sequence[str]
    columns: Mapping[str, Array]

    @property
    def target(self) -> Array | None:
        """The true value or class of each sample; None in what earlier versions wrote."""
        return self.columns.get(TARGET)

    def errors(self, row: str, column: str) -> Array | None:
        """Of each sample, such that their mean may be the score in that row and column; None if it is no such mean."""
        target = self.target
        if target is not None and LABEL in self.columns:
            wrong = 100.0 * (self.columns[LABEL] != target)
            return {"error %": wrong, "accuracy %": 100.0 - wrong}.get(column)
        if target is not None and PREDICTION in self.columns:
            error = np.abs(self.columns[PREDICTION] - target)
            return {"MAE": error, "MSE": error**2}.get(column)
        if column == "MAE %":  # of several numbers
            of_numbers = {name: 100 * np.abs(self.columns[name] - true) for name, true in self._several.items()}
            return np.mean([*of_numbers.values()], axis=0) if row == "all" and of_numbers else of_numbers.get(row)
        return None

    @property
    def _several(self) -> Mapping[str, Array]:
        """The true values of predictions named ``column 0``, ``column 1``..."""
        names = [name for name in self.columns if name.startswith("column ")]
        true = {name: self.columns.get(name.replace("column", TARGET), self.target) for name in names}
        return {name: values for name, values in true.items() if values is not None}


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
        numbers = {key: np.array(fields[key], dtype=np.float64) for key in header if key not in WORDS}
    except (OSError, ValueError, csv.Error) as error:
        raise SettingsError(f"{path}: cannot be read ({str(error)[:200]}); train this run again") from None
    return Predictions(fields[NAME], numbers)


@dataclass(frozen=True)
class Regions:
    """The label bins of a run, with their training samples, and the regions that they form."""

    bins: LabelBins
    counts: list[int]
    limits: tuple[int, int]

    @classmethod
    def of_run(cls, run: Path) -> "Regions | None":
        """From the facts of a tested run; None if its labels have no bins, or an earlier version wrote it.

        Raises a :class:`.SettingsError` if they cannot be read.
        """
        facts = read_json(run / RESULTS).get("facts") or {}
        if "limits" not in facts:
            return None
        try:
            check(facts, _BinFacts, f"{run / RESULTS}: facts")
            bins = LabelBins.known(facts["bins"], facts.get("edges"))
            regions = cls(bins, facts["counts"], tuple(facts["limits"]))
            if len(regions.counts) != bins.count or not bool((np.diff(regions.edges) > 0).all()):
                raise ValueError(f"{bins.count} bins in no order, or counts of {len(regions.counts)}")
            return regions
        except (IndexError, TypeError, ValueError) as error:
            raise SettingsError(f"{run / RESULTS}: its label bins cannot be read ({error}); train it again") from None

    @cached_property
    def edges(self) -> Array:
        """The edges of all bins, ``[count + 1]``."""
        return np.array([self.bins.bounds(0)[0], *(self.bins.bounds(i)[1] for i in range(self.bins.count))])

    def members(self, target: Array) -> Mapping[str, Mask]:
        """Which samples belong to each region."""
        numbers = self.bins.numbers(torch.from_numpy(target).float())
        regions = shot_regions(self.counts, many=self.limits[0], few=self.limits[1])
        return {name: chosen[numbers].numpy() for name, chosen in regions.items()}


def row_errors(predictions: Predictions, members: Mask | None, row: str, column: str, score: float) -> Array | None:
    """The errors of the test samples in a row of the scores; None if their mean is not the ``score``.

    ``members``: which samples belong to the row; None if all do.
    """
    errors = predictions.errors(row, column)
    chosen = errors if errors is None or members is None else errors[members]
    if chosen is None or not len(chosen) or not math.isclose(float(chosen.mean()), score, rel_tol=AGREEMENT):
        return None
    return chosen
