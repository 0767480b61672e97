"""``dadl train chi-model``: regression of values in [0, 1] from images with few labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.arrays.sprites import read_sprites
from ..data.fingerprint import fingerprint
from ..data.image_lists import ImageLists, Row, Values, read_value_lists
from ..data.rows import ChosenRows, tensor_loader
from ..errors import SettingsError
from ..networks.image_network import image_network
from ..networks.views import View, stored_size
from ..options import between
from ..output import JobProgress
from ..runs.list_recipe import ListRecipe
from ..runs.pictures import OpenedRun, draw_examples
from ..runs.recipe import Evaluation, RecipeData, Scores
from .method import (
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
from .settings import ChiModelSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = 256
SMALL_ERROR = 0.1  # of every value, in the pictures
METHODS: dict[str, type[FewLabels]] = {
    "chi-model": ChiModel,
    "mcd": MCD,
    "pi-model": PiModel,
    "r-drop": RDrop,
    "mean-teacher": MeanTeacher,
    "labels-only": LabelsOnly,
}


class ChiModelFacts(TypedDict):
    """What is known of the training data."""

    values: Annotated[int, between(1, 16_384)]


@dataclass(frozen=True, kw_only=True)
class ChiModelRecipe(ChiModelSettings, ListRecipe[Values]):
    """Regression of values from images, with and without labels."""

    shape_facts: ClassVar[tuple[str, ...]] = ("values",)
    facts_kind: ClassVar[Any] = ChiModelFacts
    score_columns: ClassVar[tuple[str, ...]] = ("MAE %",)
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-4, 1e-1), "eta": (1e-3, 1.0)}

    def resolved(self, facts: Mapping[str, Any]) -> "ChiModelRecipe":
        return replace(self, columns=tuple(self._columns(facts["values"])))

    def read(self, progress: JobProgress) -> RecipeData:
        if not self.draws_test:
            return super().read(progress)
        self.check_images()
        drawn = read_sprites(self.data, self.images, self.split_seed)
        columns = self._columns(len(drawn.names))
        if max(columns) >= len(drawn.names):
            names = ", ".join(drawn.names)
            raise SettingsError(f"there is no column {max(columns)}: the columns, numbered from 0, are {names}")
        target = drawn.target[:, columns]
        images = _resized(drawn.images, stored_size(self.image_size))
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(self.split_seed))
        test, validation, train = order.split([len(order) // 5, len(order) // 10, len(order) - len(order) * 3 // 10])
        labelled, unlabelled = train.split([count := math.ceil(len(train) * self.labels / 100), len(train) - count])

        def evaluation(rows: Tensor) -> Evaluation:
            loader = tensor_loader(images[rows], batch_size=self.batch_size)
            score = partial(self._table, target=target[rows])
            return Evaluation([str(row) for row in rows.tolist()], loader, score, **self._truth(target[rows]))

        parts = {"labelled": labelled, "unlabelled": unlabelled, "validation": validation, "test": test}
        return RecipeData(
            facts={"values": len(columns)},
            sizes={name: len(rows) for name, rows in parts.items()},
            fingerprints={"images": fingerprint(drawn.images, target)},
            loader=uneven_loader(images[labelled], target[labelled], images[unlabelled], batch_size=self.batch_size),
            validation=evaluation(validation),
            test=evaluation(test),
        )

    def view(self) -> View:
        return self.make_view(crop_area=None, operations=2, cutout=0.5)

    def make_network(self) -> tuple[nn.Module, int]:
        return image_network(self.network, self.backbone, self.image_size, positions=True)

    def read_lists(self) -> ImageLists[Values]:
        return read_value_lists(self.data, self.labels, self.columns, outside=self.outside)

    def describe(self, lists: ImageLists[Values]) -> Mapping[str, Any]:
        return {"values": len(lists.labelled[0].label)}

    def make_method(self, facts: Mapping[str, Any]) -> FewLabels:
        if self.columns is not None and len(self.columns) != facts["values"]:
            raise SettingsError(f"{len(self.columns)} columns, but data with {facts['values']} values")
        network, features = self.make_network()
        head = partial(mlp_head, features, HIDDEN, facts["values"], bounded=True, dropout=self.dropout)
        return METHODS[self.method](network, head, self.view(), REGRESSION, lr=self.lr, eta=self.eta)

    def make_loader(self, lists: ImageLists[Values], images: ChosenRows) -> DataLoader[Any]:
        labelled, unlabelled = images.split([len(lists.labelled), len(lists.unlabelled)])
        target = torch.tensor([row.label for row in lists.labelled])
        return uneven_loader(labelled, target, unlabelled, batch_size=self.batch_size)

    @classmethod
    def pictures(cls, run: Path) -> "list[tuple[str, Figure]]":
        """For the page of a comparison: test images with their values, and what was predicted."""
        if (opened := OpenedRun.of(cls, run)) is None:
            return []
        images, predicted = opened.test_images(), opened.predicted()
        target = torch.tensor(list(opened.task.test.targets.values())).T
        show = lambda values: " ".join(f"{value:.2f}" for value in values.tolist())
        rows = list(zip(target, predicted, strict=True))[: len(images)]
        captions = [f"{show(true)}\n{show(found)}" for true, found in rows]
        right = [bool(((true - found).abs() < SMALL_ERROR).all()) for true, found in rows]
        return [("test images, true values above predicted ones", draw_examples(images, captions, right))]

    def score(self, rows: Sequence[Row[Values]], predicted: Tensor) -> Scores:
        return self._table(predicted, torch.tensor([row.label for row in rows]))

    def truth(self, rows: Sequence[Row[Values]]) -> dict[str, Any]:
        return self._truth(torch.tensor([row.label for row in rows]))

    def _truth(self, target: Tensor) -> dict[str, Any]:
        names = ["target"] if target.shape[1] == 1 else [f"target {i}" for i in self._columns(target.shape[1])]
        return {
            "targets": dict(zip(names, target.T.tolist(), strict=True)),
            "region_sizes": dict.fromkeys(["all", *self._names(target.shape[1])], len(target)),
        }

    def _table(self, predicted: Tensor, target: Tensor) -> Scores:
        errors = 100 * (predicted - target).abs().mean(dim=0)
        named = zip(self._names(len(errors)), errors.tolist(), strict=True)
        return {"all": {"MAE %": float(errors.mean())}} | {name: {"MAE %": error} for name, error in named}

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return dict(zip(self._names(facts["values"]), predicted.T.tolist(), strict=True))

    def _columns(self, count: int) -> list[int]:
        return list(range(count) if self.columns is None else self.columns)

    def _names(self, count: int) -> list[str]:
        return [f"column {i}" for i in self._columns(count)]


def _resized(images: Tensor, size: int) -> Tensor:
    """Images ``[N, C, H, W]``, uint8, resized to ``size`` pixels in height and width."""
    if images.shape[-1] == size:
        return images
    resize = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return torch.cat([resize(part.float()).round().byte() for part in images.split(256)])
