"""Many small training runs, one on each core."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch
from lightning_fabric import Fabric

from ..output import JobProgress

MOST_WORKERS = 8  # each holds PyTorch and the images in memory

RunT = TypeVar("RunT")
RunT_contra = TypeVar("RunT_contra", contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Experiment(Protocol[RunT_contra, ResultT_co]):
    """Data, and how to train one run on them."""

    def train(self, run: RunT_contra) -> ResultT_co: ...


class TrainingPool(Generic[RunT, ResultT]):
    """Processes that each hold an experiment and train runs of it.

    Such small networks gain little from a second thread, so every core trains its own run. With one thread each, the
    numbers also do not depend on the number of cores. On a GPU there is one process.

    Args:
        fabric: the parent's; the processes use its kind of device.
        make_experiment: called in each process with its own Fabric; it is pickled, and so are runs and results.
    """

    def __init__(self, fabric: Fabric, make_experiment: Callable[[Fabric], Experiment[RunT, ResultT]]) -> None:
        device = fabric.device.type
        workers = min(torch.get_num_threads(), MOST_WORKERS) if device == "cpu" else 1
        # Spawned, not forked: a forked process cannot use the threads and devices of its parent.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (device, make_experiment))

    def __enter__(self) -> "TrainingPool[RunT, ResultT]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for process in active_children():
                process.terminate()  # they would train to their end first
        self._pool.shutdown(cancel_futures=True)

    def train(self, runs: Sequence[RunT], progress: JobProgress) -> dict[RunT, ResultT]:
        """The result of every run, in the order of ``runs``; ``progress`` advances with each."""
        results: dict[RunT, ResultT] = {}
        waiting = {self._pool.submit(_train, run): run for run in runs}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            progress.advance(str(waiting[done]))
        return {run: results[run] for run in runs}


_experiment: Experiment[Any, Any]


def _start(device: str, make_experiment: Callable[[Fabric], Experiment[Any, Any]]) -> None:
    global _experiment
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    torch.set_num_threads(1)
    _experiment = make_experiment(Fabric(accelerator=device, devices=1))


def _train(run: Any) -> Any:
    return _experiment.train(run)
