"""The interface of a recipe: settings, data, a method, and how its predictions are evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..checks import check_fields, short_repr
from ..data.text import did_you_mean
from ..errors import SettingsError, UserError
from ..options import Keep, Positive, PositiveInt, Seed
from ..output import JobProgress
from ..training.method import Method

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
class Recipe(ABC):
    """Everything that the result of a training run depends on."""

    name: ClassVar[str]
    """The name of the recipe in ``dadl train NAME``."""

    shape_facts: ClassVar[tuple[str, ...]] = ()
    """Facts that determine inputs and outputs of a method; other data for its evaluation must share them."""

    facts_kind: ClassVar[Any] = Mapping[str, Any]
    """The type of its facts, by which those in the folder of a run are checked."""

    score_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of its scores."""

    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Settings that ``--search`` tunes on validation, each in a range of positive numbers."""

    data: Path
    """File or folder of the data."""

    epochs: PositiveInt = 30
    """Passes over the training data."""

    batch_size: PositiveInt = 64
    """Samples per step in each process."""

    lr: Positive | None = None
    """Learning rate. [default: the recipe's]"""

    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged before each step."""

    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    """Arithmetic precision: single, or mixed with half precision."""

    patience: PositiveInt | None = None
    """Epochs without improvement on validation after which training stops. [default: never]"""

    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints, in addition to the one after each epoch."""

    criterion: str | None = None
    """Validation score that says which epoch is best: a row and a column of the scores, such as 'few MAE'.
    [default: the first score]"""

    keep: Keep = "best"
    """Whether the method is tested as it was after its best epoch on validation, or after its last."""

    split_seed: Seed = 0
    """Seed of what is drawn of the data: validation and test samples, labelled samples, noise."""

    seed: Seed = 0
    """Seed of everything else that is random."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def draws_test(self) -> bool:
        """Whether ``split_seed`` draws the test samples, and the data do not say themselves which these are."""
        return False

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

    def remarks(self, history: Sequence[Mapping[str, float]]) -> Sequence[str]:
        """Sentences about the last epoch of a history, to show as it ends."""
        return ()

    @abstractmethod
    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        """Samples without a target, which cannot be scored."""

    def read_columns(self, data: Path, names: Sequence[str], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """Columns of unseen samples, to be kept beside the predictions; raises a :class:`.UserError` without them."""
        raise SettingsError(f"keep names columns of a table, but the samples of {self.name} are images named in a list")

    @abstractmethod
    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Columns of ``predictions.csv``, from the predictions for all samples."""


def typed_settings(kind: type[Recipe], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as in ``config.yaml`` as arguments of a recipe; raises a :class:`.SettingsError` for an unknown one."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in kind.__dataclass_fields__}
    if unknown := [key for key in settings if key not in hints]:
        raise SettingsError(
            f"{kind.name} has no setting {short_repr(unknown[0])}{did_you_mean(str(unknown[0]), hints)}"
        )

    def value(key: str) -> Any:
        plain, types = settings[key], (hints[key], *get_args(hints[key]))
        if Path in types and isinstance(plain, str):
            return Path(plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return {key: value(key) for key in settings}


def build_method(recipe: Recipe, facts: Mapping[str, Any]) -> Method:
    """The recipe's method; raises a :class:`.SettingsError` if settings and facts do not make one."""
    try:
        return recipe.make_method(facts)
    except UserError:
        raise
    except Exception as error:  # such as memory that is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingsError(f"these settings make no method of {recipe.name}: {reason[:300]}") from error
