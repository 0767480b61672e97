"""The results of a comparison, read from its folder: also while it is unfinished."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..checks import check
from ..documents import read_json, read_yaml
from ..errors import ProblemsError, SettingsError
from ..files import write_text
from ..metrics import higher_is_better
from ..options import PositiveInt
from ..output import Cells, markdown_table, write_json
from ..runs.folder import RESULTS, TABLE
from ..runs.log import as_number, read_log
from ..runs.recipe import Scores
from ..training.loop import LOG, VALIDATION, EpochLog, criterion_of, has_ended, kept_epoch
from .arms import Arm, read_arms
from .jobs import FAILED

COMPARE = "compare.yaml"


class Plan(TypedDict):
    """The contents of ``compare.yaml``."""

    recipe: str
    settings: Mapping[str, Any]
    trials: PositiveInt
    seeds: PositiveInt
    splits: PositiveInt
    reference: str
    arms: Mapping[str, Any]
    scales: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, order=True)
class Unit:
    """What the arms are compared on: a split of the data, and a seed of the training."""

    split: int
    seed: int


@dataclass(frozen=True)
class Trial:
    """A training that chooses settings; ``score`` is its criterion on validation, NaN if it diverged."""

    settings: Mapping[str, Any]
    score: float
    folder: Path


@dataclass(frozen=True)
class Failure:
    """A training that diverged, and what it said."""

    arm: str
    folder: Path
    reason: str


@dataclass(frozen=True)
class ArmRuns:
    """The runs of one arm.

    ``settings`` are its overrides and ``tuned`` the settings that are chosen on validation. By split, ``trials`` are
    the finished ones, and ``chosen`` the best one's settings once all have finished. ``runs`` are the folders of tested
    runs, and ``scores`` their test scores.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    tuned: Sequence[str]
    chosen: Mapping[int, Mapping[str, Any]]
    trials: Mapping[int, Sequence[Trial]]
    runs: Mapping[Unit, Path]
    scores: Mapping[Unit, Scores]


@dataclass(frozen=True)
class Comparison:
    """Arms of a recipe, compared.

    ``criterion`` is the score by which settings are chosen, ``settings`` are those of the recipe that all arms share,
    ``sizes`` the samples of each part of the data, and ``test_share`` the test samples for each training sample (NaN
    before a run is tested). ``failures`` are trainings that diverged.
    """

    folder: Path
    recipe: str
    reference: str
    criterion: str
    arms: Sequence[ArmRuns]
    settings: Mapping[str, Any]
    trials: int
    planned: Sequence[Unit]
    sizes: Mapping[str, int]
    test_share: float
    environment: Mapping[str, Any]
    failures: Sequence[Failure]

    @property
    def units(self) -> list[Unit]:
        """The units in which every arm has been tested."""
        return [unit for unit in self.planned if all(unit in arm.scores for arm in self.arms)]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """All rows and columns of the scores."""
        tables = [table for arm in self.arms for table in arm.scores.values()]
        return list(
            dict.fromkeys((row, column) for table in tables for row, cells in table.items() for column in cells)
        )

    @property
    def columns(self) -> list[str]:
        """All columns of the scores."""
        return list(dict.fromkeys(column for _, column in self.cells))

    @property
    def criterion_cell(self) -> tuple[str, str]:
        """The row and the column of the criterion in the scores; without one, the first."""
        first = self.cells[0] if self.cells else ("all", "")
        return next((cell for cell in self.cells if " ".join(cell) == self.criterion), first)

    def values(self, column: str) -> dict[str, dict[str, dict[Unit, float]]]:
        """The scores in a column, by row, arm and unit, of every unit that an arm was tested in."""
        return {
            row: {
                arm.name: {unit: table.get(row, {}).get(column, math.nan) for unit, table in arm.scores.items()}
                for arm in self.arms
            }
            for row, of_row in self.cells
            if of_row == column
        }

    @classmethod
    def load(cls, folder: Path) -> "Comparison":
        """The comparison in that folder; raises a :class:`.SettingsError` if there is none or it cannot be read."""
        plan, arms = read_plan(folder)
        settings = plan["settings"]
        planned = [Unit(split, 1 + seed) for split in range(plan["splits"]) for seed in range(plan["seeds"])]
        runs = [_arm_runs(folder, arm, plan, planned) for arm in arms]
        tested = [run for arm in runs for run in arm.runs.values()]
        results = read_json(tested[0] / RESULTS) if tested else {}
        sizes = results.get("samples", {})
        trained = next(iter(sizes.values()), 0)
        first = results.get("test", {"": {"": 0}})
        row, columns = next(iter(first.items()))
        return cls(
            folder=folder,
            recipe=plan["recipe"],
            reference=plan["reference"],
            criterion=settings.get("criterion") or f"{row} {next(iter(columns))}".strip(),
            arms=runs,
            settings=settings,
            trials=plan["trials"],
            planned=planned,
            sizes=sizes,
            test_share=sizes["test"] / trained if trained else math.nan,
            environment=results.get("environment", {}),
            failures=[
                Failure(arm.name, file.parent, file.read_text(encoding="utf-8").strip())
                for arm in runs
                for file in sorted(arm.folder.rglob(FAILED))
            ],
        )


def read_plan(folder: Path) -> tuple[Plan, list[Arm]]:
    """What is compared in that folder, and the arms; raises a :class:`.SettingsError` if it is not a comparison's."""
    try:
        plan: Any = read_yaml(folder / COMPARE)
    except FileNotFoundError:
        raise SettingsError(f"{folder} is not the folder of a comparison: it has no {COMPARE}") from None
    check(plan, Plan, str(folder / COMPARE))
    try:
        return plan, read_arms({"arms": plan["arms"], "reference": plan["reference"]})[0]
    except SettingsError as error:
        raise SettingsError(f"{folder / COMPARE}: {error}") from None


def history_of(folder: Path) -> list[EpochLog]:
    """The log of a run so far; raises a :class:`.ProblemsError` if it cannot be read."""
    if not (folder / LOG).exists():
        return []
    problems: list[str] = []
    history = read_log(folder / LOG, problems)
    if problems:
        raise ProblemsError([f"{folder / LOG} cannot be read: remove its folder, and it is trained again", *problems])
    return history


def trial_of(folder: Path, values: Mapping[str, Any], settings: Mapping[str, Any]) -> Trial | None:
    """The trial in a folder, with the ``settings`` of its last stage; ``None`` if it has not come to its end."""
    if (folder / FAILED).exists():
        return Trial(values, math.nan, folder)
    history, criterion = history_of(folder), settings.get("criterion")
    if not has_ended(history, settings["epochs"], settings.get("patience"), criterion):
        return None
    name = criterion_of(history[0], criterion)
    score = math.nan if name is None else history[kept_epoch(history, settings["keep"], criterion) - 1][name]
    return Trial(values, score, folder)


def best_trial(trials: Sequence[Trial], criterion: str) -> Trial | None:
    """The first of the best trials; ``None`` if all have diverged."""
    sign = -1 if higher_is_better(criterion) else 1
    able = [trial for trial in trials if not math.isnan(trial.score)]
    return min(able, key=lambda trial: sign * trial.score, default=None)


def write_results(comparison: Comparison, verdict: Sequence[str], differences: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.json`` and ``table.md``, with the sentences of the verdict, to the folder of the comparison."""
    units = comparison.units
    write_json(
        comparison.folder / RESULTS,
        {
            "recipe": comparison.recipe,
            "reference": comparison.reference,
            "criterion": comparison.criterion,
            "verdict": verdict,
            "differences": differences,
            "settings": comparison.settings,
            "samples": comparison.sizes,
            "environment": comparison.environment,
            "units": [{"split": unit.split, "seed": unit.seed} for unit in units],
            "arms": {
                arm.name: {
                    "settings": arm.settings,
                    "chosen": {str(split): chosen for split, chosen in arm.chosen.items()},
                    "trials": {
                        str(split): [{"settings": trial.settings, "score": trial.score} for trial in trials]
                        for split, trials in arm.trials.items()
                    },
                    "test": [arm.scores[unit] for unit in units],
                }
                for arm in comparison.arms
            },
            "failures": [
                {
                    "arm": failure.arm,
                    "folder": str(failure.folder.relative_to(comparison.folder)),
                    "reason": failure.reason,
                }
                for failure in comparison.failures
            ],
        },
    )
    told = "\n".join(f"- {sentence}" for sentence in verdict)
    write_text(comparison.folder / TABLE, f"{told}\n\n{table_text(comparison)}")


def table_cells(comparison: Comparison, column: str) -> Cells:
    """One column of the scores in the units that all arms share: arms by rows."""
    values = comparison.values(column)
    return {
        arm.name: {row: [of_arms[arm.name][unit] for unit in comparison.units] for row, of_arms in values.items()}
        for arm in comparison.arms
    }


def table_text(comparison: Comparison) -> str:
    """All test scores, a table for each column of them, the criterion's first."""
    if not comparison.units:
        return "No arm has been tested in a unit that all others have finished.\n"
    columns = dict.fromkeys([comparison.criterion_cell[1], *comparison.columns])
    parts = [f"**{column}**\n\n{markdown_table(table_cells(comparison, column))}\n" for column in columns]
    count = len(comparison.units)
    note = f"Test, mean ± standard error over {count} {'unit' if count == 1 else 'units'} of split and seed.\n"
    return "\n".join([*parts, note])


def _arm_runs(folder: Path, arm: Arm, plan: Plan, planned: Sequence[Unit]) -> ArmRuns:
    place = folder / arm.folder
    trials, chosen = {}, {}
    for split in range(plan["splits"]):
        drawn = arm.trials(plan["trials"], split, plan["scales"].get(str(split), {}))
        found = [
            trial_of(place / f"split-{split}" / f"trial-{i}", values, arm.last_settings(plan["settings"], values))
            for i, values in enumerate(drawn)
        ]
        trials[split] = [trial for trial in found if trial is not None]
        if len(trials[split]) == len(drawn):
            criterion = plan["settings"].get("criterion") or _first_criterion(trials[split])
            best = best_trial(trials[split], criterion)
            if best is not None or not drawn:
                chosen[split] = {} if best is None else best.settings
    runs = {unit: place / f"split-{unit.split}" / f"seed-{unit.seed}" for unit in planned}
    runs = {unit: run for unit, run in runs.items() if (run / RESULTS).exists()}
    scores = {unit: _scores(run) for unit, run in runs.items()}
    return ArmRuns(arm.name, place, arm.settings, list(arm.space), chosen, trials, runs, scores)


def _first_criterion(trials: Sequence[Trial]) -> str:
    names = (criterion_of(row) for trial in trials for row in history_of(trial.folder)[:1])
    return (next(names, None) or "").removeprefix(VALIDATION)


def _scores(run: Path) -> Scores:
    table = read_json(run / RESULTS)["test"]
    return {row: {column: as_number(value) for column, value in columns.items()} for row, columns in table.items()}
