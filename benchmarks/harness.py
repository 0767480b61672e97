"""One harness for every benchmark: interleaved medians, so that noise and clock changes hit all candidates alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved_medians(candidates: dict[str, Callable[[], Any]], seconds: float = 3.0) -> dict[str, float]:
    """Median seconds per call; one call of each candidate in turn until ``seconds`` are used (at least 15 rounds)."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for call in candidates.values():
        for _ in range(3):
            call()
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 15:
        for name, call in candidates.items():
            synchronize()
            begin = time.perf_counter()
            call()
            synchronize()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def device_name() -> str:
    """The machine that measured, as people name it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows]
    return "\n".join(lines)


def write_results(name: str, rows: list[dict[str, Any]], notes: str) -> None:
    """Print the table, and write it with the device, the versions and the notes under ``results/``."""
    device, table = device_name(), markdown_table(rows)
    print(f"\n{device}, torch {torch.__version__}\n\n{table}\n\n{notes}")
    stem = RESULTS / f"{name}-{'cuda' if torch.cuda.is_available() else 'cpu'}"
    RESULTS.mkdir(exist_ok=True)
    stem.with_suffix(".md").write_text(f"# {name}\n\n{device}, torch {torch.__version__}\n\n{table}\n\n{notes}\n")
    stem.with_suffix(".json").write_text(
        json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
    )
