"""Runs: a recipe trained into a folder, taken up again, judged once more, or set to predict."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console

from dadl_ext import build_info

from .files import CheckpointError, load_checkpoint, replace_file, write_csv
from .recipe import Evaluation, Flag, Recipe, SettingsError, Table
from .report import Cells, JobProgress, environment, markdown_table, rich_table, write_json
from .training import BEST, LAST, EpochLog, Method, best_epoch, fit, predict

CONFIG, RUN, RESULTS, TABLE, PREDICTIONS = "config.yaml", "run.json", "results.json", "table.md", "predictions.csv"

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training is carried out."""

    output: Path | None = None
    """Folder of the run. [default: dadl-train-NAME]"""

    resume: Flag = False
    """Continue from the folder's checkpoint, or begin if there is none."""

    device: Device = "auto"
    """Where to compute."""

    tensorboard: Flag = False
    """Log for TensorBoard too, into the folder of the run."""


def make_fabric(device: Device, precision: Any = "32", loggers: Any = ()) -> Fabric:
    """One process, or under ``torchrun`` all of its processes, on every node."""
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    strategy = "ddp" if world > 1 else "auto"
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=precision,
        loggers=list(loggers),
    )
    fabric.launch()
    return fabric


def train_run(recipe: Recipe, options: RunOptions, console: Console) -> Table:
    """Train, test once at the end, and write everything to the folder of the run. Returns the test's table.

    The folder holds ``config.yaml`` with the settings, ``run.json`` with what is known of the data, checkpoints,
    ``log.csv``, ``table.md``, ``results.json`` and ``predictions.csv`` of the test. Raises a ``ValueError`` with all
    problems before training: of the data, the settings, or the folder.
    """
    started = time.perf_counter()
    output = Path(f"dadl-train-{recipe.name}") if options.output is None else options.output
    _check_folder(output, recipe, options.resume)
    loggers = [TensorBoardLogger(output, name=None, version="tensorboard")] if options.tensorboard else []
    fabric = make_fabric(options.device, recipe.precision, loggers)
    if fabric.world_size > 1 and not recipe.distributed:
        raise SettingsError(f"{recipe.name} trains in one process, not in {fabric.world_size}")
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    with JobProgress(console) as progress:
        task = recipe.read(progress)
        console.print(f"{recipe.data}: " + ", ".join(f"{n} {part}" for part, n in task.sizes.items()), soft_wrap=True)
        facts = json.loads(json.dumps(task.facts))
        _check_data(output, recipe, facts)
        fabric.barrier()
        if fabric.is_global_zero:
            _write_beginning(output, recipe, facts)
        torch.manual_seed(recipe.seed)
        method = recipe.make_method(facts)
        validate = None if task.validation is None else _Validation(fabric, method, task.validation)
        progress.start("Training", total=recipe.epochs * -(-_steps(fabric, task.loader) // recipe.accumulate))
        history = fit(
            fabric,
            method,
            task.loader,
            epochs=recipe.epochs,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            folder=output,
            checkpoint_every=recipe.checkpoint_every,
            validate=validate,
            patience=recipe.patience,
            on_step=progress.advance,
            on_epoch=lambda row: progress.describe(_progress_line(row, recipe.epochs)),
        )
    predicted = predict(fabric, method, task.test.loader)
    table = task.test.score(predicted)
    title = f"Test of {recipe.name}"
    console.print(rich_table(title, _cells(table)))
    if fabric.is_global_zero:
        (output / TABLE).write_text(f"**{title}**\n\n{markdown_table(_cells(table))}\n", encoding="utf-8")
        write_csv(output / PREDICTIONS, _rows(task.test, recipe.prediction_columns(predicted, facts)))
        results = {
            "recipe": recipe.name,
            "settings": settings_of(recipe),
            "facts": facts,
            "environment": environment(fabric.device) | {"processes": fabric.world_size},
            "dadl_ext": build_info(),
            "samples": dict(task.sizes),
            "seconds": time.perf_counter() - started,
            "best_epoch": best_epoch(history),
            "history": history,
            "test": {row: dict(columns) for row, columns in table.items()},
        }
        replace_file(output / RESULTS, lambda path: write_json(path, results))
        console.print(f"Wrote checkpoints, log, table, results and predictions to {output}", soft_wrap=True)
    fabric.barrier()
    return table


def evaluate_run(
    folder: Path, data: Path | None, part: Literal["test", "val"], device: Device, console: Console
) -> Table:
    """Judge a run once more, on its own data or on others of the same kind. Returns the table."""
    kind, settings, facts = read_run(folder)
    recipe = make_recipe(kind, settings | ({} if data is None else {"data": data}))
    fabric = make_fabric(device, recipe.precision)
    with JobProgress(console) as progress:
        task = recipe.read(progress)
    evaluation = task.test if part == "test" else task.validation
    if evaluation is None:
        raise SettingsError(f"{recipe.data} has no validation samples")
    table = evaluation.score(predict(fabric, _trained(fabric, recipe, facts, folder), evaluation.loader))
    console.print(rich_table(f"{folder}, {part}", _cells(table)))
    return table


def predict_run(folder: Path, data: Path, output: Path, device: Device, console: Console) -> None:
    """Predict samples without a target and write a CSV file: their names and what is predicted."""
    kind, settings, facts = read_run(folder)
    recipe = make_recipe(kind, settings)
    fabric = make_fabric(device, recipe.precision)
    with JobProgress(console) as progress:
        unseen = recipe.read_unseen(data, facts, progress)
    predicted = predict(fabric, _trained(fabric, recipe, facts, folder), unseen.loader)
    write_csv(output, _rows(unseen, recipe.prediction_columns(predicted, facts)))
    console.print(f"Wrote {len(unseen.names)} predictions to {output}", soft_wrap=True)


def read_run(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of a run's recipe, its settings, and the facts of its training data."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        return run["recipe"], settings, run["facts"]
    except FileNotFoundError as error:
        raise SettingsError(f"{folder} is not the folder of a run: it has no {Path(error.filename).name}") from None
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SettingsError(f"{folder} is a run that cannot be read: {error}") from None


def make_recipe(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of that name with settings as ``config.yaml`` has them."""
    from .recipes import RECIPES  # which imports every method

    kind = next((kind for kind in RECIPES if kind.name == name), None)
    if kind is None:
        raise SettingsError(f"there is no recipe {name!r}, but {', '.join(kind.name for kind in RECIPES)}")
    hints = get_type_hints(kind)
    unknown = [key for key in settings if key not in {field.name for field in fields(kind)}]
    if unknown:
        raise SettingsError(f"{name} has no setting {unknown[0]!r}")

    def value(key: str) -> Any:
        plain = settings[key]
        if Path in (hints[key], *get_args(hints[key])):
            return Path(plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return kind(**{key: value(key) for key in settings})


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Plain values, of which ``None`` are left out, and absolute paths."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.resolve())
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in asdict(recipe).items() if value is not None}


class _Validation:
    """Predicts and judges the validation samples, with all numbers of the table in a row."""

    def __init__(self, fabric: Fabric, method: Method, part: Evaluation) -> None:
        self.fabric, self.method, self.part = fabric, method, part

    def __call__(self) -> dict[str, float]:
        table = self.part.score(predict(self.fabric, self.method, self.part.loader))
        return {f"{row} {column}": value for row, columns in table.items() for column, value in columns.items()}


def _check_folder(output: Path, recipe: Recipe, resume: Flag) -> None:
    if not (output / CONFIG).exists():
        return
    if not resume:
        raise SettingsError(f"{output} holds a run: --resume continues it, or choose another folder with --output")
    _, settings, _ = read_run(output)
    own = settings_of(recipe)
    changed = sorted(key for key in {*own, *settings} if own.get(key) != settings.get(key))
    if changed:
        shown = ", ".join(f"{key} {settings.get(key)} and not {own.get(key)}" for key in changed)
        raise SettingsError(f"{output} holds a run with other settings: {shown}; choose another folder with --output")


def _check_data(output: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    if (output / RUN).exists() and read_run(output)[2] != facts:
        raise SettingsError(f"{recipe.data} has changed since the run in {output} began; choose another folder")


def _write_beginning(output: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """What a run is, before its first checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    config = f"# dadl train {recipe.name} --config {CONFIG}\n" + yaml.safe_dump(settings_of(recipe), sort_keys=False)
    replace_file(output / RUN, lambda path: write_json(path, {"recipe": recipe.name, "facts": facts}))
    replace_file(output / CONFIG, lambda path: _write_text(path, config))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _trained(fabric: Fabric, recipe: Recipe, facts: dict[str, Any], folder: Path) -> Method:
    """The method after its best epoch, or without a validation after its last."""
    method = recipe.make_method(facts)
    file = folder / (BEST if (folder / BEST).exists() else LAST)
    if not file.exists():
        raise CheckpointError(f"{folder} has no checkpoint yet")
    load_checkpoint(fabric, file, {"method": method})
    return method


def _steps(fabric: Fabric, loader: Any) -> int:
    """Batches of an epoch in each process."""
    return -(-len(loader) // fabric.world_size)


def _progress_line(row: EpochLog, epochs: int) -> str:
    numbers = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "step", "lr")]
    return f"Epoch {row['epoch'] + 1}/{epochs}, " + ", ".join(numbers[:2])


def _cells(table: Table) -> Cells:
    return {row: {column: [value] for column, value in columns.items()} for row, columns in table.items()}


def _rows(part: Evaluation, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name} | dict(zip(columns, values, strict=True))
        for name, *values in zip(part.names, *columns.values(), strict=True)
    ]
