"""Splits into training, validation and test samples, and the choice of labelled ones."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Indices of the training, validation and test samples."""

    train: IntArray
    validation: IntArray
    test: IntArray


def split_balanced(labels: IntArray, per_label: int = 40, seed: int = 0) -> Split:
    """Equally many validation and test samples of every label, as far as rare labels allow; the rest trains.

    Of the n samples of a label, two fifths go to validation and two fifths to test, at most ``per_label`` each. That is
    a lot, because rare labels matter here and an error over a handful of samples says little. Every label has training
    samples: 5 samples are split 1 / 2 / 2 (train / validation / test), 4 samples 2 / 1 / 1, 3 samples 1 / 1 / 1,
    2 samples 1 / 0 / 1, and a single sample is for training.
    """
    rng = np.random.default_rng(seed)
    train, validation, test = [], [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        n = len(members)
        held_out = min(per_label, max(1, 2 * n // 5)) if n > 2 else 0
        tested = 1 if n == 2 else held_out
        test.append(members[:tested])
        validation.append(members[tested : tested + held_out])
        train.append(members[tested + held_out :])
    return Split(*(np.sort(np.concatenate(parts)) for parts in (train, validation, test)))


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


def choose_labelled(labels: IntArray, ratio: float, seed: int = 0) -> IntArray:
    """Indices of the samples that keep their label: the fraction ``ratio`` of every label, rounded up.

    With the same seed, a smaller ratio chooses a subset of a larger one's choice.
    """
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([samples[: math.ceil(ratio * len(samples))] for samples in members]))
