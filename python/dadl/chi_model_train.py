"""``dadl train chi-model``: values in [0, 1] from images of which few have labels, on EfficientNet-Lite0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

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
from .image_lists import ImageLists, Row, Values, read_value_lists
from .list_recipe import ListRecipe
from .recipe import NonNegative, Table

HIDDEN = 256
METHODS: dict[str, type[FewLabels]] = {
    "chi-model": ChiModel,
    "mcd": MCD,
    "pi-model": PiModel,
    "r-drop": RDrop,
    "mean-teacher": MeanTeacher,
    "labels-only": LabelsOnly,
}


@dataclass(frozen=True, kw_only=True)
class ChiModelRecipe(ListRecipe[Values]):
    """Values in [0, 1] from images of which few have labels, with the χ-Model or a baseline.

    Views keep everything in its place, because values are often positions.
    """

    name: ClassVar[str] = "chi-model"
    shape_facts: ClassVar[tuple[str, ...]] = ("values",)
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-4, 1e-1), "eta": (1e-3, 1.0)}

    method: Literal["chi-model", "mcd", "pi-model", "r-drop", "mean-teacher", "labels-only"] = "chi-model"
    """The χ-Model, or which baseline."""

    eta: NonNegative = 0.1
    """Weight of the disagreement."""

    columns: tuple[int, ...] | None = None
    """Which values of a row to learn, from 0. [default: all]"""

    @property
    def needs_unlabelled(self) -> bool:
        return self.method != "labels-only"

    def read_lists(self) -> ImageLists[Values]:
        return read_value_lists(self.data, self.labels, self.columns)

    def describe(self, lists: ImageLists[Values]) -> Mapping[str, Any]:
        return {"values": len(lists.labelled[0].label)}

    def make_method(self, facts: Mapping[str, Any]) -> FewLabels:
        head = partial(mlp_head, FEATURES, HIDDEN, facts["values"], bounded=True)
        view = View(self.image_size, crop_area=None, operations=2, cutout=0.5)
        return METHODS[self.method](efficientnet_lite0(), head, view, REGRESSION, lr=self.lr, eta=self.eta)

    def make_loader(self, lists: ImageLists[Values], images: Tensor) -> DataLoader[Any]:
        labelled, unlabelled = images.split([len(lists.labelled), len(lists.unlabelled)])
        target = torch.tensor([row.label for row in lists.labelled])
        return uneven_loader(labelled, target, unlabelled, batch_size=self.batch_size)

    def score(self, rows: Sequence[Row[Values]], predicted: Tensor) -> Table:
        errors = 100 * (predicted - torch.tensor([row.label for row in rows])).abs().mean(dim=0)
        named = zip(self._names(len(errors)), errors.tolist(), strict=True)
        return {"all": {"MAE %": float(errors.mean())}} | {name: {"MAE %": error} for name, error in named}

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return dict(zip(self._names(facts["values"]), predicted.T.tolist(), strict=True))

    def _names(self, count: int) -> list[str]:
        return [f"column {i}" for i in (range(count) if self.columns is None else self.columns)]
