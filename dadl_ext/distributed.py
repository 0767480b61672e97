"""Losses over the rows of all processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from ._shared.reversal import reverse_gradient

__all__ = ["gather_batch"]


def gather_batch(*tensors: Tensor, averaged_gradients: bool = False) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes in rank order. Only this process's own rows carry a gradient.

    A loss of what is returned is the same in every process, with a gradient for the process's own rows; over all
    processes these are the gradient of one process with the whole batch. For InfoNCE over two views, for example:

    >>> query, key = gather_batch(query, key, averaged_gradients=True)
    >>> lse = dadl_ext.functional.similarity_logsumexp(query, key, scale=1 / temperature)
    >>> loss = (lse - (query * key).sum(dim=1) / temperature).mean()

    Batch sizes may differ between processes, and be 0. They are exchanged first, which reads one small tensor on the
    host. Without an initialised process group the tensors are returned unchanged.

    Args:
        tensors: ``[n, ...]``, of one n; in every process with the same dtypes and trailing dimensions.
        averaged_gradients: multiply the gradient by the number of processes, because ``DistributedDataParallel`` and
            ``fully_shard`` average what the processes have; the gradient is then that of one process.

    The exchange is a collective: every process must call it. The backward exchanges nothing.
    """
    if process_count() == 1:
        return tensors
    rank, world = dist.get_rank(), dist.get_world_size()

    def from_all(value: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(value) for _ in range(world)]
        dist.all_gather(gathered, value)
        return gathered

    counts = torch.cat(from_all(torch.tensor([tensors[0].shape[0]], device=tensors[0].device))).tolist()
    if max(counts) == 0:
        return tensors

    def gather(value: Tensor) -> Tensor:
        padded = value.new_zeros((max(counts), *value.shape[1:]))
        padded[: value.shape[0]] = value.detach()
        rows = [rows[:count] for rows, count in zip(from_all(padded), counts, strict=True)]
        rows[rank] = of_all_processes(value) if averaged_gradients and value.requires_grad else value
        return torch.cat(rows)

    return tuple(gather(value) for value in tensors)


def of_all_processes(value: Tensor) -> Tensor:
    """The value, whose gradient is multiplied by the number of processes."""
    return reverse_gradient(value, -float(process_count()))


def process_count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_of_all_processes(value: Tensor) -> Tensor:
    """The sum over the processes, with the gradient of the own value."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total - value.detach())
