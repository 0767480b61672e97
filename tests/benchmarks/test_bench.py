"""``dadl bench``: every candidate is measured, in turn, and the tables say what was measured."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.benchmarks import contrast
from dadl.benchmarks.figure import draw_benchmark
from dadl.benchmarks.harness import (
    WARM_UP,
    BenchmarkTable,
    Harness,
    cells,
    markdown_table,
    milliseconds,
    ratio,
    speedup,
)
from dadl.benchmarks.run import BENCHMARKS, BenchmarkError, run_benchmarks
from rich.console import Console
from torch import Tensor

from dadl_ext import build_info

TABLES = {
    "ranksim": {"rank": 1, "ranksim": 2},
    "rank-n-contrast": {"rank-n-contrast": 2, "rank-n-contrast-scaling": 2},
    "contrast": {"group-contrast": 1, "supervised-contrast": 1, "cross-batch-memory": 1},
    "disagreement": {"dropout": 1, "disagreement": 4},
    "cmw-net": {"cmw-net": 8},
}
"""The rows of each table, quickly measured."""


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Compiling takes a minute in all and is not what is tested here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make_harness(said: list[str], rounds: int = 2) -> Harness:
    return Harness("cpu", seconds=0.0, rounds=rounds, say=said.append)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_candidate_is_measured_and_written(name: str, tmp_path: Path) -> None:
    if name == "contrast":
        pytest.importorskip("pytorch_metric_learning", reason="needs pip install 'dadl[bench]'")
    stream, threads = io.StringIO(), torch.get_num_threads()
    console = Console(file=stream, width=200)
    measured = run_benchmarks(name, threads=1, device="cpu", output=tmp_path, quick=True, console=console)  # type: ignore[arg-type]
    assert torch.get_num_threads() == threads
    assert {table: len(rows) for table, rows in measured.items()} == TABLES[name]
    for table in BENCHMARKS[name].tables(True):
        rows = measured[table.name]
        assert all(value > 0 for numbers in rows.values() for value in numbers.values())
        written = json.loads((tmp_path / f"{table.name}-cpu.json").read_text(encoding="utf-8"))
        assert written["measured"] == rows
        assert written["rows"] == cells(table, rows)
        assert markdown_table(cells(table, rows)) in (tmp_path / f"{table.name}-cpu.md").read_text(encoding="utf-8")
        titles = {table.header, *(column.title for column in table.columns)}
        assert all(set(row) == titles for row in written["rows"])
        assert all(title in stream.getvalue() for title in titles)
        # A dash stands only for the loop, which is not measured at the largest sizes.
        missing = [title for row in written["rows"] for title, cell in row.items() if cell == "–"]
        assert missing == (["row loop / dadl"] if table.name == "ranksim" else [])
    assert (tmp_path / f"{name}-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}-cpu.svg").exists()


def test_candidates_take_turns_and_the_median_is_of_their_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, called = 0.0, []
    costs = {"a": iter([9, 9, 9, 1, 5, 2]), "b": iter([9, 9, 9, 10, 30, 20])}

    def candidate(name: str) -> None:
        nonlocal clock
        called.append(name)
        clock += next(costs[name])

    monkeypatch.setattr("dadl.benchmarks.harness.time.perf_counter", lambda: clock)
    medians = make_harness([], rounds=3).medians({name: lambda name=name: candidate(name) for name in costs})
    assert called[2 * WARM_UP :] == ["a", "b"] * 3
    assert medians == {"a": 2, "b": 20}


def test_measures_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = 0.0, 0

    def candidate() -> None:
        nonlocal clock, calls
        clock, calls = clock + 1, calls + 1

    monkeypatch.setattr("dadl.benchmarks.harness.time.perf_counter", lambda: clock)
    Harness("cpu", seconds=10.0, rounds=2, say=print).medians({"a": candidate})
    assert calls == WARM_UP + 10


def test_cells_are_the_ratios_of_the_medians() -> None:
    columns = (milliseconds(), speedup("eager"), ratio("dadl", "two products"), speedup("torch.compile"))
    table = BenchmarkTable(name="t", header="m", columns=columns, notes="", cases=())
    rows = {"64": {"dadl": 0.002, "eager": 0.005, "two products": 0.0016}}
    expected = {"m": "64", "ms": "2.00", "eager / dadl": "2.5", "dadl / two products": "1.25"}
    assert cells(table, rows) == [{**expected, "torch.compile / dadl": "–"}]


def test_without_a_compiler_the_rest_is_measured() -> None:
    from torch._inductor import config

    said: list[str] = []
    harness, x = make_harness(said), torch.ones(3)
    # Not by monkeypatch, which would leave the setting deleted.
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        for _ in range(2):
            compiled = torch.compile(lambda x: x + 1)
            candidates = {"eager": lambda: x + 1, "torch.compile": lambda compiled=compiled: compiled(x)}
            assert set(harness.medians(candidates)) == {"eager"}
    (line,) = said
    assert "torch.compile does not work here and is left out" in line
    assert "no-such-compiler" in line


def test_an_error_of_a_candidate_is_not_hidden() -> None:
    def broken() -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        make_harness([]).medians({"dadl": broken})


@pytest.mark.usefixtures("uncompiled")
def test_without_pytorch_metric_learning_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    said: list[str] = []
    harness = make_harness(said)
    (supervised,) = contrast.supervised_case(4, 2, 3, harness).values()
    (memory,) = contrast.memory_case(4, 2, 2, 3, harness).values()
    assert set(supervised) == {"dadl", "eager", "torch.compile"}
    assert set(memory) == {"dadl"}
    (line,) = said
    assert "pip install 'dadl[bench]'" in line


def test_the_figure_shows_only_what_was_measured() -> None:
    columns = (milliseconds(), speedup("eager"), ratio("dadl", "two products"), speedup("torch.compile"))
    table = BenchmarkTable(name="t", header="m", columns=columns, notes="", cases=())
    rows = {"64": {"dadl": 2.0, "eager": 5.0, "two products": 1.0}, "128": {"dadl": 4.0, "eager": 2.0}}
    (axes,) = draw_benchmark([(table, rows)], "a machine").axes
    assert [text.get_text() for text in axes.texts] == ["2.5", "0.5", "–", "–"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["eager / dadl", "torch.compile / dadl"]
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[0]]
    assert tops == [2.5, 0.5]


@pytest.mark.skipif(build_info()["cuda_available"], reason="CUDA can be used here")
def test_cuda_that_is_missing_is_an_error() -> None:
    reason = re.escape(str(build_info()["cuda_absent_because"]))
    with pytest.raises(BenchmarkError, match=reason):
        run_benchmarks("ranksim", device="cuda", console=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "rank"}, "name must be one of ranksim, .*, all, got 'rank'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"seconds": 0.0}, "seconds must be positive, got 0.0"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_bad_settings_are_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        run_benchmarks(**settings, console=Console(file=io.StringIO()))  # type: ignore[arg-type]
