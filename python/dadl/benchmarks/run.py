"""``dadl bench``: measures, shows tables, and optionally writes them with a figure."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table as TerminalTable

from dadl_ext import build_info

from ..files import check_output_folder, write_text
from ..options import BenchmarkName, Device
from ..output import JobProgress, save_figure, write_json
from . import cmw_net, contrast, disagreement, rank_n_contrast, ranksim
from .against import BenchmarkError, Comparison, quartiles_of, read_recorded
from .figure import draw_benchmark
from .harness import BenchmarkTable, Harness, Numbers, cells, keep_memory, markdown_table

ROUNDS, QUICK_ROUNDS = 15, 2


@dataclass(frozen=True)
class Benchmark:
    tables: Callable[[bool], list[BenchmarkTable]]
    seconds: float
    """Default for each set of candidates."""


BENCHMARKS = {
    "ranksim": Benchmark(ranksim.tables, 3.0),
    "rank-n-contrast": Benchmark(rank_n_contrast.tables, 3.0),
    "contrast": Benchmark(contrast.tables, 3.0),
    "disagreement": Benchmark(disagreement.tables, 3.0),
    "cmw-net": Benchmark(cmw_net.tables, 120.0),
}


def run_benchmarks(
    name: BenchmarkName = "all",
    *,
    seconds: float | None = None,
    threads: int | None = None,
    device: Device = "auto",
    output: Path | None = None,
    against: Path | None = None,
    other_machine: bool = False,
    quick: bool = False,
    console: Console,
) -> dict[str, dict[str, Numbers]]:
    """Measure the operators or a step of CMW-Net against eager PyTorch, torch.compile and other libraries.

    Forward and backward together, in float32. Candidates take turns, so that noise and clock changes affect all alike;
    tables show medians and their ratios. What cannot run here (torch.compile without a compiler,
    pytorch-metric-learning if it is not installed) is left out with a line that says why.

    A ratio is worse than a recorded one beyond noise if the intervals between the quartiles that both have over their
    rounds do not overlap, to the digits of the table, and if they do not in three measurements out of three. Tables
    recorded without quartiles are given the relative spread of now. Times alone are not compared.

    Args:
        name: one of :data:`BENCHMARKS`, or ``"all"``.
        seconds: for each set of candidates; the default is 3, and 120 for ``"cmw-net"``. Each candidate is called at
            least 15 times.
        threads: of the CPU; the default is that of PyTorch.
        device: ``"auto"`` is CUDA if dadl's CUDA operators can run, and the CPU otherwise.
        output: a folder for ``TABLE-DEVICE.md`` and ``.json``, and ``NAME-DEVICE.png`` and ``.svg``; by default nothing
            is written.
        against: a folder with tables recorded by ``output``, with whose ratios the new ones are compared.
        other_machine: compare with tables of another machine, or another version of torch, too.
        quick: tiny sizes and two rounds, only to check that everything works; the numbers mean nothing.
        console: where progress and tables are shown.

    Returns:
        The measurements of each table and row: median seconds of every candidate, or MiB if the name says so.

    Raises:
        OutputError: ``output`` cannot be written.
        BenchmarkError: ``name`` or ``device`` is unknown, ``seconds`` or ``threads`` too small, or ``"cuda"`` cannot
            be used, or ``against`` holds no tables, or those of another machine.
        SettingsError: a file in ``against`` is not as ``output`` writes it.
        RegressionError: a ratio is worse than in ``against``, beyond noise; everything is measured and written first.
    """
    if name not in get_args(BenchmarkName):
        raise BenchmarkError(f"name must be one of {', '.join(get_args(BenchmarkName))}, got {name!r}")
    if seconds is not None and not seconds > 0:
        raise BenchmarkError(f"seconds must be positive, got {seconds}")
    if threads is not None and threads < 1:
        raise BenchmarkError(f"threads must be 1 or more, got {threads}")
    if against is not None and quick:
        raise BenchmarkError("quick measures other sizes, once or twice: leave out quick or against")
    if other_machine and against is None:
        raise BenchmarkError("other_machine is about the tables in against, which is not given")
    place = _usable(device, console)
    if output is not None:
        check_output_folder(output)
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()
    try:
        machine = f"{_machine(place)}, torch {torch.__version__}"
        _say(console, machine)
        measured: dict[str, dict[str, Numbers]] = {}
        chosen_names = list(BENCHMARKS) if name == "all" else [name]
        comparison = None
        if against is not None:
            names = [table.name for chosen in chosen_names for table in BENCHMARKS[chosen].tables(quick)]
            comparison = read_recorded(against, place, names, machine, other_machine, lambda line: _say(console, line))
        for chosen in chosen_names:
            benchmark = BENCHMARKS[chosen]
            wanted = benchmark.seconds if seconds is None else seconds
            harness = Harness(
                place, 0.0 if quick else wanted, QUICK_ROUNDS if quick else ROUNDS, lambda line: _say(console, line)
            )
            torch.manual_seed(0)
            results: list[tuple[BenchmarkTable, dict[str, Numbers]]] = []
            for table in benchmark.tables(quick):
                rows = _measure(table, harness, console, comparison)
                if output is not None:
                    _write(table, rows, machine, output / f"{table.name}-{place}")
                _show(table, rows, console)
                results.append((table, rows))
            if output is not None:
                save_figure(draw_benchmark(results, machine), output / f"{chosen}-{place}")
            measured |= {table.name: rows for table, rows in results}
    finally:
        torch.set_num_threads(threads_before)
    if output is not None:
        _say(console, f"Written to {output}")
    if comparison is not None:
        comparison.finish()
    return measured


def _usable(device: Device, console: Console) -> str:
    if device not in get_args(Device):
        raise BenchmarkError(f"device must be one of {', '.join(get_args(Device))}, got {device!r}")
    info = build_info()
    if device == "cpu" or info["cuda_available"]:
        return "cpu" if device == "cpu" else "cuda"
    if device == "cuda":
        raise BenchmarkError(
            f"device is cuda, which dadl cannot use here: {info['cuda_absent_because']}; the device cpu can be measured"
        )
    if torch.cuda.is_available():
        _say(console, f"The GPU is not measured: {info['cuda_absent_because']}")
    return "cpu"


def _machine(device: str) -> str:
    """The name of the measuring machine."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} {'thread' if threads == 1 else 'threads'}, {torch.backends.cpu.get_cpu_capability()}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _measure(
    table: BenchmarkTable, harness: Harness, console: Console, comparison: Comparison | None
) -> dict[str, Numbers]:
    def measured(case: Callable[[Harness], Mapping[str, Numbers]]) -> Mapping[str, Numbers]:
        torch.compiler.reset()  # otherwise it treats sizes as dynamic from the second case on, which may be slower
        return case(harness)

    rows: dict[str, Numbers] = {}
    with JobProgress(console) as progress:
        progress.start(table.name, total=len(table.cases))
        for case in table.cases:
            measure = partial(measured, case)
            done = measure() if comparison is None else comparison.measure(table, measure)
            rows |= done
            progress.advance("; ".join(done))
    return rows


def _show(table: BenchmarkTable, rows: Mapping[str, Numbers], console: Console) -> None:
    shown = TerminalTable(title=table.name, title_justify="left")
    shown.add_column(table.header, no_wrap=True)
    for column in table.columns:
        shown.add_column(column.title, justify="right", overflow="fold")
    for line in cells(table, rows):
        shown.add_row(*line.values())
    console.print(shown)
    console.print(table.notes, markup=False, highlight=False)


def _write(table: BenchmarkTable, rows: Mapping[str, Numbers], machine: str, stem: Path) -> None:
    shown = cells(table, rows)
    text = f"# {table.name}\n\n{machine}\n\n{markdown_table(shown)}\n\n{table.notes}\n"
    write_text(stem.with_suffix(".md"), text)
    quartiles = quartiles_of(table.columns, rows)
    contents = {"machine": machine, "notes": table.notes, "rows": shown, "measured": rows, "quartiles": quartiles}
    write_json(stem.with_suffix(".json"), contents)
