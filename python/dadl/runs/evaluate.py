"""Evaluation of trained runs, and their predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_fabric import Fabric
from rich.console import Console

from ..errors import SettingsError
from ..files import write_csv
from ..options import Device
from ..output import JobProgress, rich_table
from ..training.checkpoints import load_checkpoint
from ..training.fabric import make_fabric
from ..training.loop import predict
from ..training.method import Method
from .folder import as_json, trained_checkpoint
from .recipe import Recipe, Scores
from .scores import prediction_rows, score_cells


@dataclass(frozen=True)
class TrainedRun:
    """The folder of a run, its recipe, and the facts of its training data."""

    folder: Path
    recipe: Recipe
    facts: Mapping[str, Any]

    def method(self, fabric: Fabric) -> Method:
        """The method after its best epoch."""
        method = self.recipe.make_method(self.facts)
        load_checkpoint(fabric, trained_checkpoint(self.folder), {"method": method})
        return method


def evaluate_run(run: TrainedRun, part: Literal["test", "val"], device: Device, console: Console) -> Scores:
    """Evaluate a trained run on the data of its recipe, and return the scores."""
    recipe = run.recipe
    fabric = make_fabric(device, recipe.precision)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    with JobProgress(console) as progress:
        task = recipe.read(progress)
    own = as_json(task.facts)
    for name in recipe.shape_facts:
        if own[name] != run.facts[name]:
            raise SettingsError(f"{recipe.data} has other {name} than the run: {own[name]} and not {run.facts[name]}")
    evaluation = task.test if part == "test" else task.validation
    if evaluation is None:
        raise SettingsError(f"{recipe.data} has no validation samples")
    table = evaluation.score(predict(fabric, run.method(fabric), evaluation.loader))
    console.print(rich_table(f"{run.folder}, {part}", score_cells(table)))
    return table


def predict_run(run: TrainedRun, data: Path, output: Path, device: Device, console: Console) -> None:
    """Predict samples without a target, and write their names and predictions to a CSV file."""
    recipe = run.recipe
    fabric = make_fabric(device, recipe.precision)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    with JobProgress(console) as progress:
        unseen = recipe.read_unseen(data, run.facts, progress)
    predicted = predict(fabric, run.method(fabric), unseen.loader)
    if fabric.is_global_zero:
        write_csv(output, prediction_rows(unseen, recipe.prediction_columns(predicted, run.facts)))
    console.print(f"Wrote {len(unseen.names)} predictions to {output}", soft_wrap=True)
