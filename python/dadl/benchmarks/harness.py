"""Benchmark tables, and the way to measure them: interleaved, so that noise affects all candidates alike."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3  # calls of each candidate; torch.compile needs more than one where shapes vary

MILLISECONDS = 1e3  # in a second

Numbers = Mapping[str, float]
"""Measurements for a row of a table: median seconds of every candidate, or MiB if the name says so."""

Quartiles = tuple[float, float]
"""The first and the third."""


class Median(float):
    """The median seconds of a candidate's calls, which are kept: the spread of a ratio is that over the rounds."""

    rounds: tuple[float, ...]

    def __new__(cls, rounds: Sequence[float]) -> Median:
        median = super().__new__(cls, statistics.median(rounds))
        median.rounds = tuple(rounds)
        return median


def keep_memory() -> None:
    """Make the C library keep freed memory, for all candidates alike.

    Otherwise it may return large tensors to the system and pay for new pages at the next call. Whether it does so is
    random but constant within a process, and takes longer than a small operator.
    """
    if platform.libc_ver()[0] == "glibc":
        no_mmap, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of mallopt(3)
        libc = ctypes.CDLL(None)
        libc.mallopt(no_mmap, 0)
        libc.mallopt(trim_threshold, 2**30)


def peak_memory(step: Callable[[], object], device: str) -> float:
    """Peak MiB of tensors during a step, on top of those that exist before it."""
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its log lines would break up the progress bar
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes: list[int] = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes)) / 2**20


@dataclass(frozen=True)
class Harness:
    """Where to measure, and for how long.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        seconds: for each set of candidates measured together.
        rounds: smallest number of calls of each candidate, however long they take.
        say: shows a line to the user.
    """

    device: str
    seconds: float
    rounds: int
    say: Callable[[str], None]
    _said: set[str] = field(default_factory=set, init=False)

    def say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _warm_up(self, call: Callable[[], object]) -> bool:
        """Whether the candidate works here."""
        try:
            for _ in range(WARM_UP):
                call()
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            self.say_once(f"torch.compile does not work here and is left out: {reason}")
            return False
        return True

    def medians(self, candidates: Mapping[str, Callable[[], object]]) -> dict[str, Median]:
        """Median seconds per call; candidates are called in turn until the time is over.

        A candidate that torch.compile cannot compile here is left out, and the reason is shown.
        """
        synchronize = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        times: dict[str, list[float]] = {name: [] for name, call in candidates.items() if self._warm_up(call)}
        start = time.perf_counter()
        while time.perf_counter() - start < self.seconds or any(len(done) < self.rounds for done in times.values()):
            for name, done in times.items():
                synchronize()
                begin = time.perf_counter()
                candidates[name]()
                synchronize()
                done.append(time.perf_counter() - begin)
        return {name: Median(done) for name, done in times.items()}


@dataclass(frozen=True)
class Column:
    """The number ``over`` of a row, divided by its number ``under`` if given."""

    title: str
    over: str
    under: str | None = None
    scale: float = 1.0
    digits: int = 1
    speedup: bool = False
    """Whether the figure shows this column, as the speedup of ``under``."""
    better: Literal["higher", "lower"] | None = None
    """For dadl; None where its code has no part in the number, or where the number is no ratio."""

    def value(self, numbers: Numbers) -> float | None:
        """None if part of it could not be measured."""
        if self.over not in numbers or (self.under is not None and self.under not in numbers):
            return None
        return self.scale * numbers[self.over] / (1.0 if self.under is None else numbers[self.under])

    def quartiles(self, numbers: Numbers) -> Quartiles | None:
        """Of a ratio over the rounds in which both took turns; memory has no spread. None as in :meth:`value`."""
        value = self.value(numbers)
        if value is None or self.under is None:
            return None
        over, under = numbers[self.over], numbers[self.under]
        if not (isinstance(over, Median) and isinstance(under, Median)):
            return value, value
        ratios = [self.scale * a / b for a, b in zip(over.rounds, under.rounds, strict=True)]
        first, _, third = statistics.quantiles(ratios, method="inclusive")
        return first, third

    def cell(self, numbers: Numbers) -> str:
        value = self.value(numbers)
        return "–" if value is None else f"{value:.{self.digits}f}"


def milliseconds(of: str = "dadl", title: str = "ms", digits: int = 2) -> Column:
    return Column(title, of, scale=MILLISECONDS, digits=digits)


def ratio(
    over: str,
    under: str,
    title: str | None = None,
    digits: int = 2,
    better: Literal["higher", "lower"] | None = "lower",
) -> Column:
    return Column(title or f"{over} / {under}", over, under, digits=digits, better=better)


def speedup(over: str, under: str = "dadl", title: str | None = None, digits: int = 1) -> Column:
    return Column(title or f"{over} / {under}", over, under, digits=digits, speedup=True, better="higher")


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """A table to measure.

    Args:
        name: of the table and its files.
        header: of the first column, which names the rows.
        columns: the other columns.
        notes: what is compared, and how.
        cases: each measures one or more rows, by name.
        scaling: the rows' names are sizes, and the figure shows times over sizes instead of speedups.
    """

    name: str
    header: str
    columns: Sequence[Column]
    notes: str
    cases: Sequence[Callable[[Harness], Mapping[str, Numbers]]]
    scaling: bool = False


def cells(table: BenchmarkTable, rows: Mapping[str, Numbers]) -> list[dict[str, str]]:
    """A measured table as text: for each row, the cell under each title."""
    return [
        {table.header: name, **{column.title: column.cell(numbers) for column in table.columns}}
        for name, numbers in rows.items()
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as a Markdown table."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row[title] for title in header) + " |" for row in rows]
    return "\n".join(lines)
