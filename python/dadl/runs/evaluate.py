"""Evaluation of trained runs, and their predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..checks import short_repr
from ..errors import SettingsError
from ..files import check_output_file, write_csv
from ..options import Device
from ..output import JobProgress, rich_table
from ..training.checkpoints import load_checkpoint
from ..training.fabric import make_fabric
from ..training.loop import predict
from ..training.method import Method
from .folder import as_json, trained_checkpoint
from .recipe import Recipe, Scores, build_method
from .scores import prediction_rows, score_cells


@dataclass(frozen=True)
class TrainedRun:
    """The folder of a run, its recipe, and the facts of its training data."""

    folder: Path
    recipe: Recipe
    facts: Mapping[str, Any]

    def method(self) -> Method:
        """The method after its best epoch; raises a :class:`.UserError` if it cannot be made or loaded."""
        method = build_method(self.recipe, self.facts)
        load_checkpoint(trained_checkpoint(self.folder), {"method": method})
        return method


def evaluate_run(run: TrainedRun, part: Literal["test", "val"], device: Device, console: Console) -> Scores:
    """Evaluate a trained run on the data of its recipe, and return the scores.

    Raises a :class:`.UserError` if the run cannot be loaded, its data cannot be used, or a prediction is not finite.
    """
    recipe = run.recipe
    fabric = make_fabric(device, recipe.precision)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    with JobProgress(console) as progress:
        task = recipe.read(progress)
    own = as_json(task.facts)
    for name in recipe.shape_facts:
        if own[name] != run.facts[name]:
            differ = f"{short_repr(own[name])} and not {short_repr(run.facts[name])}"
            raise SettingsError(f"{recipe.data} has other {name} than the run: {differ}")
    evaluation = task.test if part == "test" else task.validation
    if evaluation is None:
        raise SettingsError(f"{recipe.data} has no validation samples")
    table = evaluation.score(predict(fabric, run.method(), evaluation.loader))
    console.print(rich_table(f"{run.folder}, {part}", score_cells(table)))
    return table


def predict_run(
    run: TrainedRun, data: Path, output: Path, device: Device, console: Console, keep: Sequence[str] = ()
) -> None:
    """Predict samples without a target, and write their names and predictions to a CSV file.

    ``keep`` names columns of a table to copy beside the predictions. Raises as :func:`evaluate_run`; then nothing is
    written.
    """
    check_output_file(output)
    recipe = run.recipe
    fabric = make_fabric(device, recipe.precision)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    kept = recipe.read_columns(data, keep, run.facts) if keep else {}
    with JobProgress(console) as progress:
        unseen = recipe.read_unseen(data, run.facts, progress)
    predicted = recipe.prediction_columns(predict(fabric, run.method(), unseen.loader), run.facts)
    if repeated := [name for name in kept if name in ("name", *predicted)]:
        raise SettingsError(
            f"keep: the predictions have a column {repeated[0]!r} of their own; rename the one in {data}"
        )
    if fabric.is_global_zero:
        write_csv(output, prediction_rows(unseen, {**kept, **predicted}))
    console.print(f"Wrote {len(unseen.names)} predictions to {output}", soft_wrap=True)
