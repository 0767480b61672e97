"""Gathers a batch across processes."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_batch(features: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes in rank order. Only this process's own feature rows carry a gradient.

    Batch sizes may differ between processes. They are exchanged first, which reads one small tensor on the host.
    Without an initialised process group the batch is returned unchanged.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return (features, *others)
    rank, world = dist.get_rank(), dist.get_world_size()

    def from_all(value: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(value) for _ in range(world)]
        dist.all_gather(gathered, value)
        return gathered

    counts = torch.cat(from_all(torch.tensor([features.shape[0]], device=features.device))).tolist()

    def gather(value: Tensor) -> list[Tensor]:
        padded = value.new_zeros((max(counts), *value.shape[1:]))
        padded[: len(value)] = value.detach()
        return [rows[:count] for rows, count in zip(from_all(padded), counts, strict=True)]

    if max(counts) == 0:
        return (features, *others)
    gathered_features = gather(features)
    gathered_features[rank] = features
    return (torch.cat(gathered_features), *(torch.cat(gather(other)) for other in others))
