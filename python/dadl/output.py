"""What commands show and write: the console, progress, tables of means over seeds, results as JSON, figures."""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .files import write_file, write_text

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Cells = Mapping[str, Mapping[str, Sequence[float]]]
"""``cells[row][column]`` holds one value for each seed."""


class ForgivingStream:
    """A console that may not know a letter, be full, or be gone; a command's work goes on. ``error`` is what happened.

    Letters that its encoding lacks are written as escapes. After an error everything goes to the null device, also what
    Python flushes as it exits.
    """

    error: OSError | None = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def forgive_streams() -> None:
    """Replace the standard output and error of this process by forgiving ones."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))


def lost_output() -> str | None:
    """Why the standard output is incomplete; ``None`` if it is whole, or if its reader wanted no more."""
    stream = sys.stdout
    if stream is None:
        return None
    stream.flush()
    error = stream.error if isinstance(stream, ForgivingStream) else None
    return None if error is None or isinstance(error, BrokenPipeError) else error.strerror or str(error)


class JobProgress:
    """A progress bar with the remaining time of the whole job on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=60,
        )

    def __enter__(self) -> "JobProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, description: str, total: int) -> None:
        """Begin a part of the job with ``total`` steps."""
        self._task = self._bar.add_task(description, total=total)

    def begin_at(self, done: int) -> None:
        """Say that this many steps of the current part are already done; the remaining time is for the rest."""
        self._bar.reset(self._task, completed=done)

    def describe(self, text: str) -> None:
        """Describe the progress of the current part, in the bar or on a line of its own."""
        if self._console.is_terminal:
            self._bar.update(self._task, description=text)
        else:
            self._console.print(text, soft_wrap=True)

    def advance(self, done: str = "", steps: int = 1) -> None:
        """Count steps; without a bar, ``done`` describes them on a line of its own."""
        self._bar.advance(self._task, steps)
        if done and not self._console.is_terminal:
            task = self._bar.tasks[-1]
            self._console.print(f"{task.description} {task.completed:.0f}/{task.total:.0f}: {done}", soft_wrap=True)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error, which is NaN for a single seed."""
    import numpy as np  # see environment

    x = np.asarray(values, dtype=np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


def format_cell(values: Sequence[float]) -> str:
    """``"1.23 ± 0.04"``; no standard error for a single seed, ``"–"`` if there is nothing to average."""
    mean, error = mean_and_standard_error(values)
    if math.isnan(mean):
        return "–"
    rounded = round(mean, 2) + 0.0  # no "-0.00"
    return f"{rounded:.2f}" if math.isnan(error) else f"{rounded:.2f} ± {error:.2f}"


def rich_table(title: str, cells: Cells) -> Table:
    """A table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in next(iter(cells.values())):
        table.add_column(column, justify="right")
    for row, columns in cells.items():
        table.add_row(row, *(format_cell(values) for values in columns.values()))
    return table


def markdown_table(cells: Cells) -> str:
    """The same table in Markdown."""
    columns = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row} | " + " | ".join(format_cell(v) for v in by.values()) + " |" for row, by in cells.items()]
    return "\n".join(lines)


def environment(device: "torch.device") -> dict[str, Any]:
    """What a result depends on besides the settings."""
    import numpy as np
    import torch  # takes long, and the help of a command needs only the console

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Write strict JSON. JSON has neither NaN nor infinity, which become null."""
    # The escapes of what is not Unicode, as in file names, are JSON's own.
    write_text(path, json.dumps(_plain(results), indent=2, ensure_ascii=False) + "\n", errors="backslashreplace")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_figure(figure: "Figure", stem: Path) -> None:
    """Write a figure as PNG and SVG, without a date, so that equal results give equal files."""
    from matplotlib import rc_context  # takes long, and most commands draw nothing

    write_file(stem.with_suffix(".png"), lambda path: figure.savefig(path, format="png", dpi=150))
    with rc_context({"svg.hashsalt": stem.name}):
        write_file(stem.with_suffix(".svg"), lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))
