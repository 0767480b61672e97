"""The parts of a data folder with noisy or imbalanced labels: reading them, and corrupting them for experiments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.arrays.idx_cifar import ImageFileError, read_image_files
from ..data.class_folders import has_class_folders, read_class_folders
from ..data.fingerprint import fingerprint, image_fingerprint
from ..data.image_lists import TRAIN, Row, read_class_names, read_noisy_lists
from ..data.images import load_images
from ..data.labels import CIFAR10_FLIPS, flip_noise, long_tail, symmetric_noise
from ..data.rows import ChosenRows
from ..networks.views import stored_size
from ..output import JobProgress
from .settings import Noise


@dataclass(frozen=True)
class ImageSamples:
    """Names, images ``[N, C, H, W]``, uint8, and labels ``[N]``."""

    names: Sequence[str]
    images: ChosenRows
    target: Tensor

    def take(self, rows: Tensor) -> "ImageSamples":
        return ImageSamples([self.names[row] for row in rows.tolist()], self.images.take(rows), self.target[rows])

    def without(self, rows: Tensor) -> "ImageSamples":
        kept = torch.ones(len(self.target), dtype=torch.bool)
        kept[rows] = False
        return self.take(kept.nonzero()[:, 0])


@dataclass(frozen=True)
class Parts:
    """The contents of a data folder, possibly without meta or validation samples, and the size of a view.

    ``fingerprints`` are those of a :class:`.RecipeData`, of the unchanged folder. ``names`` are those of the classes.
    """

    train: ImageSamples
    meta: ImageSamples | None
    validation: ImageSamples | None
    test: ImageSamples
    view_size: int
    fingerprints: Mapping[str, str]
    names: tuple[str, ...] = ()

    @property
    def image_shape(self) -> list[int]:
        """``[C, H, W]``."""
        return list(self.train.images.tensor.shape[1:])


def read_lists(folder: Path, view_size: int, progress: JobProgress, *, seed: int = 0, outside: bool = False) -> Parts:
    """Read the images named in ``train.txt`` and the other lists in ``folder``, stored for views of that size.

    Or those in a folder for each class, which are drawn with ``seed``, see :func:`.read_class_folders`.
    """
    if has_class_folders(folder):
        lists = read_class_folders(folder, seed, outside=outside).noisy()
    else:
        lists = read_noisy_lists(folder, outside=outside)
    given = (lists.train, lists.meta, lists.validation, lists.test)
    rows = [row for part in given for row in part]
    progress.start("Reading images", total=len(rows))
    images, digests = load_images(folder, rows, stored_size(view_size), progress.advance)
    sizes = [len(part) for part in given]

    def samples(part: Sequence[Row[int]], images: ChosenRows) -> ImageSamples:
        return ImageSamples([row.path for row in part], images, torch.tensor([row.label for row in part]))

    parts = zip(given, images.split(sizes), strict=True)
    train, meta, validation, test = (samples(part, part_images) if part else None for part, part_images in parts)
    assert train is not None
    assert test is not None
    names = ("train", "meta", "validation", "test")
    fingerprints = {
        name: image_fingerprint([row.path for row in part], part_digests, [row.label for row in part])
        for name, part, part_digests in zip(names, given, digests.split(sizes), strict=True)
    }
    return Parts(train, meta, validation, test, view_size, fingerprints, lists.names)


def read_files(folder: Path) -> Parts:
    """Read the training and test images in the idx files or CIFAR's pickles in ``folder``."""
    try:
        files = read_image_files(folder)
    except ImageFileError as error:
        raise ImageFileError(f"{error}; nor is there a list {folder / TRAIN}") from None
    train, test = (
        ImageSamples([f"{part}:{i}" for i in range(len(target))], ChosenRows(images, torch.arange(len(target))), target)
        for part, images, target in (
            ("train", files.train_images, files.train_target),
            ("test", files.test_images, files.test_target),
        )
    )
    fingerprints = {
        "train": fingerprint(files.train_images, files.train_target),
        "test": fingerprint(files.test_images, files.test_target),
    }
    names = read_class_names(folder, int(files.train_target.max()) + 1)
    return Parts(train, None, None, test, min(files.train_images.shape[2:]), fingerprints, names)


def corrupted(parts: Parts, *, imbalance: float, noise: Noise, rate: float, num_classes: int, seed: int) -> Parts:
    """Add a long tail and noise to the training samples only.

    Raises a ``ValueError`` if no training samples are left of a class that is to be predicted.
    """
    train = parts.train
    if imbalance > 1:
        smallest = int(train.target.unique(return_counts=True)[1].min())  # every class has enough to be the largest
        train = train.take(long_tail(train.target, imbalance, largest=smallest, seed=seed))
    present = train.target.unique()
    for part in (parts.test, parts.validation, parts.meta):
        lost = [] if part is None else part.target[~torch.isin(part.target, present)].unique().tolist()
        if lost:
            raise ValueError(
                f"no training samples of class {', '.join(map(str, lost))}, which is to be predicted; "
                "reduce imbalance, val-fraction or meta-per-class"
            )
    options: dict[str, Any] = {"num_classes": num_classes, "seed": seed}
    if noise == "symmetric":
        train = replace(train, target=symmetric_noise(train.target, rate, **options))
    elif noise != "none":
        flips = CIFAR10_FLIPS if noise == "cifar10-flip" else None
        train = replace(train, target=flip_noise(train.target, rate, flips, **options))
    return replace(parts, train=train)
