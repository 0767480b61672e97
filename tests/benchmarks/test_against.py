"""``dadl bench --against``: a planted regression is found, noise is not taken for one, and machines are told apart."""

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.benchmarks.against import MEASUREMENTS, BenchmarkError, RegressionError, is_worse
from dadl.benchmarks.harness import BenchmarkTable, Column, Harness, Median, Numbers, milliseconds, ratio, speedup
from dadl.benchmarks.run import BENCHMARKS, Benchmark, run_benchmarks
from dadl.errors import SettingsError
from rich.console import Console

Case = Callable[[Harness], Mapping[str, Numbers]]
COLUMNS = (milliseconds(), speedup("eager"), ratio("dadl", "two products"), ratio("eager", "loop", better=None))


class Bench:
    """``dadl bench`` of one table with one case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: tuple[Column, ...] = COLUMNS) -> None:
        self.monkeypatch, self.columns, self.said = monkeypatch, columns, ""

    def __call__(self, case: Case, seconds: float = 1e-9, **options: Any) -> dict[str, dict[str, Numbers]]:
        table = BenchmarkTable(name="rank", header="n", columns=self.columns, notes="", cases=[case])
        self.monkeypatch.setitem(BENCHMARKS, "ranksim", Benchmark(lambda quick: [table], 3.0))
        console = Console(file=io.StringIO(), width=200)
        try:
            return run_benchmarks("ranksim", seconds=seconds, device="cpu", console=console, **options)
        finally:
            self.said = console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def noisy(seed: int, noise: float = 0.1, rounds: int = 15, **slower: float) -> Case:
    """A case whose candidates have a common load and noise of their own in every round."""
    rng = np.random.default_rng(seed)
    base = {"dadl": 1.0, "eager": 4.0, "two products": 0.5, "loop": 40.0}

    def case(harness: Harness) -> Mapping[str, Numbers]:
        load = np.exp(rng.normal(0, 0.5, rounds))
        times = lambda name: load * np.exp(rng.normal(0, noise, rounds)) * base[name] * slower.get(name, 1.0)
        return {"64": {name: Median(times(name).tolist()) for name in base}}

    return case


def sleeping(milliseconds: float) -> Case:
    def case(harness: Harness) -> Mapping[str, Numbers]:
        return {
            "64": harness.medians({"dadl": lambda: time.sleep(milliseconds / 1e3), "eager": lambda: time.sleep(3e-3)})
        }

    return case


def test_a_regression_that_was_planted_is_found_in_real_time(bench: Bench, tmp_path: Path) -> None:
    bench(sleeping(1.0), output=tmp_path)
    bench(sleeping(1.0), against=tmp_path)
    assert "None of 1 ratios is worse than recorded" in bench.said
    with pytest.raises(
        RegressionError, match=r"1 of 1 ratios are worse beyond noise:\nrank: 64, eager / dadl: recorded"
    ):
        bench(sleeping(3.0), against=tmp_path)


@pytest.mark.parametrize(("slower", "found"), [({"dadl": 1.3}, 2), ({"eager": 0.7}, 1), ({"loop": 3.0}, 0)])
def test_each_ratio_is_worse_in_its_own_direction(
    slower: dict[str, float], found: int, bench: Bench, tmp_path: Path
) -> None:
    bench(noisy(0, rounds=200, noise=0.05), output=tmp_path)
    compare = lambda: bench(noisy(1, rounds=200, noise=0.05, **slower), against=tmp_path)
    if found:
        with pytest.raises(RegressionError, match=f"{found} of 2 ratios are worse beyond noise"):
            compare()
    else:
        compare()
    # What is better is no regression.
    bench(noisy(2, rounds=200, noise=0.05, dadl=0.7, eager=1.5), against=tmp_path)


def test_noise_is_no_regression(bench: Bench, tmp_path: Path) -> None:
    """The fewest rounds, and the times of a machine whose load changes by the round."""
    bench(noisy(0), output=tmp_path)
    for seed in range(1, 60):
        bench(noisy(seed), against=tmp_path)


def test_one_measurement_does_not_decide(bench: Bench, tmp_path: Path) -> None:
    bench(noisy(0), output=tmp_path)
    for slow in range(MEASUREMENTS + 1):
        cases = iter([noisy(i, dadl=3.0) if i < slow else noisy(i) for i in range(MEASUREMENTS)])
        case = lambda harness, cases=cases: next(cases)(harness)
        if slow == MEASUREMENTS:
            with pytest.raises(RegressionError):
                bench(case, against=tmp_path)
        else:
            measured = bench(case, against=tmp_path)
            assert bench.said.count("measured again") == slow
            # The table has the first measurement, whatever it was.
            assert (measured["rank"]["64"]["dadl"] > 2) == (slow > 0)


def test_recorded_quartiles_are_those_of_the_ratio_over_rounds(bench: Bench, tmp_path: Path) -> None:
    times = {"dadl": [1.0, 2.0, 4.0, 1.0, 1.0], "eager": [2.0, 6.0, 16.0, 5.0, 6.0]}  # ratios 2, 3, 4, 5, 6
    bench(lambda harness: {"64": {name: Median(rounds) for name, rounds in times.items()}}, output=tmp_path)
    written = json.loads((tmp_path / "rank-cpu.json").read_text(encoding="utf-8"))
    assert written["quartiles"] == {"64": {"eager / dadl": [3, 5]}}
    assert written["measured"] == {"64": {"dadl": 1, "eager": 6}}


def test_tables_without_quartiles_have_the_spread_of_now(bench: Bench, tmp_path: Path) -> None:
    bench(noisy(0, rounds=200), output=tmp_path)
    file = tmp_path / "rank-cpu.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    del recorded["quartiles"]
    file.write_text(json.dumps(recorded), encoding="utf-8")
    bench(noisy(1, rounds=200), against=tmp_path)
    with pytest.raises(RegressionError):
        bench(noisy(1, rounds=200, dadl=1.5), against=tmp_path)


def test_memory_has_no_spread_but_the_digits_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(monkeypatch, (speedup("eager"), ratio("dadl MiB", "matrix MiB")))
    case = lambda used: lambda harness: {"64": {"dadl": 1.0, "eager": 2.0, "dadl MiB": used, "matrix MiB": 1.0}}
    bench(case(1.5), output=tmp_path)
    bench(case(1.501), against=tmp_path)
    with pytest.raises(RegressionError, match=re.escape("recorded 1.5 to 1.5, now 1.52 to 1.52")):
        bench(case(1.52), against=tmp_path)


def test_intervals_that_touch_are_equal() -> None:
    column = speedup("eager")
    assert is_worse(column, (2.0, 3.0), (1.0, 1.9))
    assert not is_worse(column, (2.0, 3.0), (1.0, 2.0))
    assert not is_worse(column, (2.0, 3.0), (4.0, 5.0))
    assert is_worse(ratio("dadl", "two products"), (2.0, 3.0), (3.1, 5.0))


def change(file: Path, **contents: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | contents), encoding="utf-8")


def test_tables_of_another_machine_are_refused_before_anything_is_measured(bench: Bench, tmp_path: Path) -> None:
    bench(noisy(0), output=tmp_path)
    change(tmp_path / "rank-cpu.json", machine="An abacus, torch 2.11.0")

    def never(harness: Harness) -> Mapping[str, Numbers]:
        raise AssertionError

    with pytest.raises(
        BenchmarkError, match=r"on other machines, (?s:.*)rank: An abacus, torch 2\.11\.0\nhere: .*torch"
    ):
        bench(never, against=tmp_path)
    bench(noisy(1), against=tmp_path, other_machine=True)
    assert "None of 2 ratios is worse" in bench.said


def test_what_cannot_be_compared_is_said(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"has none of the tables rank for cpu; record them with --output"):
        bench(noisy(0), against=tmp_path)
    bench(noisy(0), output=tmp_path)
    # torch.compile or a library may be missing on one side.
    lacking = lambda harness: {"64": {k: v for k, v in noisy(1)(harness)["64"].items() if k != "two products"}}
    bench(lacking, against=tmp_path)
    assert "rank, 64, dadl / two products: missing" in bench.said
    assert "None of 1 ratios is worse" in bench.said
    other = lambda harness: {"65": noisy(1)(harness)["64"]}
    with pytest.raises(BenchmarkError, match="nothing that was recorded was measured"):
        bench(other, against=tmp_path)
    assert "rank, 65, eager / dadl: not recorded" in bench.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quick": True, "against": Path()}, "quick measures other sizes"),
        ({"other_machine": True}, "other_machine is about the tables in against"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str, bench: Bench) -> None:
    with pytest.raises(BenchmarkError, match=message):
        bench(noisy(0), **options)


def test_a_damaged_table_is_named(bench: Bench, tmp_path: Path) -> None:
    bench(noisy(0), output=tmp_path)
    change(tmp_path / "rank-cpu.json", measured={"64": {"dadl": "fast"}})
    with pytest.raises(SettingsError, match=r"rank-cpu\.json, measured, '64', 'dadl'"):
        bench(noisy(0), against=tmp_path)


def test_the_command_ends_with_status_1(bench: Bench, tmp_path: Path) -> None:
    bench(noisy(0), output=tmp_path)
    change(tmp_path / "rank-cpu.json", quartiles={"64": {"eager / dadl": [1e6, 1e6]}})
    code = """if True:
        import sys
        from dadl.benchmarks.harness import BenchmarkTable, Median, speedup
        from dadl.benchmarks.run import BENCHMARKS, Benchmark
        from dadl.cli import main
        case = lambda harness: {"64": {"dadl": Median([1.0, 1.0]), "eager": Median([4.0, 4.0])}}
        table = BenchmarkTable(name="rank", header="n", columns=(speedup("eager"),), notes="", cases=[case])
        BENCHMARKS["ranksim"] = Benchmark(lambda quick: [table], 3.0)
        sys.argv = ["dadl", "bench", "ranksim", "--device", "cpu", "--other-machine", "--against", sys.argv[1]]
        main()
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "1 of 1 ratios are worse beyond noise:\nrank: 64, eager / dadl: recorded 1e+06 to 1e+06, now 4 to 4"
        in done.stderr
    )
