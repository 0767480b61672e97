"""Samples for regression from the columns of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .categories import check_known, known_categories, one_hot
from .dates import read_dates
from .number_format import NumberFormat
from .numbers import NumberReader
from .roles import Roles
from .source import Source


@dataclass(frozen=True)
class ImageFile:
    """An image: its path relative to the data folder, and the file and line where it is named."""

    where: str
    path: str


@dataclass(frozen=True)
class RegressionSamples:
    """The n samples of one split, in the order of the file; fields without a column in the file are empty.

    ``where``: file and line of each; of tables without lines the number of the row, from 1. ``target``: ``[n]``,
    float64; empty for unseen samples. ``images``: their files, as :func:`dadl.data.images.load_images` takes them.
    ``texts``: the texts of each sample. ``features``: ``[n, F]``, float64, as in the file, NaN where a value is
    missing.
    """

    where: list[str]
    target: Tensor
    images: list[ImageFile]
    texts: list[tuple[str, ...]]
    features: Tensor


@dataclass(frozen=True)
class Layout:
    """What each column holds, by position; ``dates`` and ``categories`` are among the features."""

    target: int | None = None
    image: int | None = None
    texts: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    dates: frozenset[int] = frozenset()
    categories: frozenset[int] = frozenset()

    @classmethod
    def of(cls, roles: Roles, at: Mapping[str, int]) -> "Layout":
        return cls(
            target=None if roles.target is None else at[roles.target],
            image=None if roles.image is None else at[roles.image],
            texts=tuple(at[name] for name in roles.text),
            features=tuple(at[name] for name in roles.ordered),
            dates=frozenset(at[name] for name in roles.dates),
            categories=frozenset(at[name] for name in roles.one_hot),
        )


@dataclass(frozen=True)
class Features:
    """Features ``[n, F]``, their names, and for each the position of its column."""

    names: tuple[str, ...]
    columns: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class SampleReader:
    """Reads samples from a table; everything wrong with them is added to ``problems``.

    ``missing``: whether features may be missing. ``unknown``: whether there may be categories that the training lacks.
    """

    source: Source
    layout: Layout
    form: NumberFormat
    missing: bool
    unknown: bool
    problems: list[str]

    def target(self) -> Tensor:
        """``[n]``, float64."""
        assert self.layout.target is not None
        return torch.from_numpy(self._numbers.read(self.layout.target, "regression needs a target of numbers"))

    def categories(self, train: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """The categories of each one-hot column among the training rows."""
        return {
            self.source.header[column]: known_categories(
                self.source, column, train, self.problems, missing=self.missing, unknown=self.unknown
            )
            for column in self.layout.features
            if column in self.layout.categories
        }

    def check_categories(self, known: Mapping[str, Sequence[str]]) -> None:
        """Compare the categories of these rows with those of the training."""
        for name, categories in known.items():
            column = self.source.header.index(name)
            check_known(self.source, column, categories, self.problems, missing=self.missing, unknown=self.unknown)

    def features(self, categories: Mapping[str, Sequence[str]], advice: str, hint: str = "") -> Features:
        """Numbers, days and one feature for each category. ``advice`` and ``hint`` as for
        :meth:`.NumberReader.read`."""
        source, names, columns, parts = self.source, [], [], []
        for column in self.layout.features:
            name = source.header[column]
            if column in self.layout.categories:
                parts.append(one_hot(source, column, categories[name]))
                names += [f"{name}={category}" for category in categories[name]]
            else:
                if column in self.layout.dates:
                    values = read_dates(source, column, self.problems, missing=self.missing, hint=hint)
                else:
                    values = self._numbers.read(column, advice, missing=self.missing, hint=hint)
                parts.append(values[:, None])
                names.append(name)
            columns += [column] * parts[-1].shape[1]
        whole = np.concatenate(parts, axis=1) if parts else np.empty((len(source), 0))
        return Features(tuple(names), tuple(columns), torch.from_numpy(whole))

    def images(self) -> list[ImageFile]:
        if self.layout.image is None:
            return []
        return [ImageFile(self.source.where(row), path) for row, path in enumerate(self._texts[self.layout.image])]

    def check_texts(self) -> None:
        columns = self.layout.texts
        self.problems.extend(
            f"{self.source.where(row)}: {self.source.header[column]} is empty"
            for row, fields in enumerate(zip(*map(self._texts.__getitem__, columns), strict=True))
            for column, field in zip(columns, fields, strict=True)
            if not field
        )

    def samples(self, rows: Sequence[int], target: Tensor | None, features: Tensor) -> RegressionSamples:
        """The samples of some rows."""
        images, texts = self.images(), [self._texts[column] for column in self.layout.texts]
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        return RegressionSamples(
            where=list(map(self.source.where, rows)),
            target=torch.empty(0, dtype=torch.float64) if target is None else target[chosen],
            images=[images[row] for row in rows] if images else [],
            texts=[tuple(column[row] for column in texts) for row in rows] if texts else [],
            features=features[chosen],
        )

    @cached_property
    def _numbers(self) -> NumberReader:
        return NumberReader(self.source, self.form, self.problems)

    @cached_property
    def _texts(self) -> dict[int, list[str]]:
        columns = [*self.layout.texts, *([] if self.layout.image is None else [self.layout.image])]
        return {column: self.source.texts(column) for column in columns}
