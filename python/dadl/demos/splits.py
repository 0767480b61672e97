"""Splits into training, validation and test samples, the choice of labelled ones, and the lists of both."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.image_lists import FULL, TEST, VALIDATION, list_name

IntArray = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Indices of the training, validation and test samples."""

    train: IntArray
    validation: IntArray
    test: IntArray


def split_stratified(labels: IntArray, validation: float = 0.15, test: float = 0.25, seed: int = 0) -> Split:
    """These fractions of every label for validation and test, rounded to whole samples; the rest trains."""
    rng = np.random.default_rng(seed)
    parts: list[list[IntArray]] = [[], [], []]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(np.rint(len(members) * np.array([validation, test]))).astype(np.int64)
        for part, samples in zip(parts, np.split(members, ends), strict=True):
            part.append(samples)
    held_out, tested, train = (np.sort(np.concatenate(part)) for part in parts)
    return Split(train, held_out, tested)


def choose_labelled(labels: IntArray, percent: int, seed: int = 0) -> IntArray:
    """Indices of the samples that keep their label: ``percent`` % of every label, rounded up."""
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([samples[: math.ceil(percent * len(samples) / 100)] for samples in members]))


def write_lists(folder: Path, names: Sequence[str], labels: Sequence[str], strata: IntArray, percent: int) -> None:
    """Write the lists of a stratified split of the images with these names, of which ``percent`` % are labelled."""
    split = split_stratified(strata)
    lists = {
        list_name(percent): split.train[choose_labelled(strata[split.train], percent)],
        list_name(FULL): split.train,
        VALIDATION: split.validation,
        TEST: split.test,
    }
    for name, samples in lists.items():
        lines = [f"{names[i]} {labels[i]}\n" for i in samples]
        (folder / name).write_text("".join(lines), encoding="utf-8")
