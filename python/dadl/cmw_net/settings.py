"""The settings of ``dadl train cmw-net``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter, validators

from ..errors import SettingsError
from ..options import Flag, Fraction, ImageSize, Network, NonNegative, Positive, PositiveInt, between, finite
from ..runs.settings import Settings

Noise = Literal["none", "symmetric", "flip", "cifar10-flip"]


@dataclass(frozen=True, kw_only=True)
class CMWNetSettings(Settings):
    """Image classification with wrong or imbalanced labels, with sample weights learnt by CMW-Net.

    DATA is a folder with train.txt, test.txt and optionally meta.txt (samples with correct labels) and val.txt, with a
    line 'relative/path class' for each image; or with folders of images, train/CLASS, test/CLASS and optionally
    val/CLASS, or CLASS alone, of which a tenth each is drawn for validation and test; or with idx files as of MNIST, or
    CIFAR's pickles.
    """

    name: ClassVar[str] = "cmw-net"
    recipe: ClassVar[str] = "dadl.cmw_net.recipe:CMWNetRecipe"

    method: Literal["cmw-net", "mw-net", "cmw-net-sl", "ce", "ce-meta"] = "cmw-net"
    """CMW-Net, Meta-Weight-Net, CMW-Net with soft labels, or cross-entropy without or with the meta samples."""

    epochs: PositiveInt = 100
    """Passes over the training data."""

    batch_size: PositiveInt = 100
    """Samples per step in each process, plus as many meta samples."""

    lr: Positive | None = None
    """Learning rate of SGD. [default: resnet32 0.1, other networks 0.01]"""

    weight_decay: NonNegative = 5e-4
    """Weight decay of SGD."""

    network: Network = "resnet32"
    """resnet32 and the much faster small-cnn for small images, from scratch; efficientnet-lite0 for photographs, with
    ImageNet weights."""

    backbone: str | None = None
    """Another network: module:callable without arguments, images [B, C, H, W] in [0, 1] to features [B, F]; or
    timm:NAME, timm's network of that name with random weights."""

    augment: str | None = None
    """Views of your own for training and meta samples: module:callable without arguments that returns a module or
    function from float images [B, C, H, W] in [0, 1] to views [B, C, S, S] in [0, 1], drawing from torch's global
    generator. S is image-size for listed images, and otherwise the smaller side of the images."""

    image_size: ImageSize | None = None
    """Height and width of a view of listed images, in pixels. [default: resnet32 and small-cnn 32, other networks
    224]"""

    outside: Flag = False
    """Let lists name images out of their folder: by '..', absolute paths or links."""

    flip: bool | None = None
    """Mirror images at random; not for characters or digits. [default: true, without augment]"""

    meta: Literal["clean", "lowest-loss", "balanced"] = "clean"
    """Samples to learn the weights on: held-out samples with clean labels; for noisy labels, the training samples with
    the lowest losses; or for clean but imbalanced labels, a balanced draw of training samples."""

    meta_per_class: PositiveInt | None = None
    """Meta samples per class: drawn from the training data before noise is added (clean), or chosen among them
    (lowest-loss). [default: clean, all of meta.txt; lowest-loss 10]"""

    val_fraction: Annotated[float, Parameter(validator=validators.Number(gt=0, lt=1))] | None = None
    """Fraction of the training data for validation, drawn before noise is added. [default: val.txt, if any]"""

    noise: Noise = "none"
    """For experiments: wrong training labels of any class, the next class, or a similar class of CIFAR-10."""

    noise_rate: Fraction = 0.0
    """Fraction of the training labels that noise is added to."""

    imbalance: Annotated[float, Parameter(validator=(validators.Number(gte=1), finite))] = 1.0
    """For experiments: make a long tail, with this ratio of the largest class to the smallest."""

    families: Annotated[int, between(1, 1_000)] = 3
    """Number of groups of classes, by size, with separate weights (cmw-net, cmw-net-sl)."""

    class_weights: Literal["none", "inverse", "sqrt-inverse", "effective"] = "none"
    """Weights of classes in the cross-entropy, for imbalance: the inverse of the number of their samples, its root, or
    the inverse effective number (Cui et al., 2019, with β = 1 − 1/N for N samples) (ce, ce-meta)."""

    normalize: Literal["mean", "sum"] = "mean"
    """Divide the weighted loss by the number of samples, for noise, or by the sum of weights, for imbalance."""

    interval: PositiveInt = 1
    """Steps between updates of the weighting network."""

    meta_lr: Positive = 1e-3
    """Learning rate of the weighting network."""

    warm_up: Fraction = 0.2
    """Fraction of the steps, at the start, with plain cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None and self.flip is not None:
            raise SettingsError("augment replaces the view that flip configures: leave out one of the two")
        if (self.noise == "none") != (self.noise_rate == 0):
            raise SettingsError(f"noise {self.noise} with noise-rate {self.noise_rate:g}: set both, or none")
        if self.meta == "balanced" and self.noise != "none":
            raise SettingsError("meta balanced assumes correct training labels: with noise, use clean or lowest-loss")
        if self.meta == "balanced" and self.meta_per_class is not None:
            raise SettingsError("meta balanced draws from all training samples: leave out meta-per-class")
        if self.meta == "lowest-loss" and self.epochs == 1:
            raise SettingsError("meta lowest-loss chooses samples after the first epoch: set epochs to 2 or more")
        if self.method == "ce-meta" and self.meta != "clean":
            raise SettingsError(f"ce-meta also trains on clean meta samples, but meta {self.meta} are training samples")
        if self.learns_weights and self.class_weights != "none":
            raise SettingsError(f"{self.method} learns the weights: leave out class-weights, or use ce or ce-meta")
        if self.learns_weights and self.accumulate > 1:
            raise SettingsError("weights are learnt for steps of one batch: leave out accumulate, or use ce or ce-meta")
        if self.learns_weights and self.precision == "16-mixed":
            raise SettingsError("weights are learnt in precision 32 or bf16-mixed, not in 16-mixed")
        if self.method == "cmw-net-sl" and self.normalize != "mean":
            raise SettingsError("cmw-net-sl averages its soft labels over the samples: leave out normalize")

    @property
    def learns_weights(self) -> bool:
        return self.method not in ("ce", "ce-meta")
