"""How the radicals demo chooses hyper-parameters: as much for every arm, on validation, before the runs it reports."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.demos.self_tuning import (
    ARMS,
    FINE_TUNING,
    FIXMATCH,
    FULL,
    SELF_TUNING,
    Result,
    Run,
    Setting,
    Settings,
    compare,
)
from dadl.output import JobProgress
from rich.console import Console


class Oracle:
    """In place of a pool: likes the learning rate 0.06 and the threshold 0.8 on validation, anything else on test."""

    def __init__(self) -> None:
        self.jobs: list[Sequence[Run]] = []

    def train(self, runs: Sequence[Run], progress: JobProgress) -> dict[Run, Result]:
        self.jobs.append(runs)
        for _ in runs:
            progress.advance()
        return {run: Result(self.validation(run.setting), -self.validation(run.setting), [], []) for run in runs}

    @staticmethod
    def validation(setting: Setting) -> float:
        return -abs(setting.lr - 0.06) + 0.001 * (setting.threshold == 0.8) - 0.001 * (setting.momentum == 0.999)


def test_every_arm_is_tuned_alike_and_reported_with_every_seed() -> None:
    settings, pool = Settings(), Oracle()
    any_pool: Any = pool
    with JobProgress(Console(file=io.StringIO())) as progress:
        comparison = compare(settings, any_pool, progress)
        task = progress._bar.tasks[-1]
        assert task.completed == task.total
    rates, own, reported = pool.jobs

    for arm in ARMS:
        assert [run.setting.lr for run in rates if run.arm == arm] == list(settings.learning_rates)
    assert {run.arm: run.setting for run in own} == {
        FIXMATCH: Setting(0.06, threshold=0.8),
        SELF_TUNING: Setting(0.06, momentum=0.999),
    }
    assert len(own) == 2
    assert {(run.percentage, run.seed, run.epochs) for run in (*rates, *own)} == {(15, 0, 4)}
    assert comparison.chosen == {
        FINE_TUNING: Setting(0.06),
        FIXMATCH: Setting(0.06, threshold=0.8),
        SELF_TUNING: Setting(0.06, momentum=0.99),
    }

    assert list(comparison.results) == list(reported)
    assert all(run.setting == comparison.chosen[run.arm] and run.epochs == settings.epochs for run in reported)
    seeds = Counter((run.arm, run.percentage) for run in reported)
    assert seeds == {
        (arm, percentage): 3
        for arm in ARMS
        for percentage in settings.percentages
        if not (arm == FIXMATCH and percentage == FULL)
    }
