"""Checkpoints, and errors that say what is wrong with them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..errors import UserError
from ..files import replace_file


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or belongs to something else."""


def save_checkpoint(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write the state of modules, optimisers and plain values to ``path``; called by all processes."""

    def write(temporary: Path) -> None:
        fabric.save(temporary, state)

    if fabric.is_global_zero:
        replace_file(path, write)
    else:
        write(path)  # all processes take part, but only one writes


def load_checkpoint(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Restore ``state`` in place from ``path``, which may hold more. Only tensors and plain values are unpickled.

    Raises a :class:`CheckpointError` if the file is missing or damaged, is not a checkpoint, or is of another method.
    """
    with _readable(path):
        fabric.load(path, state, weights_only=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of ``path``, on the CPU; errors as for :func:`load_checkpoint`."""
    with _readable(path):
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing: put it back, or start over in another folder")
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of this training ({reason}): put it back, or start over in another "
            "folder"
        ) from None
