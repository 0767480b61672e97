"""Lightning Fabric for a run: its devices, precision and processes."""

import atexit
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..errors import SettingsError
from ..options import Device

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(device: Device, precision: Any = "32", loggers: Any = ()) -> "Fabric":
    """A Fabric for one process, or under ``torchrun`` for all its processes on all nodes.

    Raises a :class:`.SettingsError` if there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device cuda: PyTorch finds no GPU that it can use; choose --device cpu")
    # Imported here because it takes seconds, and reading runs does not need it.
    from lightning_fabric import Fabric

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
        atexit.register(_leave_process_group)  # otherwise gloo's threads may abort the exiting process
    return fabric


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
