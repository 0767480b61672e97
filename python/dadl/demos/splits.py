"""Splits into training, validation and test samples, and the choice of labelled ones."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
