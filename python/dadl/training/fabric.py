"""Devices, precision and processes of a training, which are Lightning Fabric's."""

import atexit
import os
from typing import Any

import torch.distributed as dist
from lightning_fabric import Fabric

from ..options import Device


def make_fabric(device: Device, precision: Any = "32", loggers: Any = ()) -> Fabric:
    """One process, or under ``torchrun`` all of its processes, on every node."""
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    strategy = "ddp" if world > 1 else "auto"
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=precision,
        loggers=list(loggers),
    )
    fabric.launch()
    if world > 1:
        atexit.register(_leave_process_group)  # else gloo's threads may abort the process as it exits
    return fabric


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
