"""``dadl train cmw-net``: image classification with wrong or imbalanced labels, with learnt sample weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from cyclopts import Parameter, validators
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checks import check
from ..data.image_lists import META, TRAIN, VALIDATION, read_image_names
from ..data.images import load_images
from ..data.labels import balanced_subset
from ..data.rows import ChosenRows, tensor_loader
from ..errors import SettingsError
from ..networks.efficientnet import FEATURES, efficientnet_lite0
from ..networks.resnet import FEATURES as RESNET_FEATURES
from ..networks.resnet import resnet
from ..networks.user_networks import load_backbone
from ..networks.user_views import training_view
from ..networks.views import View, stored_size
from ..options import Count, Flag, Fraction, ImageSize, NonNegative, Positive, PositiveInt, between, finite
from ..output import JobProgress
from ..runs.folder import read_run, trained_state
from ..runs.recipe import Evaluation, Recipe, RecipeData
from ..runs.scores import CLASS_COLUMNS, class_columns, class_scores, class_truth, unscored
from .meta_gradient import Normalize
from .method import CrossEntropy, LearntWeights, LowestLossMeta, meta_loader
from .parts import ImageSamples, Noise, Parts, corrupted, read_files, read_lists
from .weight_net import CMWNet

LOWEST_LOSS_PER_CLASS = 10
SMALLEST_PHOTOGRAPH = 64


class CMWNetFacts(TypedDict):
    """What is known of the training data."""

    classes: Annotated[int, between(1, 1_000_000)]
    class_counts: list[Count]
    image_shape: tuple[Annotated[int, between(1, 64)], PositiveInt, PositiveInt]
    view_size: Annotated[int, between(1, 4_096)]


@dataclass(frozen=True, kw_only=True)
class CMWNetRecipe(Recipe):
    """Image classification with wrong or imbalanced labels, with sample weights learnt by CMW-Net.

    DATA is a folder with train.txt, test.txt and optionally meta.txt (samples with correct labels) and val.txt, with a
    line 'relative/path class' for each image; or with idx files as of MNIST, or CIFAR's pickles.
    """

    name: ClassVar[str] = "cmw-net"
    shape_facts: ClassVar[tuple[str, ...]] = ("classes", "image_shape", "view_size")
    facts_kind: ClassVar[Any] = CMWNetFacts
    score_columns: ClassVar[tuple[str, ...]] = CLASS_COLUMNS
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-3, 0.5), "meta_lr": (1e-4, 1e-1)}

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

    network: Literal["resnet32", "efficientnet-lite0"] = "resnet32"
    """resnet32 for small images, from scratch; efficientnet-lite0 for photographs, with ImageNet weights."""

    backbone: str | None = None
    """Another network: module:callable without arguments, images [B, C, H, W] in [0, 1] to features [B, F]; or
    timm:NAME, timm's network of that name with random weights."""

    augment: str | None = None
    """Views of your own for training and meta samples: module:callable without arguments that returns a module or
    function from float images [B, C, H, W] in [0, 1] to views [B, C, S, S] in [0, 1], drawing from torch's global
    generator. S is image-size for listed images, and otherwise the smaller side of the images."""

    image_size: ImageSize | None = None
    """Height and width of a view of listed images, in pixels. [default: resnet32 32, other networks 224]"""

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

    normalize: Normalize = "mean"
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
        if self.learns_weights and self.accumulate > 1:
            raise SettingsError("weights are learnt for steps of one batch: leave out accumulate, or use ce or ce-meta")
        if self.learns_weights and self.precision == "16-mixed":
            raise SettingsError("weights are learnt in precision 32 or bf16-mixed, not in 16-mixed")
        if self.method == "cmw-net-sl" and self.normalize != "mean":
            raise SettingsError("cmw-net-sl averages its soft labels over the samples: leave out normalize")

    @property
    def learns_weights(self) -> bool:
        return self.method not in ("ce", "ce-meta")

    def resolved(self, facts: Mapping[str, Any]) -> "CMWNetRecipe":
        listed, chosen = (self.data / TRAIN).exists(), self.meta == "lowest-loss"
        return replace(
            self,
            lr=self.lr or (0.1 if self._is_resnet else 0.01),
            image_size=facts["view_size"] if listed else self.image_size,
            flip=self.flip is not False if self.augment is None else self.flip,
            meta_per_class=self.meta_per_class or (LOWEST_LOSS_PER_CLASS if chosen else None),
        )

    def read(self, progress: JobProgress) -> RecipeData:
        given = self._read_parts(progress)
        num_classes = int(given.train.target.max()) + 1
        try:
            parts = corrupted(
                self._held_out(given),
                imbalance=self.imbalance,
                noise=self.noise,
                rate=self.noise_rate,
                num_classes=num_classes,
                seed=self.split_seed,
            )
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(f"{self.data}: {error}") from None
        train, meta = parts.train, parts.meta
        if self.patience is not None and parts.validation is None:
            raise SettingsError(f"patience needs validation samples: {self.data} has no {VALIDATION}; set val-fraction")
        evaluation = lambda part: Evaluation(
            part.names,
            tensor_loader(part.images, batch_size=self.batch_size),
            partial(class_scores, target=part.target),
            **class_truth(part.target),
        )
        return RecipeData(
            facts={
                "classes": num_classes,
                "class_counts": torch.bincount(train.target, minlength=num_classes).tolist(),
                "image_shape": parts.image_shape,
                "view_size": parts.view_size,
            },
            sizes={
                "train": len(train.target),
                "meta": 0 if meta is None else len(meta.target),
                "validation": 0 if parts.validation is None else len(parts.validation.target),
                "test": len(parts.test.target),
            },
            fingerprints=parts.fingerprints,
            loader=self._loader(train, meta),
            validation=None if parts.validation is None else evaluation(parts.validation),
            test=evaluation(parts.test),
        )

    def make_method(self, facts: Mapping[str, Any]) -> CrossEntropy:
        backbone, features = self._make_backbone(facts["image_shape"][0], facts["view_size"])
        network = nn.Sequential(backbone, nn.Linear(features, facts["classes"]))
        view = self._view(facts["view_size"], facts["image_shape"])
        options: dict[str, Any] = {"lr": self.resolved(facts).lr, "weight_decay": self.weight_decay}
        if not self.learns_weights:
            return CrossEntropy(network, view, **options)
        class_counts = torch.tensor(facts["class_counts"])
        options |= {
            "families": 1 if self.method == "mw-net" else self.families,
            "soft_labels": self.method == "cmw-net-sl",
            "normalize": self.normalize,
            "interval": self.interval,
            "meta_lr": self.meta_lr,
            "warm_up": self.warm_up,
        }
        if self.meta != "lowest-loss":
            return LearntWeights(network, view, class_counts, **options)
        options["per_class"] = self.resolved(facts).meta_per_class
        return LowestLossMeta(network, view, class_counts, facts["image_shape"], **options)

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        rows = read_image_names(data, outside=self.outside)
        channels, height, width = facts["image_shape"]
        folder = data if data.is_dir() else data.parent
        progress.start("Reading images", total=len(rows))
        images, _ = load_images(folder, rows, min(height, width), progress.advance, channels=channels)
        return Evaluation([row.path for row in rows], tensor_loader(images, batch_size=self.batch_size), unscored)

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return class_columns(predicted)

    def _read_parts(self, progress: JobProgress) -> Parts:
        if (self.data / TRAIN).exists():
            size = self.image_size or (32 if self._is_resnet else 224)
            # If the network or the view cannot be used, fail before images are read.
            self._check_network(size, [3, stored_size(size), stored_size(size)])
            return read_lists(self.data, size, progress, outside=self.outside)
        parts = read_files(self.data)
        if self.image_size not in (None, parts.view_size):
            raise SettingsError(f"image-size is for listed images, but {self.data} has no {TRAIN}")
        self._check_network(parts.view_size, parts.image_shape)
        return parts

    def _check_network(self, view_size: int, image_shape: Sequence[int]) -> None:
        self._make_backbone(image_shape[0], view_size)
        self._view(view_size, image_shape)

    @property
    def _is_resnet(self) -> bool:
        return self.backbone is None and self.network == "resnet32"

    def _make_backbone(self, channels: int, size: int) -> tuple[nn.Module, int]:
        """The network from images to features, and the number of features."""
        if self.backbone is not None:
            return load_backbone(self.backbone, size, channels)
        if self.network == "resnet32":
            return resnet(32, channels), RESNET_FEATURES
        if channels != 3 or size < SMALLEST_PHOTOGRAPH:
            raise SettingsError(
                f"efficientnet-lite0 is for images of 3 colours and at least {SMALLEST_PHOTOGRAPH} pixels, but these "
                f"have {channels} and {size}: choose network resnet32"
            )
        return efficientnet_lite0(), FEATURES

    def _view(self, size: int, image_shape: Sequence[int]) -> View:
        return training_view(self.augment, size, image_shape, crop_area=0.8, operations=1, flip=self.flip is not False)

    def _held_out(self, parts: Parts) -> Parts:
        """Hold out validation and clean meta samples from the training samples."""
        train, meta, validation = parts.train, parts.meta, parts.validation
        if self.val_fraction is not None:
            if validation is not None:
                raise SettingsError(f"{self.data} has {VALIDATION}: leave out val-fraction")
            order = torch.randperm(len(train.target), generator=torch.Generator().manual_seed(self.split_seed))
            drawn = order[: max(1, int(self.val_fraction * len(order)))].sort().values
            train, validation = train.without(drawn), train.take(drawn)
        if self.meta != "clean":
            meta = None
        elif self.meta_per_class is not None:
            if meta is not None:
                raise SettingsError(f"{self.data} has {META}: leave out meta-per-class")
            drawn = balanced_subset(train.target, self.meta_per_class, seed=self.split_seed)
            train, meta = train.without(drawn), train.take(drawn)
        elif meta is None and self.method != "ce":
            raise SettingsError(
                f"{self.method} needs clean meta samples, but {self.data} has no {META}. Write one beside {TRAIN}, a "
                "line 'relative/path class' for each sample; or set meta-per-class, if the training labels are "
                "correct; or learn the weights on training samples: meta lowest-loss for noise, balanced for imbalance"
            )
        return replace(parts, train=train, meta=meta, validation=validation)

    def _loader(self, train: ImageSamples, meta: ImageSamples | None) -> DataLoader[Any]:
        images, target = train.images, train.target
        if self.method == "ce-meta" and meta is not None:  # its images are rows of the same tensor
            images = ChosenRows(images.tensor, torch.cat([images.chosen, meta.images.chosen]))
            target = torch.cat([target, meta.target])
        if not self.learns_weights or self.meta == "lowest-loss":
            return tensor_loader(images, target, batch_size=self.batch_size, shuffle=True)
        if meta is not None:
            return meta_loader(images, target, meta.images, meta.target, batch_size=self.batch_size)
        weights = 1 / torch.bincount(target)[target]
        return meta_loader(images, target, images, target, weights, batch_size=self.batch_size)


def load_weight_net(run: Path) -> CMWNet:
    """The weighting network of a run, e.g. to save it or to weight the samples of another training run.

    It is that of the best epoch, or without validation that of the last. Raises a :class:`.SettingsError` if the folder
    does not hold such a run.
    """
    name, settings, facts = read_run(run)
    if name != CMWNetRecipe.name or settings.get("method") in ("ce", "ce-meta"):
        raise SettingsError(f"{run} has no learnt weights: it is of {name}, method {settings.get('method')}")
    check(facts, CMWNetFacts, f"{run}: facts")
    own = trained_state(run, "weight_net")
    try:
        weight_net = CMWNet(facts["class_counts"], len(own["centers"]))
        weight_net.load_state_dict(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(f"the weights of {run} cannot be read: {str(error).splitlines()[0]}") from None
    return weight_net
