"""A network that slowly follows another one."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Buffers = Literal["own", "copied"]


class MomentumEncoder(nn.Module):
    r"""The key encoder of momentum contrast: a copy of a query encoder that follows it as a moving average.

    :meth:`update`, called once per optimiser step, moves every parameter in place, ``k ← m k + (1 − m) q``. The
    parameters take no gradient and should not be given to an optimiser; ``forward`` builds no graph. Everything is in
    ``state_dict``.

    >>> key_encoder = MomentumEncoder(encoder)
    >>> loss = contrast(encoder(one_view), key_encoder(other_view), target)
    >>> ...
    >>> optimizer.step()
    >>> key_encoder.update(encoder)

    Args:
        query: the encoder to follow; ``DistributedDataParallel`` is unwrapped, here and in ``update``.
        momentum: m, from 0 (a copy of the query encoder) to 1 (the copy never moves).
        buffers: how batch-normalisation statistics and other buffers are kept. ``"own"``: the key encoder, which is in
            training mode when its parent is, keeps its own statistics. ``"copied"``: ``update`` copies those of the
            query encoder.

    With several processes the parameters stay equal if the query encoder's do, and so do ``"copied"`` buffers. Each
    process has its ``"own"`` buffers, unless the module is inside ``DistributedDataParallel``, which broadcasts those
    of rank 0.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.
    """

    def __init__(self, query: nn.Module, momentum: float = 0.999, *, buffers: Buffers = "own") -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        if buffers not in ("own", "copied"):
            raise ValueError(f'buffers must be "own" or "copied", got {buffers!r}')
        self.network = copy.deepcopy(_unwrapped(query)).requires_grad_(False)
        self.momentum = momentum
        self.buffer_policy = buffers

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.network(*args, **kwargs)
        return output

    @torch.no_grad()
    def update(self, query: nn.Module) -> None:
        """Follow ``query``, which must have parameters of the same shapes as the constructor's."""
        query = _unwrapped(query)
        keys: list[Tensor] = list(self.network.parameters())
        queries: list[Tensor] = list(query.parameters())
        if [key.shape for key in keys] != [value.shape for value in queries]:
            raise ValueError("the query encoder has other parameters than the one that the key encoder was made from")
        if keys:
            torch._foreach_lerp_(keys, queries, 1 - self.momentum)
        if self.buffer_policy == "copied":
            for own, other in zip(self.network.buffers(), query.buffers(), strict=True):
                own.copy_(other)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffer_policy!r}"


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module
