"""Images named in lists; a row is ``relative/path label`` or ``relative/path value value``.

For few labels, a data folder holds ``train_15.txt`` (any percentage: the labelled samples), ``train_100.txt`` (all
training samples; those not in the labelled list are used without their label), ``test.txt`` and optionally
``val.txt``. For labels that may be wrong, it holds ``train.txt``, ``test.txt`` and optionally ``meta.txt`` (samples
with correct labels) and ``val.txt``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from ..errors import ProblemsError

FULL = 100
TEST, VALIDATION = "test.txt", "val.txt"
TRAIN, META = "train.txt", "meta.txt"
IMAGE_SUFFIXES = tuple(Image.registered_extensions())

Values = tuple[float, ...]
LabelT = TypeVar("LabelT")


@dataclass(frozen=True)
class Row(Generic[LabelT]):
    """One line of a list; ``where`` is the file and the line number, the label a class or some values."""

    where: str
    path: str
    label: LabelT


@dataclass(frozen=True)
class ImageLists(Generic[LabelT]):
    """The rows of a data folder: labelled, unlabelled, validation (possibly none) and test samples."""

    labelled: list[Row[LabelT]]
    unlabelled: list[Row[LabelT]]
    validation: list[Row[LabelT]]
    test: list[Row[LabelT]]


@dataclass(frozen=True)
class ClassLists(ImageLists[int]):
    """Rows whose labels are classes, ``num_classes`` of them."""

    num_classes: int


@dataclass(frozen=True)
class NoisyLists:
    """The rows of a data folder whose training labels may be wrong; meta and validation samples may be missing."""

    train: list[Row[int]]
    meta: list[Row[int]]
    validation: list[Row[int]]
    test: list[Row[int]]
    num_classes: int


def list_name(percent: int) -> str:
    """The file that lists ``percent`` % of the training samples."""
    return f"train_{percent}.txt"


def read_lists(folder: Path, percent: int) -> ClassLists:
    """Read the lists of ``folder`` with ``percent`` % of the labels.

    The label is the last whitespace-separated token of a row, a class from 0; paths may contain spaces. Empty lines are
    skipped. Raises :class:`.ProblemsError` with all bad rows: without a label, with a label that is not a class,
    without a file, repeated in a list, with a different label in the full list, or the only one of their class; and for
    missing or empty lists.
    """
    lists, problems = _read_parts(folder, percent, _parse_class)
    problems += _unknown_classes(lists.labelled, [*lists.validation, *lists.test], list_name(percent))
    _refuse(problems or _single_sample_classes([*lists.labelled, *lists.unlabelled]))
    num_classes = max(row.label for row in lists.labelled) + 1
    return ClassLists(lists.labelled, lists.unlabelled, lists.validation, lists.test, num_classes)


def read_noisy_lists(folder: Path) -> NoisyLists:
    """Read ``train.txt``, ``test.txt`` and, if they exist, ``meta.txt`` and ``val.txt`` in ``folder``.

    Rows and errors are as for :func:`read_lists`.
    """
    problems: list[str] = []
    train, meta, validation, test = (
        _read_list(folder, name, _parse_class, problems) if name in (TRAIN, TEST) or (folder / name).exists() else []
        for name in (TRAIN, META, VALIDATION, TEST)
    )
    problems += _unknown_classes(train, [*meta, *validation, *test], TRAIN)
    _refuse(problems or _single_sample_classes(train))
    return NoisyLists(train, meta, validation, test, max(row.label for row in train) + 1)


def read_value_lists(folder: Path, percent: int, columns: Sequence[int] | None = None) -> ImageLists[Values]:
    """Read the lists of ``folder`` with ``percent`` % of the labels, which are values in [0, 1].

    The values are the numbers at the end of a row, equally many in every row. ``columns``, from 0, selects some of
    them; the default is all. Empty lines are skipped. Raises :class:`.ProblemsError` as :func:`read_lists` does.
    """
    lists, problems = _read_parts(folder, percent, _parse_values)
    rows = [*lists.labelled, *lists.unlabelled, *lists.validation, *lists.test]
    problems += [
        f"{row.where}: {len(row.label)} values of {row.path}, {len(rows[0].label)} in {rows[0].where}"
        for row in rows
        if len(row.label) != len(rows[0].label)
    ]
    if rows and columns is not None:
        problems += [
            f"there is no column {column}: {rows[0].where} has {len(rows[0].label)} values, numbered from 0"
            for column in columns
            if not 0 <= column < len(rows[0].label)
        ]
    _refuse(problems)
    if columns is None:
        return lists
    keep = lambda part: [replace(row, label=tuple(row.label[column] for column in columns)) for row in part]
    return ImageLists(*(keep(part) for part in (lists.labelled, lists.unlabelled, lists.validation, lists.test)))


def _read_parts(
    folder: Path, percent: int, parse: Callable[[str], tuple[str, LabelT]]
) -> tuple[ImageLists[LabelT], list[str]]:
    """The parts, and everything that is wrong with them."""
    problems: list[str] = []
    labelled, full, test = (
        _read_list(folder, name, parse, problems) for name in (list_name(percent), list_name(FULL), TEST)
    )
    validation = _read_list(folder, VALIDATION, parse, problems) if (folder / VALIDATION).exists() else []
    labels = {row.path: row.label for row in full}
    problems += [
        f"{row.where}: label {row.label} of {row.path}, which {list_name(FULL)} labels {labels[row.path]}"
        for row in labelled
        if labels.get(row.path, row.label) != row.label
    ]
    named = {row.path for row in labelled}
    return ImageLists(labelled, [row for row in full if row.path not in named], validation, test), problems


def read_image_names(path: Path) -> list[Row[None]]:
    """The images in a folder and its subfolders, or those named in a text file, one per line, relative to its folder.

    Raises :class:`.ProblemsError` with all lines that do not name a file, or if there are no images.
    """
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        rows = [Row(str(file), file.relative_to(path).as_posix(), None) for file in files]
        _refuse([] if rows else [f"{path}: no images"])
        return rows
    problems: list[str] = []
    rows = _read_list(path.parent, path.name, lambda line: (line.strip(), None), problems)
    _refuse(problems)
    return rows


def _unknown_classes(trained: Sequence[Row[int]], rows: Sequence[Row[int]], name: str) -> list[str]:
    """A problem for each row whose class does not occur in the list ``name``, unless that list has no rows at all."""
    classes = {row.label for row in trained}
    return [
        f"{row.where}: label {row.label} of {row.path}, a class without a row in {name}"
        for row in rows
        if classes and row.label not in classes
    ]


def _single_sample_classes(trained: Sequence[Row[int]]) -> list[str]:
    """A problem for each training row that is the only one of its class."""
    counts = Counter(row.label for row in trained)
    return [
        f"{row.where}: {row.path} is the only training sample of class {row.label}; add others, or leave the class out"
        for row in trained
        if counts[row.label] == 1
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ProblemsError(list(dict.fromkeys(problems)))


def _parse_class(line: str) -> tuple[str, int]:
    path, label = (["", *line.rsplit(maxsplit=1)])[-2:]
    path = path.strip()
    if not path:
        raise ValueError(f"expected 'relative/path label', got {line.strip()!r}")
    if not (label.isascii() and label.isdigit()):
        raise ValueError(f"label {label!r} of {path} is not a class number")
    return path, int(label)


def _parse_values(line: str) -> tuple[str, Values]:
    values: list[float] = []
    path = line.strip()
    while path and (value := _as_number(path.split()[-1])) is not None:
        path = path.rpartition(path.split()[-1])[0].rstrip()
        values.insert(0, value)
    if not path or not values:
        raise ValueError(f"expected 'relative/path value value ...', got {line.strip()!r}")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"value {value:g} of {path} is not in [0, 1]")
    return path, tuple(values)


def _as_number(token: str) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None


def _read_list(
    folder: Path, name: str, parse: Callable[[str], tuple[str, LabelT]], problems: list[str]
) -> list[Row[LabelT]]:
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        problems.append(f"{folder / name}: no such file")
        return []
    rows: dict[str, Row[LabelT]] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            path, label = parse(line)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if path in rows:
            problems.append(f"{where}: {path} again, first in {rows[path].where}")
        elif not (folder / path).is_file():
            problems.append(f"{where}: no file {folder / path}")
        else:
            rows[path] = Row(where, path, label)
    if not any(line.strip() for line in lines):
        problems.append(f"{folder / name}: the list is empty")
    return list(rows.values())
