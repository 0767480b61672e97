"""Is the χ-Model better than labels alone when both are tuned as well as can be? On the demo's tasks.

    python experiments/chi_model_tuning.py

Every setting of a grid is trained as long as the demo trains, with two seeds, and the best on validation is tested with
six seeds that no setting has seen. Takes 20 minutes on two cores and writes docs/chi-model/tuning.md.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from dadl.data import sprites
from dadl.demos import kanji
from dadl.demos.characters import IMAGE_SIZE, load_characters
from dadl.demos.chi_model import CHI_MODEL, ERRORS, LABELS_ONLY, TASKS, Experiment, Result, Run, Setting, Settings
from dadl.demos.chi_model_tasks import Data
from dadl.demos.jobs import TrainingPool
from dadl.output import Cells, JobProgress, markdown_table
from lightning_fabric import Fabric
from rich.console import Console

LRS, ETAS = (0.003, 0.01, 0.03), (0.03, 0.1, 0.3, 1.0)
GRID = {
    LABELS_ONLY: [Setting(lr) for lr in LRS],
    CHI_MODEL: [Setting(lr, eta) for lr in LRS for eta in ETAS],
}
TRIAL_SEEDS, SEEDS = (0, 1), tuple(range(10, 16))
OUTPUT = Path(__file__).parents[1] / "docs" / "chi-model" / "tuning.md"


def best(trials: dict[Run, Result], task: str, arm: str, epochs: int) -> Setting:
    def error(setting: Setting) -> float:
        runs = [Run(task, arm, setting, seed, epochs) for seed in TRIAL_SEEDS]
        return float(np.mean([trials[run].validation_error for run in runs]))

    return min(GRID[arm], key=error)


def table(results: dict[Run, Result]) -> Cells:
    errors = {(run.task, run.arm, run.seed): result.test_error for run, result in results.items()}
    rows: dict[str, dict[str, list[float]]] = {
        arm: {ERRORS[task]: [errors[task, arm, seed] for seed in SEEDS] for task in TASKS} for arm in GRID
    }
    rows["χ-Model, change paired by seed"] = {
        ERRORS[task]: [errors[task, CHI_MODEL, seed] - errors[task, LABELS_ONLY, seed] for seed in SEEDS]
        for task in TASKS
    }
    return rows


def main() -> None:
    settings = Settings()
    epochs = settings.epochs
    trials = [
        Run(task, arm, setting, seed, epochs)
        for task in TASKS
        for arm in GRID
        for setting in GRID[arm]
        for seed in TRIAL_SEEDS
    ]
    with JobProgress(Console()) as progress:
        characters = load_characters(settings, progress)
        points = np.array([kanji.read_key_points(c) for c in characters.characters])
        data = Data(characters, points, sprites.generate_sprites(settings.sprites, IMAGE_SIZE))
        progress.start("Training", len(trials) + len(TASKS) * len(GRID) * len(SEEDS))
        fabric = Fabric(accelerator="cpu", devices=1)
        with TrainingPool[Run, Result](fabric, partial(Experiment, data=data, settings=settings)) as pool:
            tried = pool.train(trials, progress)
            chosen = {(task, arm): best(tried, task, arm, epochs) for task in TASKS for arm in GRID}
            runs = [Run(*cell, setting, seed, epochs) for cell, setting in chosen.items() for seed in SEEDS]
            results = pool.train(runs, progress)
    labels = "; ".join(f"{task}: {arm} {setting}" for (task, arm), setting in chosen.items())
    OUTPUT.write_text(
        "**Test errors after a wider choice of settings, lower is better**\n\n"
        f"{markdown_table(table(results))}\n\n"
        f"Mean ± standard error over {len(SEEDS)} seeds, which no setting has seen. Chosen on validation, mean of "
        f"{len(TRIAL_SEEDS)} other seeds, all {epochs} epochs, out of the learning rates {', '.join(map(str, LRS))} "
        f"and, for the χ-Model, each with η {', '.join(map(str, ETAS))}. Chosen: {labels}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
