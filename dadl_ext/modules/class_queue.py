"""A queue of keys for each class."""

import torch
from torch import Tensor, nn

from .._shared.checks import check_integer, class_labels
from .._shared.dtypes import FLOATING
from .._shared.operation import readable
from ..distributed import gather_batch

__all__ = ["ClassQueue"]


class ClassQueue(nn.Module):
    """The last D keys of each of C classes, as in Self-Tuning (Wang et al., ICML 2021).

    Starts with random unit vectors. Each class is a ring buffer, into which its keys go in batch order. If a batch has
    more than D samples of a class, the last D stay.

    Args:
        num_classes: C.
        dim: d, the length of the keys.
        slots: D.
        dtype: the dtype of the stored keys: float32, float64, float16 or bfloat16.
        gather_distributed: enqueue the keys of all processes in rank order, so that all processes hold the same queue.
            The caller must make them equal at the start (by a common seed, or a broadcast such as DDP's of buffers).

    Everything is in ``state_dict``: ``keys`` ``[C, D, d]``, ``slot_count`` ``[C]`` (slots written so far, at most D)
    and ``pointer`` ``[C]`` (the next slot). Deterministic. On CUDA nothing synchronises with the host, except
    ``gather_distributed``, which exchanges batch sizes.
    """

    keys: Tensor
    slot_count: Tensor
    pointer: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        slots: int = 32,
        *,
        dtype: torch.dtype = torch.float32,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1 or slots < 1:
            raise ValueError(
                f"num_classes, dim and slots must be positive, got num_classes={num_classes}, dim={dim}, slots={slots}"
            )
        if dtype not in FLOATING:
            raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
        self.gather_distributed = gather_distributed
        self.register_buffer("keys", torch.empty(num_classes, slots, dim, dtype=dtype))
        self.register_buffer("slot_count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.int64))
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Replace all keys by random unit vectors, and mark all slots as not written."""
        random = torch.randn(
            self.keys.shape, generator=generator, device=self.keys.device if generator is None else generator.device
        )
        self.keys.copy_(nn.functional.normalize(random, dim=-1))
        self.slot_count.zero_()
        self.pointer.zero_()

    @torch.no_grad()
    def enqueue(self, key: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Store keys ``[B, d]`` under their classes ``target`` ``[B]``, except where ``mask`` ``[B]`` is False.

        Raises:
            ValueError: shapes do not match or, on the CPU, a target is not a class. (On CUDA such a row is left out,
                because checking would synchronise the device.)
        """
        classes, slots, dim = self.keys.shape
        target = class_labels(target)
        if key.dim() != 2 or key.shape[1] != dim or target.shape != key.shape[:1]:
            raise ValueError(
                f"expected key [B, {dim}] and target [B], got {tuple(key.shape)} and {tuple(target.shape)}"
            )
        check_integer("target", target, key.shape[:1], key.device)
        kept = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
        if kept.shape != target.shape or kept.dtype != torch.bool:
            raise ValueError(f"mask must be bool {tuple(target.shape)}, got {kept.dtype} {tuple(kept.shape)}")
        inside = (target >= 0) & (target < classes)
        if readable(target) and bool((kept & ~inside).any()):
            outside = target[kept & ~inside][0].item()
            raise ValueError(f"target must hold classes 0..{classes - 1}, got {outside}; leave rows out with mask")
        kept = kept & inside
        if self.gather_distributed:
            key, target, kept = gather_batch(key, target, kept)
        if target.shape[0] == 0:
            return

        # Rows that are left out form an extra class after all others.
        group = torch.where(kept, target, classes)
        by_class = torch.sort(group, stable=True).indices
        sorted_group = group[by_class]
        count = torch.zeros(classes + 1, dtype=torch.int64, device=group.device).scatter_add_(
            0, group, torch.ones_like(group)
        )
        begin = count.cumsum(0) - count
        place = torch.arange(group.shape[0], device=group.device) - begin[sorted_group]
        # Only the last D keys of a class are written. All other rows point to a slot after the end of the queue.
        last = (place >= count[sorted_group] - slots) & (sorted_group < classes)
        pointer = torch.cat([self.pointer, self.pointer.new_zeros(1)])
        slot = torch.where(last, sorted_group * slots + (pointer[sorted_group] + place) % slots, classes * slots)
        writer = torch.full((classes * slots + 1,), -1, dtype=torch.int64, device=group.device)
        writer.scatter_(0, slot, by_class)
        # The host does not know how many rows are written, so every row writes. Rows that point after the end write to
        # the first slot what it holds, or what it gets from another row.
        slot = torch.where(slot < classes * slots, slot, 0)
        row = writer[slot]
        stored = self.keys.view(classes * slots, dim)
        fresh = key.to(stored.dtype)[row.clamp_min(0)]
        stored.index_copy_(0, slot, torch.where(row[:, None] >= 0, fresh, stored[slot]))
        self.pointer.copy_((self.pointer + count[:-1]) % slots)
        self.slot_count.copy_((self.slot_count + count[:-1]).clamp_max(slots))

    def extra_repr(self) -> str:
        classes, slots, dim = self.keys.shape
        return (
            f"num_classes={classes}, dim={dim}, slots={slots}, dtype={self.keys.dtype}, "
            f"gather_distributed={self.gather_distributed}"
        )
