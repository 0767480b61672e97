"""Regression data from files: images, texts or numbers with a numeric target. All problems are reported at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import ProblemsError
from .columns.arrow import as_path
from .columns.data_set import SPLITS, RegressionData, assembled, named_parts, random_parts, unseen
from .columns.number_format import Decimal, NumberFormat, Thousands
from .columns.roles import Roles
from .columns.samples import Layout, RegressionSamples, SampleReader
from .columns.source import Source, positions, read_source
from .images import image_problems
from .tables import Table, read_table

STS_B_FILES = ("train", "dev", "test")
STS_B_COLUMNS = 10
STS_B_FORMAT: dict[str, Any] = {"delimiter": "\t", "quoted": False}
STATED = NumberFormat(".")


def read_csv(
    path: Any,
    target: str,
    *,
    image: str | None = None,
    text: Sequence[str] = (),
    features: Sequence[str] = (),
    one_hot: Sequence[str] = (),
    dates: Sequence[str] = (),
    split: str | None = None,
    seed: int = 0,
    decimal: Decimal | None = None,
    thousands: Thousands | None = None,
    missing: bool = False,
    unknown: bool = False,
    known: Mapping[str, Sequence[str]] | None = None,
    check_images: bool = True,
    outside: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> RegressionData:
    """Read any table with a header, a numeric target column, and columns of images, texts or numbers.

    A table is a CSV file, a parquet or Arrow file (``.parquet``, ``.feather``, ``.arrow``), or a frame of pandas,
    polars or pyarrow. The columns of a CSV file are separated by commas, semicolons or tabs, and fields may be quoted.
    In tables with types, dates and times are numbers: days since 1970-01-01 (in UTC where there is a time zone),
    durations and times of day also days.

    Args:
        path: the file or the frame; image paths are relative to the file's folder.
        target: column of the target.
        image: column of image paths.
        text: columns of texts.
        features: columns of numbers. These and the other columns of inputs may be patterns such as ``size_*``, which
            stand for the columns that match and have no other role; ``*`` stands for all others.
        one_hot: columns of categories. Each category becomes a feature ``column=category`` of 0 or 1. A column may also
            be listed in ``features``, which then sets its position; otherwise it follows them.
        dates: columns of dates such as 2024-05-31 or 2024-05-31 14:30 (ISO 8601), read as days since 1970-01-01. They
            may be listed in ``features`` too.
        split: column that says ``train``, ``val`` or ``test``; without one, a tenth of the samples is drawn with
            ``seed`` for validation and another tenth for the test.
        seed: of that draw.
        decimal: the decimal sign of numbers in text, ``"."`` or ``","``. By default the point; but then a column is
            refused in which points may as well separate thousands, such as one that holds only values like 2.155.
        thousands: the separator of thousands in text: ``"."``, ``","``, ``" "``, ``"'"`` or ``"none"``, the default.
        missing: whether features may be missing (empty, or one of pandas' words for it, such as NA); they are then NaN.
        unknown: whether there may be categories that ``train`` lacks; their features are 0.
        known: the categories of each one-hot column, if they are not those of ``train`` but of an earlier training.
        check_images: decode all images once, so that missing and damaged ones are reported too.
        outside: whether images may lie out of the folder, if they are checked.
        on_image: called after each checked image.

    Raises:
        ProblemsError: everything that is wrong with the table, each with its row: what :func:`.read_table` finds;
            columns that are not there; numbers that cannot be read, could be two, are NaN, infinite or beyond 1e30;
            empty texts, paths or categories; unknown splits; splits with fewer than two samples; columns of words among
            the numbers; categories with fewer than two samples in ``train``; a target that is the same in all of
            ``train``; missing and damaged images.
        ValueError: no input columns, or a column that is named twice.
        TypeError: neither a path nor a frame.
    """
    path = as_path(path)
    roles = Roles(target, image, tuple(text), tuple(features), tuple(dates), tuple(one_hot), split)
    problems: list[str] = []
    source, roles, at = _opened(path, roles, problems)
    form = NumberFormat(decimal, thousands)
    reader = SampleReader(source, Layout.of(roles, at), form, missing, unknown, problems)
    parts = random_parts(len(source), seed) if split is None else named_parts(source, at[split], problems)
    if image is not None and check_images:
        problems += image_problems(path.parent, reader.images(), on_image, outside=outside)
    return assembled(reader, roles, path.parent, parts, known)


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
    tables = [read_table(folder / f"{n}_new.tsv", problems, **STS_B_FORMAT) for n in STS_B_FILES]
    problems += [
        f"{table.path}: expected {STS_B_COLUMNS} columns between tabs, got {len(table.header)}"
        for table in tables
        if len(table.header) not in (0, STS_B_COLUMNS)
    ]
    if any(len(table.header) != STS_B_COLUMNS for table in tables):
        raise ProblemsError(problems)
    whole = Table.of(folder, tables[0].header, [row for table in tables for row in table.rows])
    ends = list(accumulate(map(len, tables)))
    parts = {split: list(range(start, end)) for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False)}
    layout = Layout(target=9, texts=(7, 8))
    return assembled(SampleReader(whole, layout, STATED, False, False, problems), Roles(), folder, parts)


def read_unseen_csv(
    path: Any,
    *,
    image: str | None = None,
    text: Sequence[str] = (),
    features: Sequence[str] = (),
    dates: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    decimal: Decimal | None = None,
    thousands: Thousands | None = None,
    missing: bool = False,
    unknown: bool = False,
) -> RegressionSamples:
    """Read samples without a target. Columns that are not named are ignored. Images are not opened.

    Args:
        path: as for :func:`read_csv`.
        image: column of image paths.
        text: columns of texts.
        features: columns of numbers, and of categories if they are in ``categories``.
        dates: columns of dates.
        categories: the categories of each one-hot column, from training; columns not in ``features`` follow them.
        decimal: the decimal sign; here a point is always one if nothing else is said, as the training has settled it.
        thousands: as for :func:`read_csv`.
        missing: as for :func:`read_csv`.
        unknown: whether there may be categories that did not occur in training; their features are 0.

    Raises:
        ProblemsError: as :func:`read_csv`, and for categories that did not occur in training.
        ValueError: no input columns, or a column that is named twice.
        TypeError: neither a path nor a frame.
    """
    known = {name: tuple(values) for name, values in (categories or {}).items()}
    roles = Roles(None, image, tuple(text), tuple(features), tuple(dates), tuple(known))
    problems: list[str] = []
    source, roles, at = _opened(as_path(path), roles, problems)
    form = NumberFormat(decimal, thousands)
    reader = SampleReader(source, Layout.of(roles, at), form if form.stated else STATED, missing, unknown, problems)
    return unseen(reader, known)


def read_unseen_sts_b(path: Path) -> RegressionSamples:
    """Read pairs of sentences without a score: the columns ``sentence1`` and ``sentence2`` of a file like STS-B-DIR's.

    Raises a :class:`.ProblemsError` as :func:`read_sts_b` does.
    """
    problems: list[str] = []
    table = read_table(path, problems, **STS_B_FORMAT)
    roles = Roles(text=("sentence1", "sentence2"))
    at = positions(table, roles.names, problems) if table.header else {}
    if len(at) < len(roles.names):
        raise ProblemsError(problems)
    return unseen(SampleReader(table, Layout.of(roles, at), STATED, False, False, problems), {})


def _opened(path: Path, roles: Roles, problems: list[str]) -> tuple[Source, Roles, dict[str, int]]:
    """The table, the names of its columns and their positions."""
    roles.check()
    source = read_source(path, problems)
    if source is None:
        raise ProblemsError(problems)
    roles = roles.resolved(source, problems)
    at = positions(source, roles.names, problems)
    if len(at) < len(roles.names) or not roles.inputs:
        raise ProblemsError(problems)
    dates = [*roles.dates, *(name for name in roles.features if source.is_time(at[name]))]
    roles = replace(roles, dates=tuple(name for name in dict.fromkeys(dates) if name not in roles.one_hot))
    return source, roles, at
