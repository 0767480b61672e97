"""``dadl train cmw-net``: image classification with wrong or imbalanced labels, with learnt sample weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checks import check
from ..data.class_folders import draws_parts, has_class_folders
from ..data.image_lists import META, TRAIN, VALIDATION, read_image_names
from ..data.images import load_images
from ..data.labels import balanced_subset, class_weights
from ..data.rows import ChosenRows, tensor_loader
from ..errors import SettingsError
from ..networks.image_network import image_network
from ..networks.user_views import training_view
from ..networks.views import View, stored_size
from ..options import Count, PositiveInt, between
from ..output import JobProgress
from ..runs.folder import read_run, trained_state
from ..runs.pictures import OpenedRun
from ..runs.recipe import Evaluation, Recipe, RecipeData
from ..runs.scores import CLASS_COLUMNS, class_columns, class_scores, class_truth, unscored
from .method import CrossEntropy, LearntWeights, LowestLossMeta, meta_loader
from .parts import ImageSamples, Parts, corrupted, read_files, read_lists
from .pictures import draw_weights
from .settings import CMWNetSettings
from .weight_net import CMWNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST_LOSS_PER_CLASS = 10
SMALLEST_PHOTOGRAPH = 64


class _Facts(TypedDict):
    classes: Annotated[int, between(1, 1_000_000)]
    class_counts: list[Count]
    image_shape: tuple[Annotated[int, between(1, 64)], PositiveInt, PositiveInt]
    view_size: Annotated[int, between(1, 4_096)]


class CMWNetFacts(_Facts, total=False):
    """What is known of the training data; names of classes only if they have any."""

    names: list[str]


@dataclass(frozen=True, kw_only=True)
class CMWNetRecipe(CMWNetSettings, Recipe):
    """Image classification with sample weights that are learnt."""

    shape_facts: ClassVar[tuple[str, ...]] = ("classes", "names", "image_shape", "view_size")
    facts_kind: ClassVar[Any] = CMWNetFacts
    score_columns: ClassVar[tuple[str, ...]] = CLASS_COLUMNS
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-3, 0.5), "meta_lr": (1e-4, 1e-1)}

    @property
    def draws_test(self) -> bool:
        return draws_parts(self.data)

    def resolved(self, facts: Mapping[str, Any]) -> "CMWNetRecipe":
        listed, chosen = self._lists_images, self.meta == "lowest-loss"
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
            parts = self._corrupted(self._held_out(given), num_classes)
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
                **({"names": list(parts.names)} if parts.names else {}),
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
        class_counts = torch.tensor(facts["class_counts"])
        if not self.learns_weights:
            return CrossEntropy(network, view, class_weights=class_weights(self.class_weights, class_counts), **options)
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

    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        return torch.rand(count, *facts["image_shape"])

    def answers(self, predicted: Tensor) -> Tensor:
        return predicted.argmax(dim=1)

    @classmethod
    def pictures(cls, run: Path) -> "list[tuple[str, Figure]]":
        """For the page of a comparison: the learnt weights, those of right and of wrong labels apart if noise was
        added."""
        opened = OpenedRun.of(cls, run)
        if opened is None or not opened.recipe.learns_weights:
            return []
        recipe: CMWNetRecipe = opened.recipe
        clean = recipe._held_out(recipe._read_parts(JobProgress(Console(quiet=True))))
        train = recipe._corrupted(clean, opened.facts["classes"]).train
        losses = nn.functional.cross_entropy(opened.predicted(train.images), train.target, reduction="none")
        true = dict(zip(clean.train.names, clean.train.target.tolist(), strict=True))
        wrong = train.target != torch.tensor([true[name] for name in train.names])
        known = wrong if recipe.noise != "none" else None
        return [("learnt weights", draw_weights(opened.method.weight_net.cpu(), losses, train.target, known))]

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return class_columns(predicted, facts.get("names", ()))

    def _read_parts(self, progress: JobProgress) -> Parts:
        if self._lists_images:
            small = self.backbone is None and self.network != "efficientnet-lite0"
            size = self.image_size or (32 if small else 224)
            # If the network or the view cannot be used, fail before images are read.
            self._check_network(size, [3, stored_size(size), stored_size(size)])
            return read_lists(self.data, size, progress, seed=self.split_seed, outside=self.outside)
        parts = read_files(self.data)
        if self.image_size not in (None, parts.view_size):
            raise SettingsError(f"image-size is for listed images, but {self.data} has no {TRAIN}")
        self._check_network(parts.view_size, parts.image_shape)
        return parts

    @property
    def _lists_images(self) -> bool:
        return (self.data / TRAIN).exists() or has_class_folders(self.data)

    def _check_network(self, view_size: int, image_shape: Sequence[int]) -> None:
        self._make_backbone(image_shape[0], view_size)
        self._view(view_size, image_shape)

    @property
    def _is_resnet(self) -> bool:
        return self.backbone is None and self.network == "resnet32"

    def _make_backbone(self, channels: int, size: int) -> tuple[nn.Module, int]:
        """The network from images to features, and the number of features."""
        photographs = self.backbone is None and self.network == "efficientnet-lite0"
        if photographs and (channels != 3 or size < SMALLEST_PHOTOGRAPH):
            raise SettingsError(
                f"efficientnet-lite0 is for images of 3 colours and at least {SMALLEST_PHOTOGRAPH} pixels, but these "
                f"have {channels} and {size}: choose network resnet32 or small-cnn"
            )
        return image_network(self.network, self.backbone, size, channels)

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

    def _corrupted(self, parts: Parts, num_classes: int) -> Parts:
        return corrupted(
            parts,
            imbalance=self.imbalance,
            noise=self.noise,
            rate=self.noise_rate,
            num_classes=num_classes,
            seed=self.split_seed,
        )

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
