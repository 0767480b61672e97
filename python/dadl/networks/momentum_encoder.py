"""A network that slowly follows another one."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

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

    Networks with ``weight_norm`` or tensors kept from an earlier forward are copied as well. A moving average needs
    float32 or float64: train networks in half precision under autocast instead.

    Raises:
        ValueError: ``momentum`` or ``buffers`` is out of range, or ``update`` gets a network with other parameters.
        TypeError: parameters in half precision, or lazy ones that no forward has made yet.

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
        query = _unwrapped(query)
        _check_parameters(query, momentum)
        # Tensors with a graph, such as a computed weight, cannot be copied deeply; their values can.
        held = [value for module in query.modules() for value in tree_leaves(vars(module)) if isinstance(value, Tensor)]
        values = {id(value): value.detach().clone() for value in held if not value.is_leaf}
        self.network = copy.deepcopy(query, values).requires_grad_(False)
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
        _check_parameters(self.network, self.momentum)
        keys: list[Tensor] = list(self.network.parameters())
        queries: list[Tensor] = list(query.parameters())
        if [key.shape for key in keys] != [value.shape for value in queries]:
            raise ValueError("the query encoder has other parameters than the one that the key encoder was made from")
        if keys:
            queries = [value.to(key.device, key.dtype) for key, value in zip(keys, queries, strict=True)]
            torch._foreach_lerp_(keys, queries, 1 - self.momentum)
        if self.buffer_policy == "copied":
            for own, other in zip(self.network.buffers(), query.buffers(), strict=True):
                own.copy_(other)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffer_policy!r}"


def _check_parameters(network: nn.Module, momentum: float) -> None:
    for name, parameter in network.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise TypeError(
                f"{name} is lazy and has no values yet; pass one batch through the encoder before copying it"
            )
        if parameter.dtype in (torch.float16, torch.bfloat16) and 0 < momentum < 1:
            raise TypeError(
                f"{name} is {parameter.dtype}, in which the small steps of a moving average round to nothing; keep the "
                "encoders in float32 and compute under torch.autocast"
            )


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module
