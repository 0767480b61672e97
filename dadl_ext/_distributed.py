"""Gathering a batch across processes."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_batch(features: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Concatenate every process's rows in rank order; only this process's own feature rows carry a gradient.

    Batch sizes may differ between processes: sizes are exchanged first, which reads one small tensor on the host.
    Without an initialised process group the batch is returned as it is.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return (features, *others)
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = torch.empty(world, dtype=torch.int64, device=features.device)
    dist.all_gather_into_tensor(sizes, torch.tensor([features.shape[0]], device=features.device))
    counts = sizes.tolist()

    def gather(value: Tensor) -> list[Tensor]:
        padded = value.new_zeros((max(counts), *value.shape[1:]))
        padded[: len(value)] = value.detach()
        gathered = value.new_empty((world * max(counts), *value.shape[1:]))
        dist.all_gather_into_tensor(gathered, padded)
        return [rows[:count] for rows, count in zip(gathered.chunk(world), counts, strict=True)]

    if max(counts) == 0:
        return (features, *others)
    gathered_features = gather(features)
    gathered_features[rank] = features
    return (torch.cat(gathered_features), *(torch.cat(gather(other)) for other in others))
