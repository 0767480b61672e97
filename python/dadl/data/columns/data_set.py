"""A data set for regression: its splits, and what must be right with them. All problems are reported at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import ProblemsError
from ..text import did_you_mean
from .roles import Roles
from .samples import RegressionSamples, SampleReader
from .source import Source

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class RegressionData:
    """Three splits; image paths are relative to ``folder``, ``feature_names`` are the columns of ``features``.

    ``categories`` are those of each one-hot column, as :func:`.read_unseen_csv` takes them. ``roles`` are the columns
    that were read, with names in place of patterns; ``feature_columns`` name the column of each feature.
    """

    train: RegressionSamples
    val: RegressionSamples
    test: RegressionSamples
    folder: Path
    feature_names: tuple[str, ...]
    feature_columns: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    roles: Roles

    @property
    def splits(self) -> dict[Split, RegressionSamples]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def random_parts(count: int, seed: int) -> dict[Split, list[int]]:
    """A tenth of the rows each for validation and test, but two rows each if there are few; the rest trains."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(count // 10, min(2, count // 3))
    parts = order.split([count - 2 * held_out, held_out, held_out])
    return {split: np.sort(part.numpy()).tolist() for split, part in zip(SPLITS, parts, strict=True)}


def named_parts(source: Source, column: int, problems: list[str]) -> dict[Split, list[int]]:
    """The rows of each split, as that column names them."""
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    unknown: dict[str, list[str]] = {}
    for row, name in enumerate(source.texts(column)):
        if name in SPLITS:
            parts[name].append(row)
        else:
            unknown.setdefault(name, []).append(source.where(row))
    problems += [
        f"{wheres[0]}: {source.header[column]} {name!r} is none of {', '.join(SPLITS)}; {len(wheres)} rows have it"
        f"{did_you_mean(name, SPLITS)}"
        for name, wheres in unknown.items()
    ]
    return parts


def assembled(
    reader: SampleReader,
    roles: Roles,
    folder: Path,
    parts: Mapping[Split, list[int]],
    known: Mapping[str, Sequence[str]] | None = None,
) -> RegressionData:
    """The data set, or an error with the reader's problems so far and those of the columns."""
    problems, header = reader.problems, reader.source.header
    target = reader.target()
    if known is None:
        categories = reader.categories(parts["train"])
    else:
        categories = {name: tuple(values) for name, values in known.items()}
        reader.check_categories(categories)
    advice, hint = "leave it out or ask for it one-hot", "; --missing mean or zero fills it in"
    features = reader.features(categories, advice, hint)
    reader.check_texts()
    _check_parts(reader.source.path, parts, target, problems)
    if reader.missing and not problems:
        empty = features.values[parts["train"]].isnan().all(dim=0).tolist()
        problems += [
            f"{reader.source.path}: {name} has no value in train; leave the column out"
            for name, is_empty in zip(features.names, empty, strict=True)
            if is_empty
        ]
    if problems:
        raise ProblemsError(problems)
    train, val, test = (reader.samples(parts[split], target, features.values) for split in SPLITS)
    columns = tuple(header[column] for column in features.columns)
    return RegressionData(train, val, test, folder, features.names, columns, categories, roles)


def unseen(reader: SampleReader, categories: Mapping[str, tuple[str, ...]]) -> RegressionSamples:
    """All samples of the table, or an error as above."""
    reader.check_categories(categories)
    features = reader.features(categories, "the training had numbers there")
    reader.check_texts()
    if reader.problems:
        raise ProblemsError(reader.problems)
    return reader.samples(range(len(reader.source)), None, features.values)


def _check_parts(path: Path, parts: Mapping[Split, list[int]], target: Tensor, problems: list[str]) -> None:
    for split, rows in parts.items():
        if len(rows) < 2:
            problems.append(f"{path}: {split} has {'one sample' if rows else 'no samples'}; at least two are needed")
    values = target[torch.as_tensor(parts["train"], dtype=torch.int64)]
    if len(values) >= 2 and bool((values == values[0]).all()):
        problems.append(f"{path}: every target in train is {values[0].item():g}, so there is nothing to learn")
