"""What each ``dadl train`` is made of: settings, data, a method, and how its predictions are judged."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.utils.data import DataLoader

from ..options import Positive, PositiveInt, Seed
from ..output import JobProgress
from ..training.method import Method

Scores = Mapping[str, Mapping[str, float]]
"""``table[row][column]``, e.g. ``table["few"]["MAE"]``."""


@dataclass(frozen=True)
class Evaluation:
    """A part of the data that a trained method predicts.

    ``names`` of the samples, as the data have them: an image's path, or a file and its line. ``loader``: unshuffled; a
    batch's first element is what the method predicts. ``score`` judges the predictions of all samples, in order; the
    first number of its first row is what validation minimises.
    """

    names: Sequence[str]
    loader: DataLoader[Any]
    score: Callable[[Tensor], Scores]


@dataclass(frozen=True)
class RecipeData:
    """The data of a recipe, read and checked.

    ``facts``: what :meth:`Recipe.make_method` must know of the training data, as JSON has it. ``sizes``: samples of
    each part. ``fingerprints``: of everything that was read of each part, targets included, as
    :func:`dadl.data.fingerprint.fingerprint` makes them. ``loader``: training batches.
    """

    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    fingerprints: Mapping[str, str]
    loader: DataLoader[Any]
    validation: Evaluation | None
    test: Evaluation


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Everything that the result of a training depends on."""

    name: ClassVar[str]
    """Of the recipe, as ``dadl train`` takes it."""

    shape_facts: ClassVar[tuple[str, ...]] = ()
    """Facts that say what a method takes and gives, and that other data to judge it by must share."""

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Settings that ``--search`` chooses on validation, each from a range of positive numbers."""

    data: Path
    """File or folder of the data."""

    epochs: PositiveInt = 30
    """Passes over the training data."""

    batch_size: PositiveInt = 64
    """Samples of a step in each process."""

    lr: Positive | None = None
    """Learning rate. [default: the recipe's]"""

    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged before each step."""

    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    """Of the arithmetic: single, or mixed with a half precision."""

    patience: PositiveInt | None = None
    """Epochs without a better validation after which training stops. [default: never]"""

    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints; there is one after each epoch in any case."""

    seed: Seed = 0
    """Of everything that is random."""

    @abstractmethod
    def read(self, progress: JobProgress) -> RecipeData:
        """Read and check everything in ``data``; a ``ValueError`` has a line for each problem."""

    @abstractmethod
    def make_method(self, facts: Mapping[str, Any]) -> Method:
        """The method, built from the settings and ``facts`` alone and drawn from torch's generator."""

    @abstractmethod
    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        """Samples without a target, which are not scored."""

    @abstractmethod
    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Columns of ``predictions.csv`` from what the method predicted for all samples."""
