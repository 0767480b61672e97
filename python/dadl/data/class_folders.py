"""Images in a folder for each class: ``train/CLASS/image`` beside ``test`` and perhaps ``val``, or ``CLASS/image``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ProblemsError, shown
from .image_lists import ClassLists, NoisyLists, Row
from .pixels import SUFFIXES
from .text import NamedImages, did_you_mean

PARTS = ("train", "val", "test")
FEWEST = 4
"""Images of a class that are split at random: two to train, one each for validation and test."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of each part, whose labels number the class ``names``."""

    train: list[Row[int]]
    validation: list[Row[int]]
    test: list[Row[int]]
    names: tuple[str, ...]

    def few_labels(self, percent: int, seed: int) -> ClassLists:
        """With the labels of ``percent`` % of the training images of each class, at least one; drawn with ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        labelled: set[str] = set()
        for rows in _by_class(self.train, len(self.names)):
            count = max(1, round(len(rows) * percent / 100))
            labelled |= {rows[i].path for i in torch.randperm(len(rows), generator=generator)[:count].tolist()}
        known = [row for row in self.train if row.path in labelled]
        unknown = [row for row in self.train if row.path not in labelled]
        return ClassLists(known, unknown, self.validation, self.test, len(self.names), self.names)

    def noisy(self) -> NoisyLists:
        """As lists without meta samples."""
        return NoisyLists(self.train, [], self.validation, self.test, len(self.names), self.names)


def has_class_folders(folder: Path) -> bool:
    """Whether the folder holds a folder for each class, and no lists."""
    if not folder.is_dir() or any(folder.glob("train*.txt")):
        return False
    base = folder / "train" if (folder / "train").is_dir() else folder
    return any(next(_images(inner), None) is not None for inner in _folders(base))


def draws_parts(folder: Path) -> bool:
    """Whether the folder holds a folder for each class alone, of which validation and test are drawn."""
    return has_class_folders(folder) and not (folder / "train").is_dir()


def read_class_folders(folder: Path, seed: int, *, outside: bool = False) -> ClassFolders:
    """Read the classes of ``folder``, numbered in the order of their names.

    Without a folder ``train``, a tenth of each class, at least one image, is drawn with ``seed`` for validation and
    another for the test. Raises a :class:`.ProblemsError` for classes with fewer than two images to train, or four to
    split, for other classes in ``val`` or ``test``, without a folder ``test`` beside ``train``, and for images that lie
    out of the folder unless ``outside`` is set.
    """
    problems: list[str] = []
    images = NamedImages(folder, outside=outside)
    split = (folder / "train").is_dir()
    base = folder / "train" if split else folder
    names = tuple(inner.name for inner in _folders(base))
    train = _rows(folder, base, names, images, problems)
    fewest = 2 if split else FEWEST
    for name, rows in zip(names, _by_class(train, len(names)), strict=True):
        if len(rows) < fewest:
            problems.append(f"{base / name}: {len(rows)} images of a class; at least {fewest} are needed")
    validation: list[Row[int]] = []
    test: list[Row[int]] = []
    if split:
        for part, found in (("val", validation), ("test", test)):
            unknown = [inner for inner in _folders(folder / part) if inner.name not in names]
            problems += [
                f"{inner}: a class without a folder in train{did_you_mean(inner.name, names)}" for inner in unknown
            ]
            found += _rows(folder, folder / part, names, images, problems)
        if not test:
            problems.append(f"{folder / 'test'}: no images in folders of classes, but there is {base}")
    if problems:
        raise ProblemsError(problems)
    if not split:
        generator = torch.Generator().manual_seed(seed)
        parts: list[list[Row[int]]] = [[], [], []]
        for rows in _by_class(train, len(names)):
            order, held_out = torch.randperm(len(rows), generator=generator), max(1, round(len(rows) / 10))
            for part_rows, chosen in zip(
                parts, order.split([len(rows) - 2 * held_out, held_out, held_out]), strict=True
            ):
                part_rows += [rows[i] for i in sorted(chosen.tolist())]
        train, validation, test = parts
    return ClassFolders(train, validation, test, names)


def _folders(folder: Path) -> list[Path]:
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inner if path.is_dir() and not path.name.startswith(".")]


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _rows(folder: Path, base: Path, names: Sequence[str], images: NamedImages, problems: list[str]) -> list[Row[int]]:
    """A row for each image in ``base``, with its path relative to ``folder``."""
    rows = []
    for label, name in enumerate(names):
        for file in _images(base / name) if (base / name).is_dir() else ():
            path = file.relative_to(folder).as_posix()
            try:
                rows.append(Row(shown(path), images.find(path), label))
            except ValueError as error:
                problems.append(f"{shown(path)}: {error}")
    return rows


def _by_class(rows: Sequence[Row[int]], count: int) -> list[list[Row[int]]]:
    groups: list[list[Row[int]]] = [[] for _ in range(count)]
    for row in rows:
        groups[row.label].append(row)
    return groups
