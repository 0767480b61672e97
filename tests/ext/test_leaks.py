"""Memory that a call does not give back, counted by the C library: no tool of Python sees it."""

import ctypes
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dadl_ext import functional


class Mallinfo(ctypes.Structure):
    """As in ``malloc.h``."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


LIBRARY = ctypes.CDLL(None)
CALLS = 500


def allocated() -> int:
    """Bytes that are in use."""
    gc.collect()
    LIBRARY.mallinfo2.restype = Mallinfo
    info = LIBRARY.mallinfo2()
    return int(info.uordblks + info.hblkhd)


TARGET = torch.arange(6) % 3
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "rank": functional.rank,
    "ranksim_loss": lambda x: functional.ranksim_loss(x, torch.arange(6.0)),
    "ranksim_loss, rows": lambda x: functional.ranksim_loss(x, torch.arange(6.0), reduction="none"),
    "rank_n_contrast": lambda x: functional.rank_n_contrast(x, torch.arange(6.0)),
    "rank_n_contrast, rows": lambda x: functional.rank_n_contrast(x, torch.arange(6.0), reduction="none"),
    "similarity_logsumexp": lambda x: functional.similarity_logsumexp(x, x, exclude_self=True),
    "pseudo_group_contrast": lambda x: functional.pseudo_group_contrast(x, x.detach(), torch.ones(3, 2, 8), TARGET),
    "supervised_contrast": lambda x: functional.supervised_contrast(x, TARGET),
    "disagreement": lambda x: functional.disagreement(x.view(3, 2, 8)),
    "dropout_linear": lambda x: functional.dropout_linear(x, torch.ones(2, 8), None, p=0.5, samples=2, seed=1),
    "dropout_disagreement": lambda x: functional.dropout_disagreement(
        x, torch.ones(2, 8), None, p=0.5, samples=2, seed=1
    ),
}


@pytest.mark.skipif(not hasattr(LIBRARY, "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_no_call_keeps_memory(loss: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(6, 8, requires_grad=True)

    def step() -> None:
        x.grad = None
        loss(x).sum().backward()

    kept = []
    for _ in range(3):  # what is kept once, as caches are, is no leak
        before = allocated()
        for _ in range(CALLS):
            step()
        kept.append((allocated() - before) / CALLS)
    assert min(kept) < 1, f"{kept} bytes per call"
