"""Images named in lists; a row is ``relative/path label`` or ``relative/path value value``.

For few labels, a data folder holds ``train_15.txt`` (any percentage: the labelled samples), ``train_100.txt`` (all
training samples; those not in the labelled list are used without their label), ``test.txt`` and optionally
``val.txt``. For labels that may be wrong, it holds ``train.txt``, ``test.txt`` and optionally ``meta.txt`` (samples
with correct labels) and ``val.txt``. With either, ``classes.txt`` may name the classes, one in a line, from class 0 on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import ProblemsError, shown
from .pixels import SUFFIXES
from .text import NamedImages, TextFileError, not_text, open_text

FULL = 100
TEST, VALIDATION = "test.txt", "val.txt"
TRAIN, META = "train.txt", "meta.txt"
CLASSES = "classes.txt"
MOST_DIGITS = 9

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
    """Rows whose labels are classes, ``num_classes`` of them, with ``names`` if they have any."""

    num_classes: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoisyLists:
    """The rows of a data folder whose training labels may be wrong; meta and validation samples may be missing."""

    train: list[Row[int]]
    meta: list[Row[int]]
    validation: list[Row[int]]
    test: list[Row[int]]
    num_classes: int
    names: tuple[str, ...] = ()


def list_name(percent: int) -> str:
    """The file that lists ``percent`` % of the training samples."""
    return f"train_{percent}.txt"


def read_lists(folder: Path, percent: int, *, outside: bool = False) -> ClassLists:
    """Read the lists of ``folder`` with ``percent`` % of the labels.

    The label is the last whitespace-separated token of a row, a class from 0; paths may contain spaces. Empty lines are
    skipped. Lists are text as :func:`.open_text` reads it. Raises :class:`.ProblemsError` with all bad rows: without a
    label, with a label that is not a class, without a file, with a file out of the folder unless ``outside`` is set
    (see :class:`.NamedImages`), repeated in a list, with a different label in the full list, or the only one of their
    class; for classes of the labelled list that are not numbered 0 ... C - 1 without gaps; for missing or empty lists;
    and for a ``classes.txt`` that does not have a name of its own for each class.
    """
    lists, problems = _read_parts(folder, percent, _parse_class, outside)
    problems += [] if problems else _gaps(lists.labelled, list_name(percent))
    problems += _unknown_classes(lists.labelled, [*lists.validation, *lists.test], list_name(percent))
    _refuse(problems or _single_sample_classes([*lists.labelled, *lists.unlabelled]))
    num_classes = max(row.label for row in lists.labelled) + 1
    names = read_class_names(folder, num_classes)
    return ClassLists(lists.labelled, lists.unlabelled, lists.validation, lists.test, num_classes, names)


def read_noisy_lists(folder: Path, *, outside: bool = False) -> NoisyLists:
    """Read ``train.txt``, ``test.txt`` and, if they exist, ``meta.txt`` and ``val.txt`` in ``folder``.

    Rows and errors are as for :func:`read_lists`.
    """
    problems: list[str] = []
    images = NamedImages(folder, outside=outside)
    train, meta, validation, test = (
        _read_list(folder / name, _parse_class, images, problems)
        if name in (TRAIN, TEST) or (folder / name).exists()
        else []
        for name in (TRAIN, META, VALIDATION, TEST)
    )
    problems += [] if problems else _gaps(train, TRAIN)
    problems += _unknown_classes(train, [*meta, *validation, *test], TRAIN)
    _refuse(problems or _single_sample_classes(train))
    num_classes = max(row.label for row in train) + 1
    return NoisyLists(train, meta, validation, test, num_classes, read_class_names(folder, num_classes))


def read_value_lists(
    folder: Path, percent: int, columns: Sequence[int] | None = None, *, outside: bool = False
) -> ImageLists[Values]:
    """Read the lists of ``folder`` with ``percent`` % of the labels, which are values in [0, 1].

    The values are the numbers at the end of a row, equally many in every row. ``columns``, from 0, selects some of
    them; the default is all. Empty lines are skipped. Raises :class:`.ProblemsError` as :func:`read_lists` does.
    """
    lists, problems = _read_parts(folder, percent, _parse_values, outside)
    rows = [*lists.labelled, *lists.unlabelled, *lists.validation, *lists.test]
    problems += [
        f"{row.where}: {len(row.label)} values of {shown(row.path)}, {len(rows[0].label)} in {rows[0].where}"
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
    folder: Path, percent: int, parse: Callable[[str], tuple[str, LabelT]], outside: bool
) -> tuple[ImageLists[LabelT], list[str]]:
    """The parts, and everything that is wrong with them."""
    problems: list[str] = []
    images = NamedImages(folder, outside=outside)
    read = lambda name: _read_list(folder / name, parse, images, problems)
    labelled, full, test = map(read, (list_name(percent), list_name(FULL), TEST))
    validation = read(VALIDATION) if (folder / VALIDATION).exists() else []
    labels = {row.path: row.label for row in full}
    problems += [
        f"{row.where}: label {row.label} of {shown(row.path)}, which {list_name(FULL)} labels {labels[row.path]}"
        for row in labelled
        if labels.get(row.path, row.label) != row.label
    ]
    named = {row.path for row in labelled}
    return ImageLists(labelled, [row for row in full if row.path not in named], validation, test), problems


def read_image_names(path: Path, *, outside: bool = False) -> list[Row[None]]:
    """The images in a folder and its subfolders, or those named in a text file, one per line, relative to its folder.

    Raises :class:`.ProblemsError` with all lines that do not name a file as :func:`read_lists` expects, or if there are
    no images.
    """
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file())
        rows = [Row(str(file), file.relative_to(path).as_posix(), None) for file in files]
        _refuse([] if rows else [f"{path}: no images, whose names end in {', '.join(SUFFIXES)}"])
        return rows
    problems: list[str] = []
    rows = _read_list(path, lambda line: (line, None), NamedImages(path.parent, outside=outside), problems)
    _refuse(problems)
    return rows


def read_class_names(folder: Path, num_classes: int) -> tuple[str, ...]:
    """The names in ``classes.txt``, one in a line, from class 0 on; none without the file.

    Raises a :class:`.ProblemsError` unless there is a name of its own for each class.
    """
    path = folder / CLASSES
    if not path.exists():
        return ()
    try:
        with open_text(path) as lines:
            names = [line.strip() for line in lines]
    except TextFileError as error:
        raise ProblemsError([str(error)]) from None
    while names and not names[-1]:
        names.pop()
    problems = []
    for number, name in enumerate(names, start=1):
        if (reason := not_text(name)) or not name:
            problems.append(f"{path.name}:{number}: {reason or 'an empty line, where the name of a class is expected'}")
        elif (first := names.index(name) + 1) < number:
            problems.append(f"{path.name}:{number}: {shown(name)} again, first in line {first}")
    if len(names) != num_classes:
        problems.append(f"{path}: {len(names)} names of {num_classes} classes; name each in a line, from class 0 on")
    _refuse(problems)
    return tuple(names)


def _unknown_classes(trained: Sequence[Row[int]], rows: Sequence[Row[int]], name: str) -> list[str]:
    """A problem for each row whose class does not occur in the list ``name``, unless that list has no rows at all."""
    classes = {row.label for row in trained}
    return [
        f"{row.where}: label {row.label} of {shown(row.path)}, a class without a row in {name}"
        for row in rows
        if classes and row.label not in classes
    ]


def _gaps(trained: Sequence[Row[int]], name: str) -> list[str]:
    """A problem if classes are not numbered from 0 without gaps: a network would have outputs that are never trained.

    Also, memory for a class of number 10¹² is needed for all below it.
    """
    first = {row.label: row for row in reversed(trained)}
    missing = next(number for number in range(len(first) + 1) if number not in first)
    if missing == len(first):
        return []
    row = first[min(label for label in first if label > missing)]
    hint = "; did you mean to count from 0?" if missing == 0 and max(first) == len(first) else ""
    return [
        f"{row.where}: label {row.label} of {shown(row.path)}, but {name} has no class {missing}; number the "
        f"{len(first)} classes from 0 to {len(first) - 1}{hint}"
    ]


def _single_sample_classes(trained: Sequence[Row[int]]) -> list[str]:
    """A problem for each training row that is the only one of its class."""
    counts = Counter(row.label for row in trained)
    return [
        f"{row.where}: {shown(row.path)} is the only training sample of class {row.label}; add others, or leave the "
        "class out"
        for row in trained
        if counts[row.label] == 1
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ProblemsError(list(dict.fromkeys(problems)))


def _parse_class(line: str) -> tuple[str, int]:
    path, label = (["", *line.rsplit(maxsplit=1)])[-2:]
    if not path:
        hint = ", separated by a space" if any(mark in line for mark in ",;") else ""
        raise ValueError(f"expected 'relative/path label'{hint}, got {shown(line)!r}")
    if not (label.isascii() and label.isdigit()):
        raise ValueError(f"label {shown(label)!r} of {shown(path)} is not a class number, which is 0, 1, 2 ...")
    if len(label.lstrip("0")) > MOST_DIGITS:
        raise ValueError(f"label {shown(label)} of {shown(path)} is too large; number classes from 0 without gaps")
    return path, int(label[-MOST_DIGITS:])


def _parse_values(line: str) -> tuple[str, Values]:
    tokens = line.split()
    count = sum(1 for _ in takewhile(_is_number, reversed(tokens)))
    if not count or count == len(tokens):
        raise ValueError(f"expected 'relative/path value value ...', got {shown(line)!r}")
    path, values = line.rsplit(maxsplit=count)[0], tuple(map(float, tokens[-count:]))
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"value {value:g} of {shown(path)} is not in [0, 1]")
    return path, values


def _is_number(token: str) -> bool:
    """Python's 1_000 does not count as one."""
    try:
        float(token)
    except ValueError:
        return False
    return "_" not in token


def _read_list(
    path: Path, parse: Callable[[str], tuple[str, LabelT]], images: NamedImages, problems: list[str]
) -> list[Row[LabelT]]:
    rows: dict[str, Row[LabelT]] = {}
    empty = True

    def read(where: str, line: str) -> None:
        if (reason := not_text(line)) is not None:
            raise ValueError(reason)
        name, label = parse(line)
        if (name := images.find(name)) in rows:
            raise ValueError(f"{shown(name)} again, first in {rows[name].where}")
        rows[name] = Row(where, name, label)

    if not path.exists():
        problems.append(f"{path}: no such file")
        return []
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    try:
                        read(f"{path.name}:{number}", line.strip())
                    except ValueError as error:
                        problems.append(f"{path.name}:{number}: {error}")
    except TextFileError as error:
        problems.append(str(error))
        return []
    if empty:
        problems.append(f"{path}: the list is empty")
    return list(rows.values())
