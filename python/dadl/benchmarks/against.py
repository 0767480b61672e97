"""Whether the ratios just measured are worse than recorded ones, beyond what is noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ..checks import check
from ..documents import read_json
from ..errors import UserError
from .harness import BenchmarkTable, Column, Numbers, Quartiles

MEASUREMENTS = 3
"""Of a case before a ratio counts as worse; each must find it so."""


class BenchmarkError(UserError, ValueError):
    """A request that cannot be measured here."""


class RegressionError(UserError):
    """Ratios that are worse than recorded ones, beyond noise."""


class _Recorded(TypedDict):
    machine: str
    measured: Mapping[str, Mapping[str, float]]


class Recorded(_Recorded, total=False):
    """A table's JSON file; earlier ones lack the quartiles."""

    quartiles: Mapping[str, Mapping[str, Quartiles]]


@dataclass(frozen=True)
class Worse:
    """A ratio that is worse than the recorded one."""

    row: str
    title: str
    recorded: Quartiles
    now: Quartiles

    def __str__(self) -> str:
        was, now = (f"{low:.3g} to {high:.3g}" for low, high in (self.recorded, self.now))
        return f"{self.row}, {self.title}: recorded {was}, now {now}"


def quartiles_of(columns: Sequence[Column], rows: Mapping[str, Numbers]) -> dict[str, dict[str, Quartiles]]:
    """The quartiles of every ratio in a table, by row and title."""
    return {
        row: {column.title: found for column in columns if (found := column.quartiles(numbers)) is not None}
        for row, numbers in rows.items()
    }


@dataclass
class Comparison:
    """Recorded tables, and what was found worse than they say."""

    tables: Mapping[str, Recorded]
    say: Callable[[str], None]
    compared: int = 0
    worse: dict[str, list[Worse]] = field(default_factory=dict)

    def measure(self, table: BenchmarkTable, measure: Callable[[], Mapping[str, Numbers]]) -> Mapping[str, Numbers]:
        """Measure a case, and again where something is worse. Returns the first measurement, for better or worse."""
        first = measure()
        recorded = self.tables.get(table.name)
        if recorded is None:
            return first
        found = self._compare(table, recorded, first, count=True)
        for _ in range(MEASUREMENTS - 1):
            if found:
                self.say(f"{table.name}, {'; '.join(sorted({worse.row for worse in found}))}: worse; measured again")
                again = {(worse.row, worse.title) for worse in self._compare(table, recorded, measure())}
                found = [worse for worse in found if (worse.row, worse.title) in again]
        self.worse.setdefault(table.name, []).extend(found)
        return first

    def finish(self) -> None:
        """Raise a :class:`RegressionError` that names all that was found worse."""
        lines = [f"{name}: {worse}" for name, found in self.worse.items() for worse in found]
        if lines:
            raise RegressionError(
                "\n".join([f"{len(lines)} of {self.compared} ratios are worse beyond noise:", *lines])
            )
        if not self.compared:
            raise BenchmarkError("nothing that was recorded was measured, so nothing could be compared")
        self.say(f"None of {self.compared} ratios is worse than recorded, beyond noise")

    def _compare(
        self, table: BenchmarkTable, recorded: Recorded, rows: Mapping[str, Numbers], count: bool = False
    ) -> list[Worse]:
        found = []
        for row, numbers in rows.items():
            for column in (column for column in table.columns if column.better is not None):
                was, now = recorded_quartiles(column, row, recorded, numbers), column.quartiles(numbers)
                if was is None or now is None:
                    if count and was is not now:
                        self.say(f"{table.name}, {row}, {column.title}: {'not recorded' if was is None else 'missing'}")
                    continue
                self.compared += count
                if is_worse(column, was, now):
                    found.append(Worse(row, column.title, was, now))
        return found


def is_worse(column: Column, recorded: Quartiles, now: Quartiles) -> bool:
    """Whether the better quartile of now is worse than the worse one that was recorded, in the table's digits."""
    (low, high), (low_now, high_now) = (
        tuple(round(number, column.digits) for number in quartiles) for quartiles in (recorded, now)
    )
    return high_now < low if column.better == "higher" else low_now > high


def recorded_quartiles(column: Column, row: str, recorded: Recorded, now: Numbers) -> Quartiles | None:
    """Those of a ratio; where only its median was recorded, with the relative spread that it has now."""
    if (kept := recorded.get("quartiles", {}).get(row, {}).get(column.title)) is not None:
        return kept
    median = column.value(recorded["measured"].get(row, {}))
    spread, median_now = column.quartiles(now), column.value(now)
    if median is None or spread is None or median_now is None:
        return None
    first, third = spread
    return median * first / median_now, median * third / median_now


def read_recorded(
    folder: Path, device: str, names: Sequence[str], machine: str, other_machine: bool, say: Callable[[str], None]
) -> Comparison:
    """The recorded tables of a folder.

    Raises a :class:`BenchmarkError` if there is none, or one was measured on another machine, unless that is wanted;
    what a file lacks is an error too.
    """
    tables: dict[str, Recorded] = {}
    for name in names:
        file = folder / f"{name}-{device}.json"
        try:
            content: Any = read_json(file)
        except FileNotFoundError:
            say(f"{file} is not there: {name} is not compared")
            continue
        check(content, Recorded, str(file))
        tables[name] = content
    if not tables:
        raise BenchmarkError(
            f"{folder} has none of the tables {', '.join(names)} for {device}; record them with --output {folder}"
        )
    others = [f"{name}: {table['machine']}" for name, table in tables.items() if table["machine"] != machine]
    if others and not other_machine:
        raise BenchmarkError(
            "\n".join(
                [
                    f"{folder} was measured on other machines, whose ratios may differ with the same code:",
                    *others,
                    f"here: {machine}",
                    "compare with tables recorded here, or say --other-machine",
                ]
            )
        )
    return Comparison(tables, say)
