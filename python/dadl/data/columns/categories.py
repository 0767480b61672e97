"""Columns of categories as features of 0 and 1."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .source import Source

MOST_CATEGORIES = 1000
"""More are no categories but names: each would be a feature of its own."""


def known_categories(
    source: Source, column: int, train: Sequence[int], problems: list[str], *, missing: bool, unknown: bool
) -> tuple[str, ...]:
    """The categories of the training rows.

    Problems are empty fields, unless ``missing`` allows them; unless ``unknown`` allows them, categories with no sample
    in ``train``, or with one; and too many categories.
    """
    name, fields = source.header[column], source.texts(column)
    counts = Counter(map(fields.__getitem__, train))
    counts.pop("", None)
    if len(counts) > MOST_CATEGORIES:
        problems.append(
            f"{source.path}: {name} has {len(counts)} categories in train, each of which would be a feature; at most "
            f"{MOST_CATEGORIES} are expected: leave the column out, or merge categories"
        )
        return ()
    in_train, doubtful = set(train), {field for field in set(fields) if counts[field] < 2}
    for row, field in enumerate(fields if doubtful else []):
        if not field:
            if not missing:
                problems.append(f"{source.where(row)}: {name} is empty; expected a category{MISSING_HINT}")
        elif not unknown and counts[field] == (row in in_train):  # no sample, or this one alone
            how_many = "one sample" if counts[field] else "no sample"
            problems.append(
                f"{source.where(row)}: {name} {field!r} has {how_many} in train; merge it with another category, "
                "drop the row, or let --unknown zero take such categories for none"
            )
    return tuple(sorted(counts))


def check_known(
    source: Source, column: int, known: Sequence[str], problems: list[str], *, missing: bool, unknown: bool
) -> None:
    """Add a problem for each field that is none of the categories of the training, unless that is allowed."""
    name, allowed = source.header[column], {*known, *([""] if missing else [])}
    problems += [
        f"{source.where(row)}: {name} is {field!r}; the training had {', '.join(map(repr, known))}"
        for row, field in enumerate(source.texts(column))
        if field not in allowed and not (unknown and field)
    ]


def one_hot(source: Source, column: int, categories: Sequence[str]) -> npt.NDArray[np.float64]:
    """A feature for each category, ``[n, C]``: NaN where the field is empty, 0 where its category is unknown."""
    index = {category: position for position, category in enumerate(categories)}
    index[""] = -2
    codes = np.array([index.get(field, -1) for field in source.texts(column)], dtype=np.int64)
    features: npt.NDArray[np.float64] = (codes[:, None] == np.arange(len(categories))).astype(np.float64)
    features[codes == -2] = np.nan
    return features


MISSING_HINT = ", or let --missing mean or zero fill it in"
