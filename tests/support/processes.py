"""Processes that need not import everything anew, and jobs in several of them with gloo."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = ("dadl_ext", "lightning_fabric", "PIL.Image", "matplotlib.pyplot", "cyclopts", "yaml")
"""What takes longest to import: one process does so, and is then copied."""


def copies() -> ForkServerContext:
    """Starts processes in which the packages PRELOADED are imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in PRELOADED if find_spec(name.partition(".")[0])])
    return context


def start(rank: int, folder: str, job: Callable[[int], dict[str, Any]], processes: int) -> None:
    # A collective that only one process enters fails after the timeout instead of waiting for ever.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    torch.save(job(rank), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_processes(processes: int, job: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``job(rank)`` returns in each process."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, job, processes)
        mp.start_processes(start, arguments, nprocs=processes, start_method=copies().get_start_method())
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
