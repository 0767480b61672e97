"""Trainings side by side: worker processes that die with their parent."""

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..errors import UserError
from ..files import write_text
from ..options import Device
from ..runs.recipe import Recipe
from ..runs.settings import RunOptions
from ..runs.train import train_run
from ..training.loop import EpochLog, TrainingError

FAILED = "failed.txt"
"""In the folder of a run that diverged, and why."""


@dataclass(frozen=True)
class Job:
    """A training, in one stage or in two; only the last one is tested, if at all."""

    name: str
    stages: Sequence[tuple[Recipe, Path]]
    test: bool

    @property
    def folder(self) -> Path:
        return self.stages[-1][1]

    @property
    def epochs(self) -> int:
        return sum(recipe.epochs for recipe, _ in self.stages)


class Workers:
    """Processes that train jobs, each on one thread: so results do not depend on the number of cores.

    They are spawned, as a forked process cannot use the threads and devices of its parent, and live until the context
    ends. On a GPU they keep PyTorch's own number of threads.
    """

    def __init__(self, number: int, device: Device) -> None:
        self._number, self._device = number, device
        self._workers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for process, _ in self._workers]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()

    def run(
        self, jobs: Sequence[Job], on_epoch: Callable[[Job, int], None], on_end: Callable[[Job, str | None], None]
    ) -> None:
        """Train all jobs.

        ``on_epoch`` is called with the number of epochs that a job has done, ``on_end`` with ``None`` or why it has
        diverged, which its folder then says too. Any other error ends them all: raises a :class:`.UserError`.
        """
        left = list(reversed(jobs))
        while len(self._workers) < min(self._number, len(jobs)):
            self._workers.append(_spawned(self._device))
        running: dict[Connection, Job] = {}
        for _, connection in self._workers:
            _give(connection, left, running)
        while running:
            ready = wait(list(running))
            for connection in [connection for connection in running if connection in ready]:
                job = running[connection]
                try:
                    what, value = connection.recv()
                except (EOFError, OSError):
                    raise _ended(job) from None
                if what == "epoch":
                    on_epoch(job, value)
                    continue
                if what == "error":
                    raise UserError(f"{job.name}: {value}")
                on_end(job, value)
                del running[connection]
                _give(connection, left, running)


def most_workers(device: Device) -> int:
    """One for each core that this process may use; one on a GPU."""
    return 1 if _on_gpu(device) else len(os.sched_getaffinity(0))


def _on_gpu(device: Device) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _give(connection: Connection, left: list[Job], running: dict[Connection, Job]) -> None:
    if left:
        job = running[connection] = left.pop()
        try:
            connection.send(job)
        except OSError:
            raise _ended(job) from None


def _ended(job: Job) -> UserError:
    return UserError(
        f"{job.name}: its process has ended, perhaps killed for want of memory: go on with --resume and fewer --jobs. "
        "A script that compares must do so under: if __name__ == '__main__'"
    )


def _spawned(device: Device) -> tuple[Any, Connection]:
    context = get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_work, args=(other, device), daemon=True)
    process.start()
    other.close()
    return process, own


def _work(connection: Connection, device: Device) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # the parent has read the same data and warned
    if not _on_gpu(device):
        torch.set_num_threads(1)
    while True:
        job = connection.recv()
        try:
            connection.send(("end", _trained(job, device, lambda done: connection.send(("epoch", done)))))
        except UserError as error:
            connection.send(("error", str(error)))
        except Exception:
            connection.send(("error", traceback.format_exc()))


def _trained(job: Job, device: Device, on_epoch: Callable[[int], None]) -> str | None:
    """Train a job; the reason if it diverges."""
    before = 0
    for recipe, folder in job.stages:

        def tell(history: Sequence[EpochLog], before: int = before) -> None:
            on_epoch(before + len(history))

        options = RunOptions(output=folder, resume=True, device=device)
        try:
            test = job.test and folder == job.folder
            train_run(recipe, options, Console(quiet=True), test=test, on_epoch=tell)
        except TrainingError as error:
            write_text(job.folder / FAILED, f"{error}\n")
            return str(error)
        before += recipe.epochs
    return None


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
