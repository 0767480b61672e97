"""Sums over the processes of a training run. Each process has its own rows of the batch."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    return dist.get_world_size() if _together() else 1


def process_rank() -> int:
    return dist.get_rank() if _together() else 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def total(value: Tensor) -> Tensor:
    """The sum of every process's value, without a graph."""
    value = value.detach()
    if process_count() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def total_count(count: int, device: torch.device) -> int:
    """The sum of every process's count, exchanged as a tensor on ``device``."""
    return count if process_count() == 1 else int(total(torch.tensor(count, device=device)))


def totals(values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The sum of every process's values, in one exchange and without a graph; ``None`` values are left out.

    All processes must pass the same names and shapes, and ``None`` in the same places.
    """
    known = {name: value.detach() for name, value in values.items() if value is not None}
    if process_count() == 1 or not known:
        return known
    whole = total(torch.cat([value.flatten() for value in known.values()]))
    parts = whole.split([value.numel() for value in known.values()])
    return {name: part.view_as(value).to(value.dtype) for (name, value), part in zip(known.items(), parts, strict=True)}
