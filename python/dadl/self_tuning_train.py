"""``dadl train``: fine-tune EfficientNet-Lite0 on image lists, with or without the images that have no label."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from dadl_ext import build_info

from .augmentation import View
from .efficientnet import FEATURES, efficientnet_lite0
from .image_lists import load_images, read_lists
from .report import Cells, JobProgress, environment, markdown_table, rich_table, write_json
from .self_tuning import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader
from .training import fit, predict, tensor_loader

MethodName = Literal["self-tuning", "fixmatch", "fine-tuning"]
METHOD_THRESHOLDS: dict[str, float] = {"self-tuning": 0.0, "fixmatch": 0.95, "fine-tuning": 0.0}


@dataclass(frozen=True)
class Settings:
    """Everything that a training depends on besides the data; ``threshold=None`` is the method's own."""

    method: MethodName
    labels: int
    epochs: int = 120
    batch_size: int = 24
    lr: float = 1e-3
    image_size: int = 224
    projection_size: int = 1024
    slots: int = 32
    temperature: float = 0.07
    threshold: float | None = None
    flip: bool = True
    seed: int = 0

    def make_method(self, num_classes: int) -> FineTuning:
        """The method with its backbone, initialised from the seed."""
        torch.manual_seed(self.seed)
        backbone = efficientnet_lite0()
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


class OtherSettingsError(ValueError):
    """The output folder holds a training with other settings."""


def train_on_lists(data: Path, output: Path, settings: Settings, device: str, console: Console) -> None:
    """Train, test once at the end, and write ``last.ckpt``, ``table.md`` and ``results.json`` to ``output``.

    An interrupted training continues from ``output/last.ckpt``. Raises :class:`.ImageListError` before training if
    anything is wrong with ``data`` and :class:`OtherSettingsError` if ``output`` holds a training with other settings.
    """
    started = time.perf_counter()
    lists = read_lists(data, settings.labels)
    _claim(output, settings)
    fabric = Fabric(accelerator=device, devices=1)
    rows = lists.labelled + lists.unlabelled
    sizes = {"labelled": len(lists.labelled), "unlabelled": len(lists.unlabelled), "test": len(lists.test)}
    console.print(
        f"{data}: {lists.num_classes} classes; images: " + ", ".join(f"{n} {part}" for part, n in sizes.items()),
        soft_wrap=True,
    )
    if settings.method != "fine-tuning" and not lists.unlabelled:
        console.print("No unlabelled images: training without the terms that need them.")
    with JobProgress(console) as progress:
        progress.start("Reading images", total=len(rows) + len(lists.test))
        size = round(settings.image_size * 8 / 7)  # the middle 7/8 are tested, 224 of 256 pixels
        images, test_images = (load_images(data, part, size, progress.advance) for part in (rows, lists.test))
        target = torch.tensor([row.label for row in lists.labelled] + [UNLABELLED] * len(lists.unlabelled))
        pairs = max(len(lists.labelled), len(lists.unlabelled))
        if settings.method == "fine-tuning":  # as many steps, on the labelled images alone
            images, target = images[: len(lists.labelled)], target[: len(lists.labelled)]
        method = settings.make_method(lists.num_classes)
        loader = paired_loader(images, target, batch_size=settings.batch_size, pairs=pairs)
        progress.start("Training", total=settings.epochs * len(loader))
        history = fit(
            fabric,
            method,
            loader,
            epochs=settings.epochs,
            seed=settings.seed,
            checkpoint=output / "last.ckpt",
            on_step=progress.advance,
        )
    predicted = predict(fabric, method, tensor_loader(test_images, batch_size=settings.batch_size)).argmax(dim=1)
    test_target = torch.tensor([row.label for row in lists.test])
    cells: Cells = {settings.method: {"Accuracy %": [_accuracy(predicted, test_target)]}}
    title = f"Test accuracy with {settings.labels} % of the labels"
    console.print(rich_table(title, cells))
    (output / "table.md").write_text(f"**{title}**\n\n{markdown_table(cells)}\n", encoding="utf-8")
    results = {
        "settings": asdict(settings),
        "environment": environment(fabric.device),
        "dadl_ext": build_info(),
        "images": sizes,
        "classes": lists.num_classes,
        "training_loss": history,
        "accuracy": _accuracy(predicted, test_target),
        "predicted": {row.path: int(label) for row, label in zip(lists.test, predicted, strict=True)},
        "seconds": time.perf_counter() - started,
    }
    write_json(output / "results.json", results)
    console.print(f"Wrote last.ckpt, table.md and results.json to {output}", soft_wrap=True)


def _accuracy(predicted: Tensor, target: Tensor) -> float:
    return 100 * float((predicted == target).float().mean())


def _claim(output: Path, settings: Settings) -> None:
    """Remember the settings in ``output``, so that no other training continues from its checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != asdict(settings):
        raise OtherSettingsError(f"{output} holds a training with other settings; choose another folder or delete it")
    write_json(file, asdict(settings))
