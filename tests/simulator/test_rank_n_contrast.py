"""Rank-N-Contrast's CUDA kernels, run on the host, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import (
    EXAMPLES,
    FLAVOUR,
    FLOATING,
    arithmetic,
    in_every_order,
    name,
    schedules,
    to_numpy,
    to_torch,
)
from torch import Tensor

from dadl_ext import reference
from dadl_ext._shared.checks import LABEL_DISTANCES, SIMILARITIES

LABELS = ["distinct", "float32", "integer", "tied", "zeros", "half", "bfloat16", "equal", "vector", "distinct vector"]


def make_labels(kind: str, n: int) -> Tensor:
    return {
        "distinct": lambda: torch.rand(n, dtype=torch.float64) * 50,
        "float32": lambda: torch.rand(n) * 50,
        "integer": lambda: torch.randint(-3, 3 * n + 1, (n,)),
        "tied": lambda: torch.randint(0, max(1, n // 4), (n,)).float(),
        "zeros": lambda: torch.tensor([0.0, -0.0, 1.0])[torch.randint(0, 3, (n,))],
        "half": lambda: torch.randint(0, 2 * n + 1, (n,)).half() / 8,
        "bfloat16": lambda: (torch.randperm(n) * 1.37).bfloat16(),
        "equal": lambda: torch.ones(n),
        "vector": lambda: torch.randint(0, 4, (n, 3)),
        "distinct vector": lambda: torch.rand(n, 2).sub(0.5),
    }[kind]()


def run(
    simulator,
    x: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    similarity: str = "negative_l2",
    label_distance: str = "l1",
    share: float = 1.0,
    row_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    options = simulator.RankNContrastSettings(
        temperature=temperature,
        similarity=SIMILARITIES.index(similarity),
        label_distance=LABEL_DISTANCES.index(label_distance),
    )
    batch = to_numpy(x), name(x.dtype), to_numpy(labels), name(labels.dtype), options, share
    weights = None if row_weight is None else row_weight.numpy()
    result = in_every_order(simulator.rank_n_contrast, *batch, weights, True)
    without_gradient = simulator.rank_n_contrast(*batch, None, False, schedules()[0])
    assert without_gradient.keys() == {"loss", "rows"}
    for key, value in without_gradient.items():
        assert value.tobytes() == result[key].tobytes()
    return {key: to_torch(value, x.dtype) for key, value in result.items()}


def close(actual: Tensor, expected: Tensor, least: float = 0.0) -> None:
    """``least`` is the size of the terms that may cancel, as the derivatives of cosines do in one dimension."""
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[actual.dtype]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * max(scale, least) + 1e-7)


@settings(max_examples=EXAMPLES // 2)
@given(
    n=st.integers(1, 40) | st.sampled_from([63, 64, 65, 97]),
    d=st.sampled_from([0, 1, 2, 5, 31, 32, 33, 40]),
    dtype=st.sampled_from(FLOATING),
    integer=st.booleans(),
    kind=st.sampled_from(LABELS),
    temperature=st.sampled_from([0.05, 0.7, 2.0, 100.0]),
    similarity=st.sampled_from(SIMILARITIES),
    label_distance=st.sampled_from(LABEL_DISTANCES),
    seed=st.integers(0, 2**31),
)
def test_rank_n_contrast(simulator, n, d, dtype, integer, kind, temperature, similarity, label_distance, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randint(-3, 4, (n, d)).to(dtype) if integer else torch.randn(n, d).to(dtype)
    x[~x.any(dim=1)] = 1  # without a direction, cosines have gradients of 1e12
    labels, row_weight = make_labels(kind, n), torch.randn(n, dtype=arithmetic(dtype))
    options = {"temperature": temperature, "similarity": similarity, "label_distance": label_distance}
    leaf = x.double().requires_grad_()
    rows = reference.rank_n_contrast(leaf, labels, reduction="none", **options)
    (expected,) = torch.autograd.grad(rows.mean(), leaf, retain_graph=True)
    result = run(simulator, x, labels, share=1 / n, **options)
    close(result["rows"], rows.detach())
    close(result["loss"][0], rows.detach().mean())
    close(result["gradient"].to(arithmetic(dtype)), expected, 1 / temperature / n)

    (expected,) = torch.autograd.grad(rows, leaf, row_weight.double())
    result = run(simulator, x, labels, row_weight=row_weight, **options)
    assert result["gradient"].dtype == dtype
    close(result["gradient"], expected, 1 / temperature)


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for small batches")
@pytest.mark.parametrize("kind", ["float32", "integer", "vector"])
def test_a_large_batch(simulator, kind: str) -> None:
    """More anchors than warps, and more others than lanes."""
    leaf, labels = torch.randn(260, 4, dtype=torch.float64, requires_grad=True), make_labels(kind, 260)
    loss = reference.rank_n_contrast(leaf, labels)
    loss.backward()
    result = run(simulator, leaf, labels, share=1 / 260)
    close(result["loss"][0], loss.detach())
    close(result["gradient"], leaf.grad)


@pytest.mark.parametrize(
    ("dtype", "spread"), [(torch.float32, 1e-3), (torch.float32, 1e-6), (torch.float64, 1e-3), (torch.float64, 1e-8)]
)
def test_features_that_nearly_coincide(simulator, dtype: torch.dtype, spread: float) -> None:
    x = torch.arange(20)[:, None] % 2 + torch.ones(7, dtype=dtype) + spread * torch.randn(20, 7, dtype=dtype)
    labels = torch.rand(20)
    leaf = x.detach().double().requires_grad_()
    loss = reference.rank_n_contrast(leaf, labels, temperature=0.1)
    loss.backward()
    result = run(simulator, x, labels, temperature=0.1, share=1 / 20)
    close(result["loss"][0], loss.detach())
    close(result["gradient"], leaf.grad)


def test_large_distances(simulator) -> None:
    leaf = (1e5 * torch.randn(20, 5, dtype=torch.float64)).requires_grad_()
    labels = torch.rand(20)
    loss = reference.rank_n_contrast(leaf, labels, temperature=0.05)
    loss.backward()
    result = run(simulator, leaf, labels, temperature=0.05, share=1 / 20)
    close(result["loss"][0], loss.detach())
    close(result["gradient"], leaf.grad)


def test_equal_features_and_a_single_row(simulator) -> None:
    for n, d in ((5, 3), (1, 4)):
        result = run(simulator, torch.ones(n, d), torch.arange(n))
        assert result["loss"].isfinite().all()
        assert not result["gradient"].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("vectors", [False, True])
def test_a_value_that_is_not_finite_shows(simulator, value: float, similarity: str, vectors: bool) -> None:
    for n in (1, 20):
        clean, labels = torch.randn(n, 3), torch.rand(n, 2) if vectors else torch.rand(n)
        x, target = clean.clone(), labels.clone()
        x[n // 2, 1] = target.view(-1)[-1] = value
        for features, of_features in ((x, labels), (clean, target)):
            result = run(simulator, features, of_features, similarity=similarity)
            assert all(part.isnan().all() for part in result.values())
