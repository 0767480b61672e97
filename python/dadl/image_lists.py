"""Images named in lists, a row ``relative/path label`` each, with fewer and more labels.

A data folder holds ``train_15.txt`` (any percentage; these samples are labelled), ``train_100.txt`` (all training
samples; those of them that are not in the labelled list are used without their label) and ``test.txt``.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
FULL = 100
TEST = "test.txt"


class ImageListError(ValueError):
    """Everything that is wrong with a data folder, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))


class ImageRow(Protocol):
    """Names an image: its path in the data folder, and where that is written."""

    @property
    def where(self) -> str: ...

    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """One line of a list; ``where`` is the file and the line number."""

    where: str
    path: str
    label: int


@dataclass(frozen=True)
class ImageLists:
    """The rows of a data folder: labelled, unlabelled and test samples, of ``num_classes`` classes."""

    labelled: list[Row]
    unlabelled: list[Row]
    test: list[Row]
    num_classes: int


def list_name(percent: int) -> str:
    """The file that lists ``percent`` % of the training samples."""
    return f"train_{percent}.txt"


def read_lists(folder: Path, percent: int) -> ImageLists:
    """Read the lists of ``folder`` with ``percent`` % of the labels.

    The label is the last whitespace-separated token of a row, a class from 0; paths may contain spaces. Empty lines are
    skipped. Raises :class:`ImageListError` with all bad rows: without a label, with one that is no class, naming no
    file, twice in one list, or with another label than in the full list; and for missing or empty lists.
    """
    problems: list[str] = []
    labelled, full, test = (_read_list(folder, name, problems) for name in (list_name(percent), list_name(FULL), TEST))
    labels = {row.path: row.label for row in full}
    problems += [
        f"{row.where}: label {row.label} of {row.path}, which {list_name(FULL)} labels {labels[row.path]}"
        for row in labelled
        if labels.get(row.path, row.label) != row.label
    ]
    trained = {row.label for row in labelled}
    problems += [
        f"{row.where}: label {row.label} of {row.path}, a class without a row in {list_name(percent)}"
        for row in test
        if trained and row.label not in trained
    ]
    if problems:
        raise ImageListError(list(dict.fromkeys(problems)))
    named = {row.path for row in labelled}
    unlabelled = [row for row in full if row.path not in named]
    return ImageLists(labelled, unlabelled, test, max(trained) + 1)


def _read_list(folder: Path, name: str, problems: list[str]) -> list[Row]:
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        problems.append(f"{folder / name}: no such file")
        return []
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        path, label = (["", *line.rsplit(maxsplit=1)])[-2:]
        path = path.strip()
        if not path:
            problems.append(f"{where}: expected 'relative/path label', got {line.strip()!r}")
        elif not (label.isascii() and label.isdigit()):
            problems.append(f"{where}: label {label!r} of {path} is not a class number")
        elif path in rows:
            problems.append(f"{where}: {path} again, first in {rows[path].where}")
        elif not (folder / path).is_file():
            problems.append(f"{where}: no file {folder / path}")
        else:
            rows[path] = Row(where, path, int(label))
    if not any(line.strip() for line in lines):
        problems.append(f"{folder / name}: the list is empty")
    return list(rows.values())


def load_images(folder: Path, rows: Sequence[ImageRow], size: int, on_loaded: Callable[[], None]) -> Tensor:
    """Decode every image as colours, resized to a square: ``[N, 3, size, size]``, uint8.

    They are decoded once and kept in memory, ``3 · N · size²`` bytes; ``on_loaded`` is called after each. Raises
    :class:`ImageListError` with all images that cannot be read.
    """
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)

    def load(index: int) -> str | None:
        try:
            with Image.open(folder / rows[index].path) as image:
                pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        except DECODING_ERRORS as error:
            return _unreadable(folder, rows[index], error)
        images[index] = torch.from_numpy(pixels).permute(2, 0, 1)
        return None

    if problems := _problems(len(rows), load, on_loaded):
        raise ImageListError(problems)
    return images


def image_problems(folder: Path, rows: Sequence[ImageRow], on_checked: Callable[[], None]) -> list[str]:
    """Decode every image and keep none: a line for each that is missing or cannot be read.

    ``on_checked`` is called after each.
    """

    def check(index: int) -> str | None:
        path = folder / rows[index].path
        if not path.is_file():
            return f"{rows[index].where}: no file {path}"
        try:
            with Image.open(path) as image:
                image.draft("RGB", (1, 1))  # a JPEG is read to its end all the same, but most pixels are not computed
                image.load()
        except DECODING_ERRORS as error:
            return _unreadable(folder, rows[index], error)
        return None

    return _problems(len(rows), check, on_checked)


def _problems(count: int, check: Callable[[int], str | None], on_checked: Callable[[], None]) -> list[str]:
    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for problem in pool.map(check, range(count)):
            problems += [problem] if problem else []
            on_checked()
    return problems


def _unreadable(folder: Path, row: ImageRow, error: Exception) -> str:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{row.where}: cannot read {folder / row.path}: {reason}"
