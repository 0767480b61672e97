"""What the pictures of a recipe need: a finished run opened again, and test images with their predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from ..data.rows import Rows, tensor_loader
from ..errors import UserError
from ..networks.user_code import user_code
from ..output import JobProgress
from ..training.fabric import make_fabric
from ..training.loop import predict
from .folder import read_run
from .recipe import Recipe, RecipeData, trained_method
from .settings import typed_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, EXAMPLES = 6, 12
RIGHT, WRONG = "#0072B2", "#D55E00"  # distinct with any colour vision


@dataclass(frozen=True)
class OpenedRun:
    """A run's recipe and the facts of its data, the data themselves, and the trained method."""

    recipe: Any
    facts: Any
    task: RecipeData
    method: Any

    @classmethod
    def of(cls, kind: type[Recipe], run: Path) -> "OpenedRun | None":
        """``None`` if the run names code, which a page does not execute, or if its data are not there any more."""
        try:
            _, settings, facts = read_run(run)
            if user_code(settings):
                return None
            recipe = kind(**typed_settings(kind, settings)).as_trained(facts)
            task = recipe.read(JobProgress(Console(quiet=True)))
            method = trained_method(run, recipe, facts)
        except UserError:
            return None
        return cls(recipe, facts, task, method)

    def predicted(self, inputs: Rows | None = None, output: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See :func:`.predict`: of all test samples, or of other inputs."""
        loader = self.task.test.loader if inputs is None else tensor_loader(inputs, batch_size=256)
        return predict(make_fabric("cpu"), self.method, loader, output)

    def test_images(self) -> Tensor:
        """The first test images ``[N, C, H, W]``."""
        return torch.cat([batch[0] for batch in self.task.test.loader])[:EXAMPLES]


def draw_examples(images: Tensor, captions: Sequence[str], right: Sequence[bool]) -> "Figure":
    """Images ``[N, C, H, W]``, uint8, with a caption under each, in another colour where the prediction is wrong."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(6.4, 1.3 * rows), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for cell in cells:
        cell.set_axis_off()
    for cell, image, caption, good in zip(cells, images, captions, right, strict=False):
        grey = image.shape[0] == 1
        cell.imshow(image[0] if grey else image.permute(1, 2, 0), cmap="gray" if grey else None, vmin=0, vmax=255)
        cell.set_title(caption, fontsize=7, y=-0.02, va="top", color=RIGHT if good else WRONG)
    return figure


def class_examples(kind: type[Recipe], run: Path) -> "list[tuple[str, Figure]]":
    """The first test images with their classes and what was predicted instead, if anything."""
    opened = OpenedRun.of(kind, run)
    if opened is None:
        return []
    images, predicted = opened.test_images(), opened.predicted().argmax(dim=1).tolist()
    pairs = list(zip(opened.task.test.targets["target"], predicted, strict=True))[: len(images)]
    captions = [f"{true}" if true == found else f"{true}, not {found}" for true, found in pairs]
    return [("test images", draw_examples(images, captions, [true == found for true, found in pairs]))]
