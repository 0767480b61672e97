"""Jobs in several gloo processes."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
        mp.spawn(start, args=(folder, job, processes), nprocs=processes)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
