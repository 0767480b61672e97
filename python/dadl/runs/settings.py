"""The settings that recipes share, and the options of a run. Without PyTorch, so that ``--help`` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from cyclopts import Parameter

from ..checks import check_fields, short_repr
from ..data.text import did_you_mean
from ..errors import SettingsError
from ..options import Device, Flag, Keep, Logger, Network, Positive, PositiveInt, Seed, between


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the result of a training run depends on, apart from the values of the data."""

    name: ClassVar[str]
    """The name of the recipe in ``dadl train NAME``."""

    recipe: ClassVar[str]
    """Where the recipe with these settings is, as ``module:class``; it is imported when it is needed."""

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


def typed_settings(kind: type[Settings], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as in ``config.yaml`` as arguments of a recipe; raises a :class:`.SettingsError` for an unknown one."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if unknown := [key for key in settings if key not in names]:
        raise SettingsError(
            f"{kind.name} has no setting {short_repr(unknown[0])}{did_you_mean(str(unknown[0]), names)}"
        )

    def value(key: str) -> Any:
        plain, types = settings[key], (hints[key], *get_args(hints[key]))
        if Path in types and isinstance(plain, str):
            return Path(plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return {key: value(key) for key in settings}


@dataclass(frozen=True, kw_only=True)
class ListSettings(Settings):
    """Of a recipe on image lists with few labels."""

    labels: Annotated[int, between(1, 100)]
    """Percentage of labels, which selects the labelled list; the rest of train_100.txt is used without labels."""

    epochs: PositiveInt = 120
    """Passes over the unlabelled images, or over the labelled ones if there are more."""

    batch_size: PositiveInt = 24
    """Labelled images per step in each process, plus as many unlabelled ones."""

    lr: Positive = 1e-3
    """Learning rate of the backbone; layers trained from scratch have ten times as much."""

    network: Network = "efficientnet-lite0"
    """efficientnet-lite0 with ImageNet weights; or, for small images, resnet32 and the much faster small-cnn, from
    scratch."""

    backbone: str | None = None
    """Another network: module:callable without arguments, images [B, 3, H, W] in [0, 1] to features [B, F]; or
    timm:NAME, timm's network of that name with random weights."""

    image_size: Annotated[int, between(16, 4_096)] = 224
    """Height and width of a view, in pixels."""

    augment: str | None = None
    """Training views of your own: module:callable without arguments that returns a module or function from float
    images [B, C, H, W] in [0, 1] to [B, C, image-size, image-size] in [0, 1], drawing from torch's global generator. It
    makes all views except fixmatch's weak ones; in chi-model it must not move anything if values are positions."""

    outside: Flag = False
    """Let lists name images out of their folder: by '..', absolute paths or links."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training run is carried out."""

    output: Path | None = None
    """Folder of the run. [default: dadl-train-NAME]"""

    resume: Flag = False
    """Continue from the folder's checkpoint, or start if there is none."""

    device: Device = "auto"
    """Where to compute."""

    search: PositiveInt | None = None
    """Number of trials that tune settings on validation; the best one is tested. [default: no search]"""

    logger: Annotated[tuple[Logger, ...], Parameter(negative=(), show_default=False)] = ()
    """Also log for TensorBoard (into the folder of the run), Weights & Biases or MLflow; may be given several times."""

    trust_code: Flag = False
    """Execute the code that a config file names as backbone or augment; what the command line names always is."""

    def folder(self, name: str) -> Path:
        """The folder of a run of the recipe of that name."""
        return Path(f"dadl-train-{name}") if self.output is None else self.output
