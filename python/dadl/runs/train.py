"""Training of a recipe into the folder of a run, resuming, and the final test."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console

from dadl_ext import build_info

from ..checks import check, short_repr
from ..data.text import did_you_mean
from ..errors import SettingsError
from ..files import check_output_folder, locked, remove_leftovers, write_csv, write_text
from ..output import JobProgress, environment, markdown_table, rich_table, write_json
from ..training.fabric import make_fabric
from ..training.loop import LAST, VALIDATION, EpochLog, criterion_of, fit, kept_epoch, predict
from .folder import (
    CONFIG,
    JOURNAL,
    PREDICTIONS,
    RESULTS,
    RUN,
    TABLE,
    as_json,
    digest,
    read_beginning,
    read_run,
)
from .loggers import finished, make_loggers
from .recipe import Recipe, RecipeData, Scores, build_method
from .scores import prediction_rows, score_cells
from .settings import RunOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train_run(
    recipe: Recipe,
    options: RunOptions,
    console: Console,
    *,
    test: bool = True,
    on_epoch: Callable[[Sequence[EpochLog]], None] = lambda history: None,
) -> Scores:
    """Train, test once at the end, and write everything to the folder of the run. Returns the test scores.

    The folder holds ``config.yaml`` (the settings), ``run.json`` (facts about the data), checkpoints, ``log.csv``, and
    ``table.md``, ``results.json`` and ``predictions.csv`` of the test. With a search it holds such a folder for each
    trial, and the best one is tested. Before training, raises a :class:`.UserError` with all problems of the data, the
    settings or the folder. Without ``test`` there is no test, and there are no scores. ``on_epoch`` is called with the
    logs of all epochs so far.
    """
    output = options.folder(recipe.name)
    check_output_folder(output)
    _check_folder(output, recipe, options)
    with ExitStack() as stack:
        loggers = make_loggers(options.logger, output, settings_of(recipe))
        stack.enter_context(finished(loggers))
        fabric = make_fabric(options.device, recipe.precision, loggers)
        if fabric.world_size > 1 and options.search is not None:
            raise SettingsError(f"a search trains in one process, not in {fabric.world_size}")
        if not fabric.is_global_zero:
            console = Console(quiet=True)
        elif output.is_dir():
            with locked(output):  # before the data are read, which may take long
                pass
        progress = stack.enter_context(JobProgress(console))
        task = recipe.read(progress)
        check_criterion(recipe, task)
        _describe(recipe, task, fabric.world_size, console)
        if fabric.is_global_zero:
            stack.enter_context(locked(output))
            _check_folder(output, recipe, options)  # once more, now that no other process can write to it
        recipe = recipe.resolved(_begun(recipe, _beginning(recipe, task), output)["facts"])
        if options.search is not None:
            recipe, output = _search(recipe, task, output, options.search, fabric, progress, console)
        run = _Run(recipe, task, output, fabric)
        run.on_remark = partial(console.print, soft_wrap=True)
        run.on_epoch = on_epoch
        run.train(progress)
        if not test:
            return {}
        table = run.test()
    # Nothing is lost if the console cannot show it.
    console.print(rich_table(f"Test of {recipe.name}", score_cells(table)))
    console.print(f"Wrote checkpoints, log, table, results and predictions to {output}", soft_wrap=True)
    return table


def _describe(recipe: Recipe, task: RecipeData, processes: int, console: Console) -> None:
    console.print(f"{recipe.data}: " + ", ".join(f"{n} {part}" for part, n in task.sizes.items()), soft_wrap=True)
    for note in task.notes:
        console.print(note, soft_wrap=True)
    rows, batch = len(task.loader.dataset), recipe.batch_size * processes  # type: ignore[arg-type]
    if batch > rows:
        console.print(
            f"A batch of {batch} is larger than the {rows} training samples: each step takes all of them",
            soft_wrap=True,
        )


def check_criterion(recipe: Recipe, task: RecipeData) -> None:
    """Raise a :class:`.SettingsError` if validation has no such score, or no samples for it."""
    if recipe.criterion is None:
        return
    if task.validation is None:
        raise SettingsError(f"criterion {recipe.criterion!r} needs validation samples, but {recipe.data} has none")
    regions = task.validation.region_sizes
    scores = {f"{row} {column}": size for row, size in regions.items() for column in recipe.score_columns}
    if recipe.criterion not in scores:
        raise SettingsError(
            f"there is no criterion {recipe.criterion!r}{did_you_mean(recipe.criterion, scores)}: it is a row, one of "
            f"{', '.join(regions)}, and a column, one of {', '.join(recipe.score_columns)}"
        )
    if scores[recipe.criterion] == 0:
        raise SettingsError(f"criterion {recipe.criterion!r}: there are no such validation samples in {recipe.data}")


def check_data(recipe: Recipe, task: RecipeData, folder: Path) -> None:
    """Raise a :class:`.SettingsError` if there is a run in the folder that began with data other than the task's."""
    if (folder / RUN).exists() and read_beginning(folder)["fingerprints"] != dict(task.fingerprints):
        raise SettingsError(f"{recipe.data} has changed since the run in {folder} began; choose another --output")


class _Run:
    """A recipe, its data, and the folder it is trained into."""

    def __init__(self, recipe: Recipe, task: RecipeData, folder: Path, fabric: "Fabric") -> None:
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
        self.method = build_method(recipe, self.facts)
        batches = -(-len(task.loader) // fabric.world_size)
        progress.start("Training", total=recipe.epochs * -(-batches // recipe.accumulate))

        def on_epoch(history: Sequence[EpochLog]) -> None:
            progress.describe(_progress_line(history[-1], recipe))
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
            criterion=recipe.criterion,
            keep=recipe.keep,
            patience=recipe.patience,
            on_begin=progress.begin_at,
            on_step=progress.advance,
            on_epoch=on_epoch,
        )
        self.seconds = time.perf_counter() - started

    def test(self) -> Scores:
        """Evaluate the test samples, and write the results of the run."""
        recipe, part = self.recipe, self.task.test
        predicted = predict(self.fabric, self.method, part.loader)
        table = part.score(predicted)
        if self.fabric.is_global_zero:
            write_text(self.folder / TABLE, f"**Test of {recipe.name}**\n\n{markdown_table(score_cells(table))}\n")
            columns = {**part.targets, **recipe.prediction_columns(predicted, self.facts)}
            write_csv(self.folder / PREDICTIONS, prediction_rows(part, columns))
            results = {
                "recipe": recipe.name,
                "settings": settings_of(recipe),
                "facts": self.facts,
                "environment": environment(self.fabric.device) | {"processes": self.fabric.world_size},
                "dadl_ext": build_info(),
                "samples": dict(self.task.sizes),
                "regions": recipe.region_facts(self.facts, part),
                "seconds": self.seconds,
                "best_epoch": kept_epoch(self.history, recipe.keep, recipe.criterion),
                "history": self.history,
                "test": {row: dict(columns) for row, columns in table.items()},
            }
            write_json(self.folder / RESULTS, results)
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
        settings = settings_of(self.recipe)
        comment = f"# dadl train {self.recipe.name} --config {CONFIG}\n"
        write_text(self.folder / CONFIG, comment + yaml.safe_dump(settings, sort_keys=False))
        write_json(self.folder / RUN, self.beginning | {"digest": digest(self.beginning, settings)})


def _search(
    recipe: Recipe,
    task: RecipeData,
    folder: Path,
    trials: int,
    fabric: "Fabric",
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

    Refuses to continue with data other than those it started with. Facts that only one of
    the two has are not compared: a run of an earlier version goes on with its own.
    """
    if not (folder / LAST).exists():
        return beginning
    began = read_beginning(folder)
    facts = {name: fact for name, fact in beginning["facts"].items() if name in began["facts"]}
    beginning = beginning | {"facts": began["facts"] | facts}
    if all(began[key] == value for key, value in beginning.items()):
        return {key: began[key] for key in beginning}
    differ = lambda key: [part for part in beginning[key] if began[key].get(part) != beginning[key][part]]
    if sizes := differ("samples"):
        what = ", ".join(
            f"{part} had {began['samples'].get(part)} samples and not {beginning['samples'][part]}" for part in sizes
        )
    elif parts := differ("fingerprints"):
        what = f"as many samples, but other values, names, images or another order in {', '.join(parts)}"
    else:
        what = f"other {', '.join(differ('facts')) or 'facts'}"
    raise SettingsError(
        f"{recipe.data} has changed since the run in {folder} began: {what}; resume with the data as they were, or "
        "choose another folder with --output"
    )


def _check_folder(output: Path, recipe: Recipe, options: RunOptions) -> None:
    """Refuse a folder that holds another run, or this one if it is not to be resumed."""
    searched = (output / JOURNAL).exists()
    begun = output / "trial-0" / CONFIG if searched else output / LAST
    if not begun.exists():
        return  # nothing is lost
    if not options.resume:
        raise SettingsError(f"{output} holds a run: --resume continues it, or choose another folder with --output")
    if searched != (options.search is not None):
        raise SettingsError(f"{output} holds a {'search' if searched else 'run'}; choose another folder with --output")
    folder = output / "trial-0" if searched else output
    name, settings, facts = read_run(folder)
    if name != recipe.name:
        raise SettingsError(
            f"{output} holds a run of {name}, not of {recipe.name}; choose another folder with --output"
        )
    check(facts, recipe.facts_kind, f"{folder / RUN}: facts")
    # Version 0.1.0 did not write what depends on the data, and an earlier one has no settings that came later.
    settings = _defaults(recipe) | settings
    own, resolved = settings_of(recipe), settings_of(recipe.resolved(facts))
    compared = {*own, *settings} - set(recipe.search_space if searched else ())
    changed = sorted(key for key in compared if settings.get(key) not in (own.get(key), resolved.get(key)))
    if changed:
        named = lambda value: f"{value:.100}" if isinstance(value, str) else short_repr(value)
        told = ", ".join(f"{key} {named(settings.get(key))} and not {named(own.get(key))}" for key in changed)
        raise SettingsError(f"{output} holds a run with other settings: {told}; choose another folder with --output")


def _progress_line(row: EpochLog, recipe: Recipe) -> str:
    criterion = criterion_of(row, recipe.criterion)
    hidden = {"epoch", "step", "lr", *(name for name in row if name.startswith(VALIDATION) and name != criterion)}
    numbers = [f"{name} {value:.4g}" for name, value in row.items() if name not in hidden]
    return f"Epoch {row['epoch']}/{recipe.epochs}, " + ", ".join(numbers)
