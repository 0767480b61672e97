"""A search for the best settings of a recipe on validation: many training runs, of which bad ones end early."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.table import Table

from ..errors import SettingsError
from ..files import write_csv
from ..metrics import higher_is_better
from ..output import save_figure
from ..training.loop import EpochLog, criterion_of, kept_epoch
from .folder import JOURNAL
from .recipe import Recipe, RecipeData

TRIALS, FIGURE = "search.csv", "search"
RANDOM_TRIALS = 5  # before the sampler and the pruner start


class Search:
    """Trials over a recipe's ``search_space``, kept in the folder of a run, so that a search can be resumed.

    The first trial has the recipe's own settings if the space contains them, a few more are drawn at random, and the
    rest by a tree-structured Parzen estimator. A trial ends early if its best validation so far is worse than the
    median of the others' at that epoch.

    Raises a :class:`.SettingsError` for a recipe without a search space or for data without validation samples.
    """

    def __init__(self, recipe: Recipe, task: RecipeData, folder: Path, device: torch.device) -> None:
        if not recipe.search_space:
            raise SettingsError(f"{recipe.name} has no settings to search")
        if task.validation is None:
            raise SettingsError(f"a search needs validation samples, but {recipe.data} has none")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.recipe, self.folder = recipe, folder
        self.space = recipe.search_ranges(task, device)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        direction: Literal["maximize", "minimize"] = (
            "maximize" if higher_is_better(recipe.criterion or "") else "minimize"
        )
        self.study = optuna.create_study(
            storage=storage, study_name=recipe.name, direction=direction, load_if_exists=True
        )
        before = len(self.study.trials)
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=recipe.seed + before)
        self.study.pruner = optuna.pruners.MedianPruner(RANDOM_TRIALS, n_warmup_steps=recipe.epochs // 5)
        if before == 0:
            own = {name: getattr(recipe, name) for name in self.space}
            if all(own[name] and low <= own[name] <= high for name, (low, high) in self.space.items()):
                self.study.enqueue_trial(own)
        for trial in self.study.trials:
            if trial.state is TrialState.RUNNING:  # it was interrupted
                self.study.tell(trial.number, state=TrialState.FAIL)

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that ran to the end or were ended early."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def ask(self) -> tuple[Trial, Recipe, Path]:
        """The next trial, its recipe and its folder."""
        trial = self.study.ask()
        settings: dict[str, Any] = {
            name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in self.space.items()
        }
        return trial, replace(self.recipe, **settings), self.folder / f"trial-{trial.number}"

    def report(self, trial: Trial, history: Sequence[EpochLog]) -> None:
        """Report the best validation so far; raises ``optuna.TrialPruned`` if the trial should end."""
        trial.report(validation(self.recipe, history), step=len(history))
        if trial.should_prune():
            raise optuna.TrialPruned

    def tell(self, trial: Trial, history: Sequence[EpochLog] | None) -> None:
        """Record the end of a trial; ``None`` means that it ended early."""
        if history is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, validation(self.recipe, history))

    def best(self) -> tuple[Recipe, Path]:
        """The recipe of the best trial, and its folder."""
        best = self.study.best_trial
        return replace(self.recipe, **best.params), self.folder / f"trial-{best.number}"

    def write(self, console: Console) -> None:
        """Write all trials and a figure to the folder, and show them."""
        best = self.study.best_trial.number
        rows: list[dict[str, Any]] = [
            {"trial": trial.number, **trial.params, "validation": _value(trial), "state": trial.state.name.lower()}
            for trial in self.finished
        ]
        table = Table(title="Search", title_justify="left")
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
            table.add_row(*shown, style="bold" if row["trial"] == best else None)
        write_csv(self.folder / TRIALS, rows)
        save_figure(self._draw(best), self.folder / FIGURE)
        console.print(table)

    def _draw(self, best: int) -> Figure:
        """Plot validation against each setting."""
        names = list(self.space)
        figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
            for state, colour, label in (
                (TrialState.COMPLETE, "tab:blue", "trained to the end"),
                (TrialState.PRUNED, "tab:gray", "ended early"),
            ):
                trials = [trial for trial in self.finished if trial.state is state]
                if trials:
                    points = [trial.params[name] for trial in trials], [_value(trial) for trial in trials]
                    axes.scatter(*points, s=24, color=colour, label=label)
            trial = self.study.trials[best]
            axes.scatter(trial.params[name], _value(trial), s=90, facecolors="none", edgecolors="tab:red", label="best")
            axes.set(xscale="log", xlabel=name.replace("_", " "), xlim=self.space[name])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        better = "higher" if higher_is_better(self.recipe.criterion or "") else "lower"
        figure.axes[0].set_ylabel(f"validation, {better} is better")
        figure.axes[0].legend(fontsize="small")
        return figure


def best_trial(folder: Path) -> Path:
    """The folder of the best trial of a search."""
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return folder / f"trial-{optuna.load_study(study_name=None, storage=storage).best_trial.number}"


def validation(recipe: Recipe, history: Sequence[EpochLog]) -> float:
    """The criterion of a history at the epoch that is kept."""
    name = criterion_of(history[0], recipe.criterion)
    assert name is not None
    return history[kept_epoch(history, recipe.keep, recipe.criterion) - 1][name]


def _value(trial: FrozenTrial) -> float:
    """The validation of a trial; if it ended early, the last one that it reported."""
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.value is None else trial.value
