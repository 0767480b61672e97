"""``dadl train self-tuning``: fine-tune a network on lists of classes, with and without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.class_folders import draws_parts, has_class_folders, read_class_folders
from ..data.image_lists import ClassLists, ImageLists, Row, read_lists
from ..data.rows import ChosenRows
from ..networks.image_network import image_network
from ..networks.views import View
from ..options import between
from ..runs.list_recipe import ListRecipe
from ..runs.pictures import class_examples
from ..runs.recipe import Scores
from ..runs.scores import CLASS_COLUMNS, class_columns, class_scores, class_truth
from .method import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader
from .settings import SelfTuningSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD_THRESHOLDS: dict[str, float] = {"self-tuning": 0.0, "fixmatch": 0.95, "fine-tuning": 0.0}


class _Facts(TypedDict):
    classes: Annotated[int, between(1, 1_000_000)]


class SelfTuningFacts(_Facts, total=False):
    """What is known of the training data; names of classes only if they have any."""

    names: list[str]


@dataclass(frozen=True, kw_only=True)
class SelfTuningRecipe(SelfTuningSettings, ListRecipe[int]):
    """Fine-tuning on lists of classes, with and without labels."""

    shape_facts: ClassVar[tuple[str, ...]] = ("classes", "names")
    facts_kind: ClassVar[Any] = SelfTuningFacts
    score_columns: ClassVar[tuple[str, ...]] = CLASS_COLUMNS
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {"lr": (1e-4, 1e-1), "temperature": (0.02, 1.0)}

    @property
    def draws_test(self) -> bool:
        return draws_parts(self.data)

    def resolved(self, facts: Mapping[str, Any]) -> "SelfTuningRecipe":
        built_in = self.augment is None or self.method == "fixmatch"  # views that may mirror
        return replace(
            self,
            threshold=METHOD_THRESHOLDS[self.method] if self.threshold is None else self.threshold,
            flip=self.flip is not False if built_in else self.flip,
        )

    def view(self) -> View:
        return self.make_view(crop_area=0.2, operations=2, cutout=0.5, flip=self.flip is not False)

    def make_network(self) -> tuple[nn.Module, int]:
        return image_network(self.network, self.backbone, self.image_size)

    def read_lists(self) -> ClassLists:
        if has_class_folders(self.data):
            lists = read_class_folders(self.data, self.split_seed, outside=self.outside)
            return lists.few_labels(self.labels, self.split_seed)
        return read_lists(self.data, self.labels, outside=self.outside)

    def describe(self, lists: ImageLists[int]) -> Mapping[str, Any]:
        assert isinstance(lists, ClassLists)
        return {"classes": lists.num_classes, **({"names": list(lists.names)} if lists.names else {})}

    def make_method(self, facts: Mapping[str, Any]) -> FineTuning:
        (backbone, features), num_classes = self.make_network(), facts["classes"]
        view = self.view()
        threshold = self.resolved(facts).threshold
        assert threshold is not None
        if self.method == "fine-tuning":
            return FineTuning(backbone, features, num_classes, view, lr=self.lr)
        if self.method == "fixmatch":
            weak_view = View(self.image_size, crop_area=0.6, flip=self.flip is not False)
            return FixMatch(backbone, features, num_classes, view, lr=self.lr, weak_view=weak_view, threshold=threshold)
        return SelfTuning(
            backbone,
            features,
            num_classes,
            view,
            lr=self.lr,
            projection_size=self.projection_size,
            slots=self.slots,
            temperature=self.temperature,
            momentum=self.momentum,
            threshold=threshold,
        )

    def make_loader(self, lists: ImageLists[int], images: ChosenRows) -> DataLoader[Any]:
        target = torch.tensor([row.label for row in lists.labelled] + [UNLABELLED] * len(lists.unlabelled))
        pairs = max(len(lists.labelled), len(lists.unlabelled))
        if self.method == "fine-tuning":  # as many steps, on the labelled images only
            labelled = slice(len(lists.labelled))
            images, target = images.take(labelled), target[labelled]
        return paired_loader(images, target, batch_size=self.batch_size, pairs=pairs)

    @classmethod
    def pictures(cls, run: Path) -> "list[tuple[str, Figure]]":
        """For the page of a comparison: test images with their classes."""
        return class_examples(cls, run)

    def score(self, rows: Sequence[Row[int]], predicted: Tensor) -> Scores:
        return class_scores(predicted, torch.tensor([row.label for row in rows]))

    def answers(self, predicted: Tensor) -> Tensor:
        return predicted.argmax(dim=1)

    def truth(self, rows: Sequence[Row[int]]) -> dict[str, Any]:
        return class_truth(torch.tensor([row.label for row in rows]))

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return class_columns(predicted, facts.get("names", ()))
