"""The settings that recipes share, and the options of a run. Without PyTorch, so that ``--help`` is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from ..checks import check_fields
from ..options import Device, Flag, Logger, Positive, PositiveInt, Seed, between


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

    seed: Seed = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        check_fields(self)


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

    image_size: Annotated[int, between(32, 4_096)] = 224
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
