"""``dadl train self-tuning``: fine-tune EfficientNet-Lite0 on lists of classes, also on the images without a label."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .augmentation import View
from .efficientnet import FEATURES, efficientnet_lite0
from .image_lists import ClassLists, read_lists
from .list_training import ListSettings, Score
from .self_tuning import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader

METHOD_THRESHOLDS: dict[str, float] = {"self-tuning": 0.0, "fixmatch": 0.95, "fine-tuning": 0.0}


@dataclass(frozen=True)
class Settings(ListSettings[ClassLists]):
    """Those of every training and of Self-Tuning; ``threshold=None`` is the method's own."""

    projection_size: int = 1024
    slots: int = 32
    temperature: float = 0.07
    threshold: float | None = None
    flip: bool = True

    @property
    def needs_unlabelled(self) -> bool:
        return self.method != "fine-tuning"

    def read(self, folder: Path) -> ClassLists:
        return read_lists(folder, self.labels)

    def describe(self, lists: ClassLists) -> str:
        return f"{lists.num_classes} classes"

    def make_method(self, lists: ClassLists) -> FineTuning:
        backbone, num_classes = efficientnet_lite0(), lists.num_classes
        view = View(self.image_size, crop_area=0.2, operations=2, cutout=0.5, flip=self.flip)
        threshold = METHOD_THRESHOLDS[self.method] if self.threshold is None else self.threshold
        if self.method == "fine-tuning":
            return FineTuning(backbone, FEATURES, num_classes, view, lr=self.lr)
        if self.method == "fixmatch":
            weak_view = View(self.image_size, crop_area=0.6, flip=self.flip)
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

    def make_loader(self, lists: ClassLists, images: Tensor) -> DataLoader[Any]:
        target = torch.tensor([row.label for row in lists.labelled] + [UNLABELLED] * len(lists.unlabelled))
        pairs = max(len(lists.labelled), len(lists.unlabelled))
        if not self.needs_unlabelled:  # as many steps, on the labelled images alone
            images, target = images[: len(lists.labelled)], target[: len(lists.labelled)]
        return paired_loader(images, target, batch_size=self.batch_size, pairs=pairs)

    def score(self, lists: ClassLists, predicted: Tensor) -> Score:
        classes = predicted.argmax(dim=1)
        accuracy = 100 * float((classes == torch.tensor([row.label for row in lists.test])).float().mean())
        by_path = {row.path: int(label) for row, label in zip(lists.test, classes, strict=True)}
        results = {"classes": lists.num_classes, "accuracy": accuracy, "predicted": by_path}
        return Score({"Accuracy %": accuracy}, results)
