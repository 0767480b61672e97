"""The ranks' CUDA kernels, run on the host, against the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import (
    EXAMPLES,
    FLOATING,
    PATHS,
    arithmetic,
    around_powers_of_two,
    in_every_order,
    limits,
    name,
    to_numpy,
    to_torch,
)
from torch import Tensor

from dadl_ext import reference
from dadl_ext.reference.ranking import integer_ranks


def make_values(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64)
    if kind == "ties":
        values = torch.randint(-3, 4, shape).double() * 0.5
        values = torch.where(torch.rand(shape) < 0.5, values, -values)  # both zeros
    elif kind == "special":
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1.0, 5e-324, 1e-45, 6e-8])
        values = special[torch.randint(0, len(special), shape)].double()
    return values.to(dtype)


@settings(max_examples=EXAMPLES)
@given(
    n=around_powers_of_two,
    rows=st.integers(0, 6),
    dtype=st.sampled_from(FLOATING),
    kind=st.sampled_from(["normal", "ties", "special"]),
    path=st.sampled_from([*PATHS]),
    seed=st.integers(0, 2**31),
)
def test_rank(simulator, n, rows, dtype, kind, path, seed) -> None:
    torch.manual_seed(seed)
    x = make_values(kind, (rows, n), dtype)
    ranks = to_torch(in_every_order(simulator.rank, to_numpy(x), name(dtype), limits(simulator, path)), dtype)
    assert ranks.dtype == arithmetic(dtype)
    assert torch.equal(ranks, integer_ranks(x).to(ranks.dtype))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2048, 2049, 4096, 4097, 6144, 6145, 8192, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_of_long_rows(simulator, n: int, dtype: torch.dtype) -> None:
    for kind in ("normal", "ties"):
        x = make_values(kind, (3, n), dtype)
        ranks = in_every_order(simulator.rank, to_numpy(x), name(dtype), limits(simulator, "warp"))
        assert np.array_equal(ranks, integer_ranks(x).numpy())


@settings(max_examples=EXAMPLES)
@given(
    n=around_powers_of_two,
    dtype=st.sampled_from(FLOATING),
    kind=st.sampled_from(["normal", "ties", "special"]),
    path=st.sampled_from([*PATHS]),
    strength=st.floats(0.01, 50),
    seed=st.integers(0, 2**31),
)
def test_rank_backward(simulator, n, dtype, kind, path, strength, seed) -> None:
    torch.manual_seed(seed)
    x = make_values(kind, (3, n), dtype).requires_grad_()
    grad = make_values("ties", (3, n), arithmetic(dtype))
    ranks = reference.rank(x, strength)
    ranks.backward(grad)
    inputs = (to_numpy(tensor) for tensor in (grad, x, ranks))
    result = in_every_order(simulator.rank_backward, *inputs, name(dtype), strength, limits(simulator, path))
    assert torch.equal(to_torch(result, dtype), x.grad)
