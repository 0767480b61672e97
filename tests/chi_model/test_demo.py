"""How the χ-Model's demo chooses hyper-parameters, and what its probe of the game says."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.chi_model import REGRESSION, ChiModel, mlp_head
from dadl.demos.chi_model import ARMS, LABELS_ONLY, TASKS, GameProbe, Result, Run, Setting, Settings, compare
from dadl.networks.views import View
from dadl.output import JobProgress
from rich.console import Console


class Oracle:
    """In place of a pool: likes the learning rate 0.01 and the last η on validation, anything else on test."""

    def __init__(self) -> None:
        self.jobs: list[Sequence[Run]] = []

    def train(self, runs: Sequence[Run], progress: JobProgress) -> dict[Run, Result]:
        self.jobs.append(runs)
        for _ in runs:
            progress.advance()
        return {run: Result(self.error(run.setting), -self.error(run.setting), [], None) for run in runs}

    @staticmethod
    def error(setting: Setting) -> float:
        return abs(setting.lr - 0.01) + 0.001 * abs(setting.eta - Settings().etas[-1])


def test_every_arm_is_tuned_alike_and_reported_with_every_seed() -> None:
    settings, pool = Settings(), Oracle()
    any_pool: Any = pool
    with JobProgress(Console(file=io.StringIO())) as progress:
        comparison = compare(settings, any_pool, progress)
        task = progress._bar.tasks[-1]
        assert task.completed == task.total
    rates, etas, reported = pool.jobs
    for task in TASKS:
        for arm in ARMS:
            runs = [run for run in rates if (run.task, run.arm) == (task, arm)]
            assert [run.setting.lr for run in runs] == list(settings.learning_rates)
            others = [run.setting for run in etas if (run.task, run.arm) == (task, arm)]
            best = Setting(0.01) if arm == LABELS_ONLY else Setting(0.01, settings.etas[-1])
            assert others == ([] if arm == LABELS_ONLY else [Setting(0.01, eta) for eta in settings.etas[1:]])
            assert comparison.chosen[task, arm] == best
            final = [run for run in reported if (run.task, run.arm) == (task, arm)]
            assert [run.seed for run in final] == list(range(settings.seeds))
            assert {(run.setting, run.epochs) for run in final} == {(best, settings.epochs)}
    assert {(run.seed, run.epochs) for run in (*rates, *etas)} == {(0, settings.trial_epochs)}
    assert list(comparison.results) == list(reported)


def test_the_probe_tells_the_heads_moves_from_the_features() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
    method = ChiModel(
        encoder, lambda: mlp_head(8, 6, 2, bounded=True), View(6, crop_area=None, cutout=0.5), REGRESSION, lr=0.1
    )
    probe = GameProbe(method, torch.rand(16, 1, 6, 6))
    with torch.no_grad():
        method.chi.head_a[-2].bias += 1
    probe.measure(1)
    with torch.no_grad():
        encoder[1].weight *= 3
    probe.measure(2)
    assert method.training
    duel = probe.duel
    assert duel.steps == [0, 1, 2]
    assert duel.heads[1] != 0
    assert duel.features[1] == 0
    assert duel.heads[2] == duel.heads[1]
    assert duel.features[2] != 0
    start = duel.disagreement[0]
    for heads, features, both in zip(duel.heads, duel.features, duel.disagreement, strict=True):
        assert start + heads + features == pytest.approx(both)
