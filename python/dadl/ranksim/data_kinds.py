"""The kinds of regression data: their readers, their default settings, and their label bins."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..data.columns.data_set import RegressionData
from ..data.columns.roles import Columns
from ..data.columns.samples import RegressionSamples
from ..data.columns.source import read_source
from ..data.regression import (
    STS_B_FILES,
    STS_B_FORMAT,
    read_agedb,
    read_csv,
    read_sts_b,
    read_unseen_csv,
    read_unseen_sts_b,
)
from ..errors import ProblemsError, SettingsError
from .labels.bins import BINS, LabelBins
from .settings import Loss

AGE_COLUMNS = ("age", "path", "split")


class DataKind(ABC):
    """Readers, defaults and label bins of one kind of data."""

    name: ClassVar[str]
    loss: ClassVar[Loss]
    ranksim: ClassVar[float]
    """Weight γ; for tables of numbers alone it is 0, see :attr:`.RankSimRecipe.ranksim`."""
    scale: ClassVar[float | None]
    """Divisor of the targets; ``None`` is the standard deviation of the training targets."""
    clip: ClassVar[tuple[float, float] | None]
    """Bounds of the counts that ``inverse`` inverts."""
    smoothing_clip: ClassVar[tuple[float, float]]
    """Bounds of the variances' ratio in feature smoothing."""

    unseen_format: ClassVar[Mapping[str, Any]] = {}
    """How :func:`.read_table` reads a file of unseen samples."""

    @abstractmethod
    def read(
        self, data: Path, columns: Columns, seed: int, known: Mapping[str, Sequence[str]] | None
    ) -> RegressionData:
        """Read all splits; images are checked later, as they are loaded. ``known`` are categories of a training."""

    @abstractmethod
    def read_unseen(self, data: Path, columns: Columns, categories: Mapping[str, Sequence[str]]) -> RegressionSamples:
        """Read samples without a target; ``categories`` are those of the training data."""

    @abstractmethod
    def label_range(self, target: Tensor) -> tuple[float, float]:
        """The range that the label bins cover."""

    @abstractmethod
    def bin_width(self, target: Tensor) -> float:
        """The default width of a label bin."""

    def smoothing_bins(self, bins: LabelBins, width: float) -> LabelBins:
        """The bins for feature smoothing, where ``width`` is that of a label bin; by default the label bins."""
        return bins


class Ages(DataKind):
    """AgeDB-DIR, IMDB-WIKI-DIR, and other files with the same columns."""

    name = "ages"
    loss, ranksim, scale = "l1", 100.0, 1.0
    clip, smoothing_clip = (5, 1000), (0.1, 10)

    def read(
        self, data: Path, columns: Columns, seed: int, known: Mapping[str, Sequence[str]] | None
    ) -> RegressionData:
        return read_agedb(data, check_images=False)

    def read_unseen(self, data: Path, columns: Columns, categories: Mapping[str, Sequence[str]]) -> RegressionSamples:
        return read_unseen_csv(data, image=AGE_COLUMNS[1])

    def label_range(self, target: Tensor) -> tuple[float, float]:
        return 0.0, 121.0

    def bin_width(self, target: Tensor) -> float:
        return 1.0

    def smoothing_bins(self, bins: LabelBins, width: float) -> LabelBins:
        # Few people are older than 99, and smoothing reflects at the last bucket.
        return LabelBins(0.0, 100.0, math.ceil(100 / width))


class SentencePairs(DataKind):
    """STS-B-DIR."""

    name = "sts-b"
    loss, ranksim, scale = "mse", 3e-4, 5.0
    clip, smoothing_clip = None, (0.5, 2)
    unseen_format: ClassVar[Mapping[str, Any]] = STS_B_FORMAT

    def read(
        self, data: Path, columns: Columns, seed: int, known: Mapping[str, Sequence[str]] | None
    ) -> RegressionData:
        return read_sts_b(data)

    def read_unseen(self, data: Path, columns: Columns, categories: Mapping[str, Sequence[str]]) -> RegressionSamples:
        return read_unseen_sts_b(data)

    def label_range(self, target: Tensor) -> tuple[float, float]:
        return 0.0, 5.0

    def bin_width(self, target: Tensor) -> float:
        return 0.1


class AnyTable(DataKind):
    """Any other table, whose columns are named."""

    name = "table"
    loss, ranksim, scale = "l1", 0.1, None
    clip, smoothing_clip = (5, 1000), (0.1, 10)

    def read(
        self, data: Path, columns: Columns, seed: int, known: Mapping[str, Sequence[str]] | None
    ) -> RegressionData:
        roles = columns.roles
        assert roles.target is not None
        return read_csv(
            data,
            roles.target,
            image=roles.image,
            text=roles.text,
            features=roles.features,
            one_hot=roles.one_hot,
            dates=roles.dates,
            split=roles.split,
            seed=seed,
            known=known,
            check_images=False,
            **columns.reading,
        )

    def read_unseen(self, data: Path, columns: Columns, categories: Mapping[str, Sequence[str]]) -> RegressionSamples:
        roles = columns.roles
        return read_unseen_csv(
            data,
            image=roles.image,
            text=roles.text,
            features=roles.features,
            dates=roles.dates,
            categories=categories,
            **columns.reading,
        )

    def label_range(self, target: Tensor) -> tuple[float, float]:
        margin = 0.5 if _whole(target) else 0.0
        return float(target.min()) - margin, float(target.max()) + margin

    def bin_width(self, target: Tensor) -> float:
        low, high = self.label_range(target)
        width = (high - low) / BINS
        return math.ceil(width) if _whole(target) else width


KINDS: Mapping[str, DataKind] = {kind.name: kind for kind in (Ages(), SentencePairs(), AnyTable())}


def kind_of(data: Path, columns: Columns) -> DataKind:
    """The kind of data in that file or folder; raises if its columns must be named."""
    if columns.roles.target is not None:
        return KINDS["table"]
    if data.is_dir():
        names = [f"{part}_new.tsv" for part in STS_B_FILES]
        if not any((data / name).exists() for name in names):
            raise ProblemsError([f"{data}: a folder without {', '.join(names)}; of other data, name the file"])
        return KINDS["sts-b"]
    problems: list[str] = []
    source = read_source(data, problems)
    if source is not None and not set(AGE_COLUMNS) <= set(source.header):
        raise SettingsError(f"{data}: set target to the column to predict, one of {', '.join(source.header)}")
    return KINDS["ages"]


def _whole(target: Tensor) -> bool:
    return bool((target == target.round()).all())
