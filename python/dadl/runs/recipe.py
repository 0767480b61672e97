"""The interface of a recipe: data, a method, and how its predictions are evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import SettingsError, UserError
from ..output import JobProgress
from ..training.checkpoints import load_checkpoint
from ..training.method import Method
from .folder import trained_checkpoint
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, float]]
"""``table[row][column]``, e.g. ``table["few"]["MAE"]``."""


@dataclass(frozen=True)
class Evaluation:
    """A part of the data for a trained method to predict.

    ``names``: of the samples, such as the path of an image, or a file and line. ``loader``: unshuffled; the first
    element of a batch is the method's input. ``score`` evaluates the predictions of all samples, in order. ``targets``
    are the columns of true values, ``region_sizes`` the number of samples of each row of scores.
    """

    names: Sequence[str]
    loader: DataLoader[Any]
    score: Callable[[Tensor], Scores]
    targets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    region_sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeData:
    """The data of a recipe, read and checked.

    ``facts``: what :meth:`Recipe.make_method` needs to know about the training data, as JSON values. ``sizes``: the
    number of samples in each part, first that which is trained on. ``fingerprints``: digests of everything read for
    each part, including targets, see :func:`.fingerprint`. ``loader``: training batches. ``notes``: sentences about the
    data to show before training.
    """

    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    fingerprints: Mapping[str, str]
    loader: DataLoader[Any]
    validation: Evaluation | None
    test: Evaluation
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings, ABC):
    """Settings, and what is done with them."""

    shape_facts: ClassVar[tuple[str, ...]] = ()
    """Facts that determine inputs and outputs of a method; other data for its evaluation must share them."""

    facts_kind: ClassVar[Any] = Mapping[str, Any]
    """The type of its facts, by which those in the folder of a run are checked."""

    score_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of its scores."""

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Settings that ``--search`` tunes on validation, each in a range of positive numbers."""

    def resolved(self, facts: Mapping[str, Any]) -> "Recipe":
        """These settings with a value in place of each default that depends on the kind of data or on other settings.

        What is computed from the values of the training data, such as their deviation, stays a fact.
        """
        return self

    @abstractmethod
    def read(self, progress: JobProgress) -> RecipeData:
        """Read and check everything in ``data``; raises a ``ValueError`` with a line for each problem."""

    @abstractmethod
    def make_method(self, facts: Mapping[str, Any]) -> Method:
        """The method, built from the settings and ``facts`` alone; its weights are drawn from torch's generator."""

    def as_trained(self, facts: Mapping[str, Any]) -> "Recipe":
        """The recipe of a finished run, for other data: what it found out about its own stays as it was."""
        return self

    def search_ranges(self, task: RecipeData, device: torch.device) -> Mapping[str, tuple[float, float]]:
        """The ranges of ``search_space`` for these data."""
        return self.search_space

    def relative_values(
        self, setting: str, factors: Sequence[float], task: RecipeData, device: torch.device
    ) -> list[float]:
        """Values of a setting that are so many times what it is by default on these data."""
        default = getattr(self.resolved(task.facts), setting)
        if not isinstance(default, int | float) or not default > 0:
            raise SettingsError(f"{setting} is {default} by default, so there are no multiples of it; give its values")
        return [factor * default for factor in factors]

    def region_facts(self, facts: Mapping[str, Any], test: Evaluation) -> Mapping[str, Mapping[str, Any]]:
        """What each row of the test scores is about, such as its number of ``test`` samples."""
        return {row: {"test": size} for row, size in test.region_sizes.items()}

    @classmethod
    def pictures(cls, run: Path) -> Sequence[tuple[str, "Figure"]]:
        """Titles and figures of a tested run that only this recipe can draw, for the page of a comparison."""
        return ()

    def remarks(self, history: Sequence[Mapping[str, float]]) -> Sequence[str]:
        """Sentences about the last epoch of a history, to show as it ends."""
        return ()

    @abstractmethod
    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        """Samples without a target, which cannot be scored."""

    def read_columns(self, data: Path, names: Sequence[str], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """Columns of unseen samples, to be kept beside the predictions; raises a :class:`.UserError` without them."""
        raise SettingsError(f"keep names columns of a table, but the samples of {self.name} are images named in a list")

    def input_names(self, facts: Mapping[str, Any]) -> Sequence[str]:
        """The columns of the method's input matrix; none if its inputs are no matrix."""
        return ()

    @abstractmethod
    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        """``count`` random inputs of the method, from torch's generator; raises a :class:`.SettingsError` if it has
        none of a fixed shape."""

    def answers(self, predicted: Tensor) -> Tensor:
        """What is predicted for each sample, as :meth:`dadl.Run.predict` gives it."""
        return predicted

    @abstractmethod
    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Columns of ``predictions.csv``, from the predictions for all samples."""


def build_method(recipe: Recipe, facts: Mapping[str, Any]) -> Method:
    """The recipe's method; raises a :class:`.SettingsError` if settings and facts do not make one."""
    try:
        return recipe.make_method(facts)
    except UserError:
        raise
    except Exception as error:  # such as memory that is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingsError(f"these settings make no method of {recipe.name}: {reason[:300]}") from error


def trained_method(folder: Path, recipe: Recipe, facts: Mapping[str, Any]) -> Method:
    """The method after the epoch that is kept; raises a :class:`.UserError` if it cannot be made or loaded."""
    method = build_method(recipe, facts)
    load_checkpoint(trained_checkpoint(folder), {"method": method})
    return method
