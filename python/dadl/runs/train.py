"""Training of a recipe into the folder of a run, resuming, and the final test."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console

from dadl_ext import build_info

from ..errors import SettingsError
from ..files import remove_leftovers, replace_file, write_csv
from ..options import Device, Flag, PositiveInt
from ..output import JobProgress, environment, markdown_table, rich_table, write_json
from ..training.fabric import make_fabric
from ..training.loop import LAST, VALIDATION, EpochLog, best_epoch, fit, predict
from .folder import CONFIG, JOURNAL, PREDICTIONS, RESULTS, RUN, TABLE, as_json, read_run
from .recipe import Recipe, RecipeData, Scores
from .scores import prediction_rows, score_cells


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training run is carried out."""

    output: Path | None = None
    """Folder of the run. [default: dadl-train-NAME]"""

    resume: Flag = False
    """Continue from the folder's checkpoint, or start if there is none."""

    device: Device = "auto"
    """Where to compute."""

    search: PositiveInt | None = None
    """Number of trials that tune settings on validation; the best one is tested. [default: no search]"""

    tensorboard: Flag = False
    """Also log for TensorBoard, into the folder of the run."""


def train_run(recipe: Recipe, options: RunOptions, console: Console) -> Scores:
    """Train, test once at the end, and write everything to the folder of the run. Returns the test scores.

    The folder holds ``config.yaml`` (the settings), ``run.json`` (facts about the data), checkpoints, ``log.csv``, and
    ``table.md``, ``results.json`` and ``predictions.csv`` of the test. With a search it holds such a folder for each
    trial, and the best one is tested. Before training, raises a :class:`.UserError` with all problems of the data, the
    settings or the folder.
    """
    output = Path(f"dadl-train-{recipe.name}") if options.output is None else options.output
    _check_folder(output, recipe, options)
    # Flush every few seconds, in case the process is killed.
    loggers = [TensorBoardLogger(output, name=None, version="tensorboard", flush_secs=5)] if options.tensorboard else []
    fabric = make_fabric(options.device, recipe.precision, loggers)
    if fabric.world_size > 1 and options.search is not None:
        raise SettingsError(f"a search trains in one process, not in {fabric.world_size}")
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    try:
        with JobProgress(console) as progress:
            task = recipe.read(progress)
            console.print(
                f"{recipe.data}: " + ", ".join(f"{n} {part}" for part, n in task.sizes.items()), soft_wrap=True
            )
            for note in task.notes:
                console.print(note, soft_wrap=True)
            if options.search is not None:
                recipe, output = _search(recipe, task, output, options.search, fabric, progress, console)
            run = _Run(recipe, task, output, fabric)
            run.on_remark = partial(console.print, soft_wrap=True)
            run.train(progress)
    finally:
        for logger in loggers:
            logger.finalize("")  # writes what is still buffered
    return run.test(console)


class _Run:
    """A recipe, its data, and the folder it is trained into."""

    def __init__(self, recipe: Recipe, task: RecipeData, folder: Path, fabric: Fabric) -> None:
        self.recipe, self.task, self.folder, self.fabric = recipe, task, folder, fabric
        self.beginning = _begun(recipe, _beginning(recipe, task), folder)
        self.facts = self.beginning["facts"]
        self.seconds = 0.0
        self.history: list[EpochLog] = []
        self.on_epoch: Callable[[Sequence[EpochLog]], None] = lambda history: None
        self.on_remark: Callable[[str], None] = lambda remark: None

    def train(self, progress: JobProgress) -> None:
        """Train from scratch or from the folder's checkpoint, and leave the method after its best epoch."""
        recipe, task, fabric, started = self.recipe, self.task, self.fabric, time.perf_counter()
        fabric.barrier()  # every process has checked the folder
        if fabric.is_global_zero:
            remove_leftovers(self.folder)
            self._write_beginning()
        torch.manual_seed(recipe.seed)
        self.method = recipe.make_method(self.facts)
        batches = -(-len(task.loader) // fabric.world_size)
        progress.start("Training", total=recipe.epochs * -(-batches // recipe.accumulate))

        def on_epoch(history: Sequence[EpochLog]) -> None:
            progress.describe(_progress_line(history[-1], recipe.epochs))
            for remark in recipe.remarks(history):
                self.on_remark(remark)
            self.on_epoch(history)

        self.history = fit(
            fabric,
            self.method,
            task.loader,
            epochs=recipe.epochs,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            folder=self.folder,
            checkpoint_every=recipe.checkpoint_every,
            validate=None if task.validation is None else self._validate,
            patience=recipe.patience,
            on_begin=progress.begin_at,
            on_step=progress.advance,
            on_epoch=on_epoch,
        )
        self.seconds = time.perf_counter() - started

    def test(self, console: Console) -> Scores:
        """Evaluate the test samples, and write and show the results of the run."""
        recipe, part = self.recipe, self.task.test
        predicted = predict(self.fabric, self.method, part.loader)
        table = part.score(predicted)
        title = f"Test of {recipe.name}"
        console.print(rich_table(title, score_cells(table)))
        if self.fabric.is_global_zero:
            text = f"**{title}**\n\n{markdown_table(score_cells(table))}\n"
            (self.folder / TABLE).write_text(text, encoding="utf-8")
            write_csv(
                self.folder / PREDICTIONS, prediction_rows(part, recipe.prediction_columns(predicted, self.facts))
            )
            results = {
                "recipe": recipe.name,
                "settings": settings_of(recipe),
                "facts": self.facts,
                "environment": environment(self.fabric.device) | {"processes": self.fabric.world_size},
                "dadl_ext": build_info(),
                "samples": dict(self.task.sizes),
                "seconds": self.seconds,
                "best_epoch": best_epoch(self.history),
                "history": self.history,
                "test": {row: dict(columns) for row, columns in table.items()},
            }
            replace_file(self.folder / RESULTS, lambda path: write_json(path, results))
            console.print(f"Wrote checkpoints, log, table, results and predictions to {self.folder}", soft_wrap=True)
        self.fabric.barrier()
        return table

    def _validate(self) -> dict[str, float]:
        """All validation scores in one row."""
        part = self.task.validation
        assert part is not None
        table = part.score(predict(self.fabric, self.method, part.loader))
        return {f"{row} {column}": value for row, columns in table.items() for column, value in columns.items()}

    def _write_beginning(self) -> None:
        """Write what identifies the run, before its first checkpoint."""
        settings = yaml.safe_dump(settings_of(self.recipe), sort_keys=False)
        config = f"# dadl train {self.recipe.name} --config {CONFIG}\n{settings}"
        replace_file(self.folder / RUN, lambda path: write_json(path, self.beginning))
        replace_file(self.folder / CONFIG, lambda path: _write_text(path, config))


def _search(
    recipe: Recipe,
    task: RecipeData,
    folder: Path,
    trials: int,
    fabric: Fabric,
    progress: JobProgress,
    console: Console,
) -> tuple[Recipe, Path]:
    """Train until there are that many trials; return the recipe and the folder of the best one."""
    from optuna import TrialPruned

    from .search import Search

    for trial_folder in sorted(folder.glob("trial-*")):  # later trials are compared with them
        _begun(recipe, _beginning(recipe, task), trial_folder)
    search = Search(recipe, task, folder, fabric.device)
    ranges = ", ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in search.space.items())
    console.print(f"Searching {ranges}", soft_wrap=True)
    while len(search.finished) < trials:
        trial, candidate, trial_folder = search.ask()
        chosen = ", ".join(f"{name} {getattr(candidate, name):.4g}" for name in recipe.search_space)
        console.print(f"Trial {len(search.finished) + 1}/{trials}: {chosen}", soft_wrap=True)
        run = _Run(candidate, task, trial_folder, fabric)
        run.on_epoch = partial(search.report, trial)
        try:
            run.train(progress)
        except TrialPruned:
            search.tell(trial, None)
        else:
            search.tell(trial, run.history)
    search.write(console)
    return search.best()


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The settings as plain values, without ``None``, and with absolute paths."""

    return {key: _plain(value) for key, value in asdict(recipe).items() if value is not None}


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """The settings that have a default, as plain values, without ``None``."""
    return {field.name: _plain(field.default) for field in fields(recipe) if field.default not in (None, MISSING)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value


def _beginning(recipe: Recipe, task: RecipeData) -> dict[str, Any]:
    """What a run records about its data."""
    return {
        "recipe": recipe.name,
        "facts": as_json(task.facts),
        "samples": dict(task.sizes),
        "fingerprints": dict(task.fingerprints),
    }


def _begun(recipe: Recipe, beginning: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the run in the folder recorded as it began; if it has no checkpoint yet, ``beginning``.

    Refuses to continue with data other than those it started with. Facts that it does not have are not compared: a run
    of an earlier version goes on without them.
    """
    if not (folder / LAST).exists():
        return beginning
    began: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    facts = {name: fact for name, fact in beginning["facts"].items() if name in began.get("facts", {})}
    beginning = beginning | {"facts": facts}
    if began == beginning:
        return began
    differ = lambda key: [part for part in beginning[key] if began.get(key, {}).get(part) != beginning[key][part]]
    if sizes := differ("samples"):
        what = ", ".join(
            f"{part} had {began['samples'].get(part)} samples and not {beginning['samples'][part]}" for part in sizes
        )
    elif parts := differ("fingerprints"):
        what = f"as many samples, but other values, names, images or another order in {', '.join(parts)}"
    else:
        what = f"other {', '.join(differ('facts'))}"
    raise SettingsError(
        f"{recipe.data} has changed since the run in {folder} began: {what}; resume with the data as they were, or "
        "choose another folder with --output"
    )


def _check_folder(output: Path, recipe: Recipe, options: RunOptions) -> None:
    place = next(folder for folder in (output, *output.absolute().parents) if os.path.exists(folder))
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise SettingsError(f"cannot write to {output}: {place} is not a writable folder; choose --output")
    searched = (output / JOURNAL).exists()
    begun = output / "trial-0" / CONFIG if searched else output / LAST
    if not begun.exists():
        return  # nothing is lost
    if not options.resume:
        raise SettingsError(f"{output} holds a run: --resume continues it, or choose another folder with --output")
    if searched != (options.search is not None):
        raise SettingsError(f"{output} holds a {'search' if searched else 'run'}; choose another folder with --output")
    _, settings, _ = read_run(output / "trial-0" if searched else output)
    settings = _defaults(recipe) | settings  # a run of an earlier version has no settings that came later
    own = settings_of(recipe)
    compared = {*own, *settings} - set(recipe.search_space if searched else ())
    changed = sorted(key for key in compared if own.get(key) != settings.get(key))
    if changed:
        shown = ", ".join(f"{key} {settings.get(key)} and not {own.get(key)}" for key in changed)
        raise SettingsError(f"{output} holds a run with other settings: {shown}; choose another folder with --output")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _progress_line(row: EpochLog, epochs: int) -> str:
    validated = [name for name in row if name.startswith(VALIDATION)]
    hidden = ("epoch", "step", "lr", *validated[1:])
    numbers = [f"{name} {value:.4g}" for name, value in row.items() if name not in hidden]
    return f"Epoch {row['epoch']}/{epochs}, " + ", ".join(numbers)
