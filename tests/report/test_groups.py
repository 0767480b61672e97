"""Runs that differ by chance alone are one arm, and errors by label have no sign."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.comparison.samples import CONFIDENCE, LABEL, PREDICTION, TARGET
from dadl.report import samples
from dadl.report.groups import comparison_of
from dadl.report.results import Run, read_results


def run_of(folder: Path, name: str, **settings: Any) -> Run:
    return Run(name, folder / name, [], finished=True, recipe="ranksim", settings=settings, test={"all": {"MAE": 1.0}})


def test_runs_with_other_splits_are_one_arm_and_those_with_other_settings_are_not(tmp_path: Path) -> None:
    seeds = [(split, seed) for split in (0, 7) for seed in (0, 1)]
    runs = [run_of(tmp_path, f"a{split}{seed}", lr=1.0, split_seed=split, seed=seed) for split, seed in seeds]
    comparison, arms = comparison_of("ranksim", [*runs, run_of(tmp_path, "b", lr=2.0, split_seed=0, seed=0)])
    assert [len(of_arm) for of_arm in arms.values()] == [4, 1]
    first = next(iter(arms.values()))
    assert sorted((unit.split, unit.seed) for unit in first) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert comparison.reference == next(iter(arms))


def test_errors_by_label_have_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(samples, "svg", lambda figure, *told: drawn.append(figure))
    target = np.repeat(np.arange(4.0), 50)
    columns = {TARGET: target, PREDICTION: target + np.where(np.arange(200) % 2, 3.0, -1.0)}
    arm, part = SimpleNamespace(name="a", index=0), SimpleNamespace(columns=columns)
    samples.label_panels("name", samples.TestSamples([(arm, [part])], None))  # type: ignore[list-item]
    (line,) = drawn[0].axes[0].lines
    shown = np.asarray(line.get_ydata())
    assert shown[np.isfinite(shown)] == pytest.approx(2.0)


def test_the_calibration_error_is_a_mean_over_samples_and_a_confidence_of_1_is_in_the_last_bin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(samples, "svg", lambda figure, *told: said.extend(told))
    columns = {TARGET: np.array([0.0, 0.0]), LABEL: np.array([0.0, 1.0]), CONFIDENCE: np.array([0.95, 1.0])}
    arm, part = SimpleNamespace(name="a", index=0), SimpleNamespace(columns=columns)
    samples.class_panels("name", samples.TestSamples([(arm, [part])], None))  # type: ignore[list-item]
    assert any("a 47.5 %" in line for line in said), said  # of 0.975 and one half


def test_a_damaged_log_is_a_problem_and_no_run(tmp_path: Path) -> None:
    problems: list[str] = []
    for loss, shown in (("0.5", True), ("half", False)):
        (tmp_path / "log.csv").write_text(f"epoch,step,loss,lr\n1,2,{loss},0.1\n")
        assert (read_results(tmp_path, "a", problems) is not None) == shown
        assert bool(problems) != shown
