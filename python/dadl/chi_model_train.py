"""``dadl train chi-model``: values in [0, 1] from images of which few have labels, on EfficientNet-Lite0."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .augmentation import View
from .chi_model import (
    MCD,
    REGRESSION,
    ChiModel,
    FewLabels,
    LabelsOnly,
    MeanTeacher,
    PiModel,
    RDrop,
    mlp_head,
    uneven_loader,
)
from .efficientnet import FEATURES, efficientnet_lite0
from .image_lists import ImageLists, Values, read_value_lists
from .list_training import ListSettings, Score

HIDDEN = 256
METHODS: dict[str, type[FewLabels]] = {
    "chi-model": ChiModel,
    "mcd": MCD,
    "pi-model": PiModel,
    "r-drop": RDrop,
    "mean-teacher": MeanTeacher,
    "labels-only": LabelsOnly,
}


@dataclass(frozen=True)
class Settings(ListSettings[ImageLists[Values]]):
    """Those of every training, η, and which of the values to learn, by default all.

    Views keep everything in its place, because values are often positions.
    """

    eta: float = 0.1
    columns: tuple[int, ...] | None = None

    @property
    def needs_unlabelled(self) -> bool:
        return self.method != "labels-only"

    def read(self, folder: Path) -> ImageLists[Values]:
        return read_value_lists(folder, self.labels, self.columns)

    def describe(self, lists: ImageLists[Values]) -> str:
        return f"{len(lists.labelled[0].label)} values each"

    def make_method(self, lists: ImageLists[Values]) -> FewLabels:
        head = partial(mlp_head, FEATURES, HIDDEN, len(lists.labelled[0].label), bounded=True)
        view = View(self.image_size, crop_area=None, operations=2, cutout=0.5)
        return METHODS[self.method](efficientnet_lite0(), head, view, REGRESSION, lr=self.lr, eta=self.eta)

    def make_loader(self, lists: ImageLists[Values], images: Tensor) -> DataLoader[Any]:
        labelled, unlabelled = images.split([len(lists.labelled), len(lists.unlabelled)])
        target = torch.tensor([row.label for row in lists.labelled])
        return uneven_loader(labelled, target, unlabelled, batch_size=self.batch_size)

    def score(self, lists: ImageLists[Values], predicted: Tensor) -> Score:
        errors = (predicted - torch.tensor([row.label for row in lists.test])).abs().mean(dim=0)
        by_path = {row.path: values for row, values in zip(lists.test, predicted.tolist(), strict=True)}
        names = range(len(errors)) if self.columns is None else self.columns
        columns = {"MAE %": 100 * float(errors.mean())}
        columns |= {f"column {name}": 100 * float(error) for name, error in zip(names, errors, strict=True)}
        return Score(columns, {"mae": float(errors.mean()), "mae_by_column": errors.tolist(), "predicted": by_path})
