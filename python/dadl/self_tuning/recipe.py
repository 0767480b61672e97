"""``dadl train self-tuning``: fine-tune EfficientNet-Lite0 on lists of classes, with and without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.image_lists import ClassLists, ImageLists, Row, read_lists
from ..data.rows import ChosenRows
from ..errors import SettingsError
from ..networks.efficientnet import FEATURES, efficientnet_lite0
from ..networks.views import View
from ..options import Fraction, Positive, Width, between
from ..runs.list_recipe import ListRecipe
from ..runs.recipe import Scores
from ..runs.scores import CLASS_COLUMNS, class_columns, class_scores, class_truth
from .method import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader

METHOD_THRESHOLDS: dict[str, float] = {"self-tuning": 0.0, "fixmatch": 0.95, "fine-tuning": 0.0}


class SelfTuningFacts(TypedDict):
    """What is known of the training data."""

    classes: Annotated[int, between(1, 1_000_000)]


@dataclass(frozen=True, kw_only=True)
class SelfTuningRecipe(ListRecipe[int]):
    """Image classification with few labels on a pre-trained backbone, with Self-Tuning or a baseline."""

    name: ClassVar[str] = "self-tuning"
    shape_facts: ClassVar[tuple[str, ...]] = ("classes",)
    facts_kind: ClassVar[Any] = SelfTuningFacts
    score_columns: ClassVar[tuple[str, ...]] = CLASS_COLUMNS
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-4, 1e-1), "temperature": (0.02, 1.0)}

    method: Literal["self-tuning", "fixmatch", "fine-tuning"] = "self-tuning"
    """Self-Tuning or a baseline."""

    projection_size: Width = 1024
    """Size of queries and keys (self-tuning)."""

    slots: Width = 32
    """Keys per class in the queue (self-tuning)."""

    temperature: Positive = 0.07
    """Temperature of the contrast (self-tuning)."""

    threshold: Fraction | None = None
    """Lowest confidence of a pseudo-label. [default: self-tuning 0, fixmatch 0.95]"""

    flip: bool | None = None
    """Mirror images at random; not for characters or digits. [default: true, without augment or in fixmatch's weak
    views]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None and self.flip is not None and self.method != "fixmatch":
            raise SettingsError("augment replaces the view that flip configures: leave out one of the two")

    def resolved(self, facts: Mapping[str, Any]) -> "SelfTuningRecipe":
        built_in = self.augment is None or self.method == "fixmatch"  # views that may mirror
        return replace(
            self,
            threshold=METHOD_THRESHOLDS[self.method] if self.threshold is None else self.threshold,
            flip=self.flip is not False if built_in else self.flip,
        )

    def view(self) -> View:
        return self.make_view(crop_area=0.2, operations=2, cutout=0.5, flip=self.flip is not False)

    def read_lists(self) -> ClassLists:
        return read_lists(self.data, self.labels, outside=self.outside)

    def describe(self, lists: ImageLists[int]) -> Mapping[str, Any]:
        return {"classes": 1 + max(row.label for row in lists.labelled)}

    def make_method(self, facts: Mapping[str, Any]) -> FineTuning:
        backbone, num_classes = efficientnet_lite0(), facts["classes"]
        view = self.view()
        threshold = self.resolved(facts).threshold
        assert threshold is not None
        if self.method == "fine-tuning":
            return FineTuning(backbone, FEATURES, num_classes, view, lr=self.lr)
        if self.method == "fixmatch":
            weak_view = View(self.image_size, crop_area=0.6, flip=self.flip is not False)
            return FixMatch(backbone, FEATURES, num_classes, view, lr=self.lr, weak_view=weak_view, threshold=threshold)
        return SelfTuning(
            backbone,
            FEATURES,
            num_classes,
            view,
            lr=self.lr,
            projection_size=self.projection_size,
            slots=self.slots,
            temperature=self.temperature,
            threshold=threshold,
        )

    def make_loader(self, lists: ImageLists[int], images: ChosenRows) -> DataLoader[Any]:
        target = torch.tensor([row.label for row in lists.labelled] + [UNLABELLED] * len(lists.unlabelled))
        pairs = max(len(lists.labelled), len(lists.unlabelled))
        if self.method == "fine-tuning":  # as many steps, on the labelled images only
            labelled = slice(len(lists.labelled))
            images, target = images.take(labelled), target[labelled]
        return paired_loader(images, target, batch_size=self.batch_size, pairs=pairs)

    def score(self, rows: Sequence[Row[int]], predicted: Tensor) -> Scores:
        return class_scores(predicted, torch.tensor([row.label for row in rows]))

    def truth(self, rows: Sequence[Row[int]]) -> dict[str, Any]:
        return class_truth(torch.tensor([row.label for row in rows]))

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return class_columns(predicted)
