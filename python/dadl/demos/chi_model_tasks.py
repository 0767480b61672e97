"""The tasks of ``dadl demo chi-model``: numbers, positions and classes, with networks that a CPU core can train."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..chi_model.key_points import from_heatmaps, pck, to_heatmaps
from ..chi_model.method import CLASSIFICATION, KEY_POINTS, REGRESSION, Objective, mlp_head
from ..data import sprites
from ..networks.views import View
from . import kanji
from .characters import IMAGE_SIZE, character_encoder
from .splits import IntArray

CELLS = 12  # of the heatmaps, along each side
WIDTH, POSITION_WIDTH, HIDDEN = 64, 24, 64  # features of an image, of one of its cells, and inside a head
DROPOUT = 0.2


@dataclass(frozen=True)
class Data:
    """The data of all tasks; ``key_points`` are those of the characters, ``[n, 4, 2]``."""

    characters: kanji.Kanji
    key_points: npt.NDArray[np.float64]
    sprites: sprites.Sprites


@dataclass(frozen=True)
class Task:
    """One thing to predict from ``images``.

    ``target`` is what ℓ takes, ``truth`` what ``error`` takes after predictions; a low error is good. Splits and
    labelled samples hold the same fraction of every one of the ``strata``.
    """

    images: Tensor
    target: Tensor
    truth: Tensor
    strata: IntArray
    objective: Objective
    view: View
    make_encoder: Callable[[], nn.Module]
    make_head: Callable[[], nn.Module]
    error: Callable[[Tensor, Tensor], float]


def stroke_task(data: Data) -> Task:
    """How many strokes? The error is the MAE in strokes."""
    strokes = data.characters.strokes
    most, truth = int(strokes.max()), torch.from_numpy(strokes).float().unsqueeze(1)
    return Task(
        _drawings(data),
        truth / most,
        truth,
        strokes,
        REGRESSION,
        _distorted(),
        partial(_encoder, 1, cells=1),
        partial(mlp_head, WIDTH, HIDDEN, 1, bounded=True, dropout=DROPOUT),
        lambda predicted, truth: float((most * predicted - truth).abs().mean()),
    )


def key_point_task(data: Data) -> Task:
    """Where do the first and the last stroke start and end? The error is the share of points that are missed, in %."""
    truth = torch.from_numpy(data.key_points).float()
    return Task(
        _drawings(data),
        to_heatmaps(truth, CELLS),
        truth,
        _one_stratum(truth),
        KEY_POINTS,
        _in_place(IMAGE_SIZE),
        _position_encoder,
        partial(_heatmap_head, truth.shape[1]),
        lambda predicted, truth: 100 - pck(from_heatmaps(predicted), truth),
    )


def sprite_task(data: Data) -> Task:
    """How large is the sprite, and where? The error is the MAE in % of the range."""
    truth = data.sprites.target
    return Task(
        data.sprites.images,
        truth,
        truth,
        _one_stratum(truth),
        REGRESSION,
        _in_place(data.sprites.images.shape[-1]),
        partial(_encoder, 3, cells=6),
        partial(mlp_head, WIDTH * 6**2, HIDDEN, truth.shape[1], bounded=True, dropout=DROPOUT),
        lambda predicted, truth: 100 * float((predicted - truth).abs().mean()),
    )


def radical_task(data: Data, least_characters: int) -> Task:
    """Which radical, of those with at least that many characters? The error is the share of wrong answers, in %."""
    _, radicals, counts = np.unique(data.characters.radicals, return_inverse=True, return_counts=True)
    common = counts[radicals] >= least_characters
    _, classes = np.unique(radicals[common], return_inverse=True)
    truth = torch.from_numpy(classes)
    return Task(
        _drawings(data)[torch.from_numpy(common)],
        truth,
        truth,
        classes,
        CLASSIFICATION,
        _distorted(),
        partial(_encoder, 1, cells=2),
        partial(mlp_head, WIDTH * 2**2, HIDDEN, int(classes.max()) + 1, bounded=False, dropout=DROPOUT),
        lambda predicted, truth: 100 * float((predicted.argmax(dim=1) != truth).float().mean()),
    )


def _drawings(data: Data) -> Tensor:
    return torch.from_numpy(data.characters.images).unsqueeze(1)


def _one_stratum(truth: Tensor) -> IntArray:
    return np.zeros(len(truth), dtype=np.int64)


def _distorted() -> View:
    return View(IMAGE_SIZE, crop_area=0.8, operations=2)


def _in_place(size: int) -> View:
    return View(size, crop_area=None, operations=2, cutout=0.4)


def _encoder(channels: int, cells: int) -> nn.Module:
    """Images to ``WIDTH · cells²`` features; with more than one cell they encode positions."""
    *body, _, flatten = character_encoder((16, 5, 2, 2), (32, 3, 1, 2), (WIDTH, 3, 1, 1), channels=channels)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(cells), flatten)


def _position_encoder() -> nn.Module:
    """Images to features of each cell, ``[B, POSITION_WIDTH, CELLS, CELLS]``, from most of the image."""
    return character_encoder((16, 5, 2, 2), *[(POSITION_WIDTH, 3, 1, 1)] * 4)[:-2]


def _heatmap_head(points: int) -> nn.Module:
    layers = [nn.Dropout2d(DROPOUT), nn.Conv2d(POSITION_WIDTH, HIDDEN, 1), nn.ReLU(), nn.Dropout2d(DROPOUT)]
    return nn.Sequential(*layers, nn.Conv2d(HIDDEN, points, 1))
