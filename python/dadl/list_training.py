"""What every ``dadl train`` does: read lists and images, train, test once, and write checkpoint, table and results."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from dadl_ext import build_info

from .image_lists import ImageLists, load_images
from .report import Cells, JobProgress, environment, markdown_table, rich_table, write_json
from .training import Method, fit, predict, tensor_loader

ListsT = TypeVar("ListsT", bound=ImageLists[Any])


class Score(NamedTuple):
    """What the test showed: columns of the table, and what ``results.json`` holds besides."""

    columns: Mapping[str, float]
    results: Mapping[str, Any]


@dataclass(frozen=True)
class ListSettings(ABC, Generic[ListsT]):
    """Everything that a training depends on besides the data, and what is special to its kind of labels."""

    method: str
    labels: int
    epochs: int = 120
    batch_size: int = 24
    lr: float = 1e-3
    image_size: int = 224
    seed: int = 0

    @property
    @abstractmethod
    def needs_unlabelled(self) -> bool:
        """Whether the method has terms for images without labels."""

    @abstractmethod
    def read(self, folder: Path) -> ListsT:
        """The lists of ``folder``."""

    @abstractmethod
    def describe(self, lists: ListsT) -> str:
        """What the labels are, in a few words."""

    @abstractmethod
    def make_method(self, lists: ListsT) -> Method:
        """The method with its backbone, drawn from torch's generator."""

    @abstractmethod
    def make_loader(self, lists: ListsT, images: Tensor) -> DataLoader[Any]:
        """Training batches from the images of the labelled and then of the unlabelled rows."""

    @abstractmethod
    def score(self, lists: ListsT, predicted: Tensor) -> Score:
        """Judge what was predicted for the test rows."""


class OtherSettingsError(ValueError):
    """The output folder holds a training with other settings."""


def train_on_lists(data: Path, output: Path, settings: ListSettings[Any], device: str, console: Console) -> None:
    """Train, test once at the end, and write ``last.ckpt``, ``table.md`` and ``results.json`` to ``output``.

    An interrupted training continues from ``output/last.ckpt``. Raises :class:`.ImageListError` before training if
    anything is wrong with ``data`` and :class:`OtherSettingsError` if ``output`` holds a training with other settings.
    """
    started = time.perf_counter()
    lists = settings.read(data)
    _claim(output, settings)
    fabric = Fabric(accelerator=device, devices=1)
    rows = [*lists.labelled, *lists.unlabelled]
    sizes = {"labelled": len(lists.labelled), "unlabelled": len(lists.unlabelled), "test": len(lists.test)}
    console.print(
        f"{data}: {settings.describe(lists)}; images: " + ", ".join(f"{n} {part}" for part, n in sizes.items()),
        soft_wrap=True,
    )
    if settings.needs_unlabelled and not lists.unlabelled:
        console.print("No unlabelled images: training with the labelled ones alone.")
    with JobProgress(console) as progress:
        progress.start("Reading images", total=len(rows) + len(lists.test))
        size = round(settings.image_size * 8 / 7)  # the middle 7/8 are tested, 224 of 256 pixels
        images, test_images = (load_images(data, part, size, progress.advance) for part in (rows, lists.test))
        torch.manual_seed(settings.seed)
        method, loader = settings.make_method(lists), settings.make_loader(lists, images)
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
    score = settings.score(lists, predict(fabric, method, tensor_loader(test_images, batch_size=settings.batch_size)))
    cells: Cells = {settings.method: {column: [value] for column, value in score.columns.items()}}
    title = f"Test with {settings.labels} % of the labels"
    console.print(rich_table(title, cells))
    (output / "table.md").write_text(f"**{title}**\n\n{markdown_table(cells)}\n", encoding="utf-8")
    common = {
        "settings": asdict(settings),
        "environment": environment(fabric.device),
        "dadl_ext": build_info(),
        "images": sizes,
        "training_loss": history,
        "seconds": time.perf_counter() - started,
    }
    write_json(output / "results.json", {**common, **score.results})
    console.print(f"Wrote last.ckpt, table.md and results.json to {output}", soft_wrap=True)


def _claim(output: Path, settings: ListSettings[Any]) -> None:
    """Remember the settings in ``output``, so that no other training continues from its checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    file, own = output / "settings.json", json.loads(json.dumps(asdict(settings)))
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != own:
        raise OtherSettingsError(f"{output} holds a training with other settings; choose another folder or delete it")
    write_json(file, own)
