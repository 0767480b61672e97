"""Regression data from files: images, texts or numbers with a numeric target. All problems are reported at once."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import ProblemsError
from .images import image_problems
from .tables import Table, read_table
from .text import did_you_mean

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
STS_B_FILES = ("train", "dev", "test")
STS_B_COLUMNS = 10


@dataclass(frozen=True)
class ImageFile:
    """An image: its path relative to the data folder, and the file and line where it is named."""

    where: str
    path: str


@dataclass(frozen=True)
class RegressionSamples:
    """The n samples of one split, in the order of the file; fields without a column in the file are empty.

    ``where``: file and line of each. ``target``: ``[n]``, float64; empty for unseen samples. ``images``: their files,
    as :func:`dadl.data.images.load_images` takes them. ``texts``: the texts of each sample. ``features``: ``[n, F]``,
    float64, as in the file.
    """

    where: list[str]
    target: Tensor
    images: list[ImageFile]
    texts: list[tuple[str, ...]]
    features: Tensor


@dataclass(frozen=True)
class RegressionData:
    """Three splits; image paths are relative to ``folder``, ``feature_names`` are the columns of ``features``.

    ``categories`` are those of each one-hot column, as :func:`read_unseen_csv` takes them.
    """

    train: RegressionSamples
    val: RegressionSamples
    test: RegressionSamples
    folder: Path
    feature_names: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]

    @property
    def splits(self) -> dict[Split, RegressionSamples]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def read_csv(
    path: Path,
    target: str,
    *,
    image: str | None = None,
    text: Sequence[str] = (),
    features: Sequence[str] = (),
    one_hot: Sequence[str] = (),
    split: str | None = None,
    seed: int = 0,
    check_images: bool = True,
    outside: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> RegressionData:
    """Read any CSV file with a header, a numeric target column, and columns of images, texts or numbers.

    Columns are separated by commas, semicolons or tabs, and fields may be quoted. Numbers have a decimal point.

    Args:
        path: the file; image paths are relative to its folder.
        target: column of the target.
        image: column of image paths.
        text: columns of texts.
        features: columns of numbers.
        one_hot: columns of categories. Each category becomes a feature ``column=category`` of 0 or 1. A column may also
            be listed in ``features``, which then sets its position; otherwise it follows them.
        split: column that says ``train``, ``val`` or ``test``; without one, a tenth of the samples is drawn with
            ``seed`` for validation and another tenth for the test.
        seed: of that draw.
        check_images: decode all images once, so that missing and damaged ones are reported too.
        outside: whether images may lie out of the folder, if they are checked.
        on_image: called after each checked image.

    Raises:
        ProblemsError: everything that is wrong with the file, each with its row: what :func:`.read_table` finds;
            columns that are not there; numbers that cannot be read, NaN or infinite; empty texts, paths or categories;
            unknown splits; splits with fewer than two samples; columns of words among the numbers; categories with
            fewer than two samples in ``train``; a target that is the same in all of ``train``; missing and damaged
            images.
        ValueError: no input columns, or a column that is named twice.
    """
    columns = _Columns(image, tuple(text), tuple(dict.fromkeys([*features, *one_hot])))
    problems: list[str] = []
    table, at = _opened(path, [target, *columns.names, *([] if split is None else [split])], problems)
    layout = columns.layout(at, frozenset(one_hot), target=at[target])
    parts = _random_parts(len(table.rows), seed) if split is None else _named_parts(table, at[split], problems)
    if image is not None and check_images:
        problems += image_problems(path.parent, _image_files(table, at[image]), on_image, outside=outside)
    return _assembled(table, path.parent, layout, parts, problems)


def read_agedb(
    path: Path, *, check_images: bool = True, outside: bool = False, on_image: Callable[[], None] = lambda: None
) -> RegressionData:
    """Read AgeDB-DIR or IMDB-WIKI-DIR: a CSV file with the columns ``age``, ``path`` and ``split``.

    Arguments and errors as for :func:`read_csv`. Source: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced
    Regression", ICML 2021.
    """
    return read_csv(
        path, "age", image="path", split="split", check_images=check_images, outside=outside, on_image=on_image
    )


def read_sts_b(folder: Path) -> RegressionData:
    """Read STS-B-DIR: pairs of sentences and their similarity, in ``{train,dev,test}_new.tsv``.

    Each file has a header and ten columns between tabs, without quoting; columns 7 and 8, counted from 0, are the
    sentences and column 9 the score. Raises a :class:`.ProblemsError` as :func:`read_csv` does.

    Source: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
    """
    problems: list[str] = []
    tables = [read_table(folder / f"{n}_new.tsv", problems, delimiter="\t", quoted=False) for n in STS_B_FILES]
    problems += [
        f"{table.path}: expected {STS_B_COLUMNS} columns between tabs, got {len(table.header)}"
        for table in tables
        if len(table.header) not in (0, STS_B_COLUMNS)
    ]
    if any(len(table.header) != STS_B_COLUMNS for table in tables):
        raise ProblemsError(problems)
    whole = Table(folder, tables[0].header, [row for table in tables for row in table.rows])
    ends = list(accumulate(len(table.rows) for table in tables))
    parts = {split: list(range(start, end)) for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False)}
    return _assembled(whole, folder, _Layout(target=9, texts=(7, 8)), parts, problems)


def read_unseen_csv(
    path: Path,
    *,
    image: str | None = None,
    text: Sequence[str] = (),
    features: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
) -> RegressionSamples:
    """Read samples without a target. Columns that are not named are ignored. Images are not opened.

    Args:
        path: as for :func:`read_csv`.
        image: column of image paths.
        text: columns of texts.
        features: columns of numbers, and of categories if they are in ``categories``.
        categories: the categories of each one-hot column, from training; columns not in ``features`` follow them.

    Raises:
        ProblemsError: as :func:`read_csv`, and for categories that did not occur in training.
        ValueError: no input columns, or a column that is named twice.
    """
    known = {name: tuple(values) for name, values in (categories or {}).items()}
    columns = _Columns(image, tuple(text), tuple(dict.fromkeys([*features, *known])))
    problems: list[str] = []
    table, at = _opened(path, columns.names, problems)
    return _unseen(table, columns.layout(at, frozenset(known)), known, problems)


def read_unseen_sts_b(path: Path) -> RegressionSamples:
    """Read pairs of sentences without a score: the columns ``sentence1`` and ``sentence2`` of a file like STS-B-DIR's.

    Raises a :class:`.ProblemsError` as :func:`read_sts_b` does.
    """
    problems: list[str] = []
    columns = _Columns(None, ("sentence1", "sentence2"), ())
    table, at = _opened(path, columns.names, problems, delimiter="\t", quoted=False)
    return _unseen(table, columns.layout(at, frozenset()), {}, problems)


@dataclass(frozen=True)
class _Layout:
    """What each column holds, by position; ``categories`` are the one-hot columns among the features."""

    target: int | None = None
    image: int | None = None
    texts: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    categories: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Columns:
    """The names of the input columns."""

    image: str | None
    texts: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        names = [*([] if self.image is None else [self.image]), *self.texts, *self.features]
        if not names:
            raise ValueError("no inputs: name an image column, text columns, or columns of features")
        return names

    def layout(self, at: Mapping[str, int], one_hot: frozenset[str], target: int | None = None) -> _Layout:
        return _Layout(
            target=target,
            image=None if self.image is None else at[self.image],
            texts=tuple(at[name] for name in self.texts),
            features=tuple(at[name] for name in self.features),
            categories=frozenset(at[name] for name in one_hot),
        )


def _opened(
    path: Path, names: Sequence[str], problems: list[str], *, delimiter: str | None = None, quoted: bool = True
) -> tuple[Table, dict[str, int]]:
    """The table, and the positions of its columns."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"column {repeated[0]!r} has two roles: as target, input or split, name it once")
    table = read_table(path, problems, delimiter=delimiter, quoted=quoted)
    if not table.header:
        raise ProblemsError(problems)
    at = table.positions(names, problems)
    if len(at) < len(names):
        raise ProblemsError(problems)
    return table, at


def _random_parts(count: int, seed: int) -> dict[Split, list[int]]:
    """A tenth of the rows each for validation and test, but two rows each if there are few; the rest trains."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(count // 10, min(2, count // 3))
    parts = order.split([count - 2 * held_out, held_out, held_out])
    return {split: part.sort().values.tolist() for split, part in zip(SPLITS, parts, strict=True)}


def _named_parts(table: Table, column: int, problems: list[str]) -> dict[Split, list[int]]:
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    unknown: dict[str, list[str]] = {}
    for i, row in enumerate(table.rows):
        name = row.fields[column].strip()
        if name in SPLITS:
            parts[name].append(i)
        else:
            unknown.setdefault(name, []).append(row.where)
    problems += [
        f"{wheres[0]}: {table.header[column]} {name!r} is none of {', '.join(SPLITS)}; {len(wheres)} rows have it"
        f"{did_you_mean(name, SPLITS)}"
        for name, wheres in unknown.items()
    ]
    return parts


def _image_files(table: Table, column: int) -> list[ImageFile]:
    return [ImageFile(row.where, row.fields[column].strip()) for row in table.rows]


def _assembled(
    table: Table, folder: Path, layout: _Layout, parts: Mapping[Split, list[int]], problems: list[str]
) -> RegressionData:
    """The data set, or an error with the ``problems`` found so far and those of the columns."""
    assert layout.target is not None
    target = _numbers(table, layout.target, "regression needs a target of numbers", problems)
    categories = {
        table.header[column]: _categories(table, column, parts["train"], problems)
        for column in layout.features
        if column in layout.categories
    }
    names, features = _features(table, layout, categories, "leave it out or ask for it one-hot", problems)
    _check_texts(table, layout, problems)
    _check_parts(table.path, parts, target, problems)
    if problems:
        raise ProblemsError(problems)
    train, val, test = (_samples(table, layout, parts[split], target, features) for split in SPLITS)
    return RegressionData(train, val, test, folder, names, categories)


def _unseen(
    table: Table, layout: _Layout, categories: Mapping[str, tuple[str, ...]], problems: list[str]
) -> RegressionSamples:
    """All samples of the table, or an error as above."""
    for name, known in categories.items():
        column = table.header.index(name)
        problems += [
            f"{row.where}: {name} is {row.fields[column].strip()!r}; the training had {', '.join(map(repr, known))}"
            for row in table.rows
            if row.fields[column].strip() not in known
        ]
    _, features = _features(table, layout, categories, "the training had numbers there", problems)
    _check_texts(table, layout, problems)
    if problems:
        raise ProblemsError(problems)
    return _samples(table, layout, range(len(table.rows)), None, features)


def _features(
    table: Table, layout: _Layout, categories: Mapping[str, tuple[str, ...]], advice: str, problems: list[str]
) -> tuple[tuple[str, ...], Tensor]:
    """Names and values ``[n, F]`` of the features."""
    columns: list[tuple[str, Tensor]] = []
    for column in layout.features:
        if column in layout.categories:
            columns += _one_hot(table, column, categories[table.header[column]])
        else:
            columns.append((table.header[column], _numbers(table, column, advice, problems)))
    features = torch.empty(len(table.rows), len(columns), dtype=torch.float64)
    for i, (_, values) in enumerate(columns):
        features[:, i] = values
    return tuple(name for name, _ in columns), features


def _samples(
    table: Table, layout: _Layout, rows: Sequence[int], target: Tensor | None, features: Tensor
) -> RegressionSamples:
    images = [] if layout.image is None else _image_files(table, layout.image)
    chosen = [table.rows[i] for i in rows]
    return RegressionSamples(
        where=[row.where for row in chosen],
        target=torch.empty(0, dtype=torch.float64) if target is None else target[rows],
        images=[images[i] for i in rows] if images else [],
        texts=[tuple(row.fields[column] for column in layout.texts) for row in chosen] if layout.texts else [],
        features=features[rows],
    )


def _check_texts(table: Table, layout: _Layout, problems: list[str]) -> None:
    problems += [
        f"{row.where}: {table.header[column]} is empty"
        for row in table.rows
        for column in layout.texts
        if not row.fields[column].strip()
    ]


def _numbers(table: Table, column: int, advice: str, problems: list[str]) -> Tensor:
    """The numbers of a column; a column of words is one problem instead of one for each row."""
    name = table.header[column]
    fields = [row.fields[column].strip() for row in table.rows]
    values = [_number(field) for field in fields]
    words = Counter(filter(None, fields))
    if words and all(map(math.isnan, values)):
        problems.append(
            f"{table.path}: column {name!r} holds no numbers but {len(words)} different words, most often "
            f"{words.most_common(1)[0][0]!r}; {advice}"
        )
    else:
        problems += [
            f"{row.where}: {name} is {repr(field) if field else 'empty'}; expected a finite number such as 3.5"
            for row, field, value in zip(table.rows, fields, values, strict=True)
            if not math.isfinite(value)
        ]
    return torch.tensor(values, dtype=torch.float64)


def _number(field: str) -> float:
    """NaN if the field is not a number; Python's 1_000 does not count as one."""
    try:
        return math.nan if "_" in field else float(field)
    except ValueError:
        return math.nan


def _categories(table: Table, column: int, train: Sequence[int], problems: list[str]) -> tuple[str, ...]:
    """The categories of the training rows."""
    name = table.header[column]
    fields = [row.fields[column].strip() for row in table.rows]
    counts = Counter(fields[i] for i in train)
    in_train = set(train)
    for i, (row, field) in enumerate(zip(table.rows, fields, strict=True)):
        if not field:
            problems.append(f"{row.where}: {name} is empty; expected a category")
        elif counts[field] == (i in in_train):  # no sample, or this one alone
            how_many = "one sample" if counts[field] else "no sample"
            problems.append(
                f"{row.where}: {name} {field!r} has {how_many} in train; merge it with another category or drop the row"
            )
    return tuple(sorted(counts))


def _one_hot(table: Table, column: int, categories: Sequence[str]) -> list[tuple[str, Tensor]]:
    """A feature for each category."""
    index = {category: i for i, category in enumerate(categories)}
    codes = torch.tensor([index.get(row.fields[column].strip(), -1) for row in table.rows])
    return [(f"{table.header[column]}={category}", (codes == i).double()) for category, i in index.items()]


def _check_parts(path: Path, parts: Mapping[Split, list[int]], target: Tensor, problems: list[str]) -> None:
    for split, rows in parts.items():
        if len(rows) < 2:
            problems.append(f"{path}: {split} has {'one sample' if rows else 'no samples'}; at least two are needed")
    values = target[parts["train"]]
    if len(values) >= 2 and bool((values == values[0]).all()):
        problems.append(f"{path}: every target in train is {values[0].item():g}, so there is nothing to learn")
