"""RankSim's CUDA kernels, run on the host, against the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import (
    EXAMPLES,
    FLAVOUR,
    FLOATING,
    PATHS,
    arithmetic,
    around_powers_of_two,
    in_every_order,
    limits,
    name,
    schedules,
    to_numpy,
    to_torch,
)
from torch import Tensor

from dadl_ext import reference
from dadl_ext._shared.label_similarity import draw_priority, label_similarity_matrix
from dadl_ext.reference.ranksim import select_subset

# ---- the subset ----


def make_labels(kind: str, n: int) -> Tensor:
    return {
        "distinct": lambda: torch.rand(n, dtype=torch.float64) * 50,
        "float32": lambda: torch.rand(n) * 50,
        "permutation": lambda: torch.randperm(n) - n // 2,
        "integer": lambda: torch.randint(-3, 3 * n + 1, (n,)),
        "tied": lambda: torch.randint(0, max(1, n // 4), (n,)).float(),
        "zeros": lambda: torch.tensor([0.0, -0.0, 1.0])[torch.randint(0, 3, (n,))],
        "half": lambda: torch.randint(0, 2 * n + 1, (n,)).half() / 8,
        "bfloat16": lambda: (torch.randperm(n) * 1.37).bfloat16(),
        "equal": lambda: torch.ones(n),
        "vector": lambda: torch.randint(0, 4, (n, 3)),
        "distinct vector": lambda: torch.rand(n, 2).sub(0.5),
    }[kind]()


LABELS = ["distinct", "float32", "permutation", "integer", "tied", "zeros", "half", "bfloat16", "equal", "vector"]
LABELS += ["distinct vector"]


def select(simulator, labels: Tensor, priority: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrix = labels if labels.dim() == 2 else labels[:, None]
    return in_every_order(simulator.select, to_numpy(matrix), name(labels.dtype), priority.numpy())


@settings(max_examples=EXAMPLES)
@given(
    n=around_powers_of_two,
    kind=st.sampled_from(LABELS),
    tied_priority=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_select(simulator, n, kind, tied_priority, seed) -> None:
    torch.manual_seed(seed)
    labels = make_labels(kind, n)
    priority = torch.randint(0, 3, (n,)).double() if tied_priority else torch.rand(n, dtype=torch.float64)
    index, order, count = select(simulator, labels, priority)
    expected = select_subset(labels, priority)
    m = len(expected)
    assert count.item() == m
    assert index.tolist() == expected.tolist() + [0] * (n - m)
    vectors = labels if labels.dim() == 2 else labels[:, None]
    keys = vectors[expected].double().T.flip(0).numpy() + 0.0  # lexsort's first key is the last row
    assert order.tolist() == np.lexsort(keys).tolist() + [0] * (n - m)


# ---- loss and gradient ----


def run(
    simulator,
    x: Tensor,
    labels: Tensor,
    *,
    matrix=None,
    strength=2.0,
    weight=1.0,
    mean=False,
    row_weight=None,
    path="warp",
):
    """The subset's rows of the batch, and loss, rows and gradient as tensors."""
    priority = draw_priority(labels, torch.Generator().manual_seed(7))
    index, order, count = select(simulator, labels, priority)
    target = labels if matrix is None else matrix
    batch = simulator.Batch(
        features=to_numpy(x),
        dtype=name(x.dtype),
        index=index,
        order=order,
        count=count,
        labels=to_numpy(target),
        label_dtype=name(target.dtype),
        labels_are_matrix=matrix is not None,
    )
    options = simulator.RankSimSettings(interp_strength=strength, weight=weight, mean=mean)
    weights = None if row_weight is None else row_weight.numpy()
    result = in_every_order(simulator.ranksim, batch, options, weights, True, limits(simulator, path))
    without_gradient = simulator.ranksim(batch, options, None, False, limits(simulator, path), schedules()[0])
    assert without_gradient.keys() == {"loss", "rows"}
    for key, value in without_gradient.items():
        assert value.tobytes() == result[key].tobytes()
    return index[: count.item()], {key: to_torch(value, x.dtype) for key, value in result.items()}


def narrow(dtype: torch.dtype, n: int, strength: float = 2.0, weight: float = 1.0) -> bool:
    """Whether inner products are float32."""
    return dtype != torch.float64 and n >= 64 and 2 * strength * weight >= 3e-3 * n


def close_but_for_swaps(gradient: Tensor, expected: Tensor) -> None:
    """In float32 nearly equal similarities may swap their ranks."""
    norms = gradient.double().norm().item(), expected.double().norm().item()
    assert (gradient.double() * expected.double()).sum().item() >= 0.9995 * norms[0] * norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2, abs=1e-30)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[actual.dtype]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale + 1e-7)


@settings(max_examples=EXAMPLES // 3)
@given(
    n=st.integers(1, 70) | st.sampled_from([127, 128, 129]),
    d=st.integers(2, 40),
    dtype=st.sampled_from(FLOATING),
    integer=st.booleans(),
    kind=st.sampled_from(LABELS),
    path=st.sampled_from([*PATHS]),
    strength=st.floats(0.01, 20),
    weight=st.sampled_from([0.0, 3e-4, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_ranksim(simulator, n, d, dtype, integer, kind, path, strength, weight, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randint(-3, 4, (n, d)).to(dtype) if integer else torch.randn(n, d).to(dtype)
    labels, row_weight = make_labels(kind, n), torch.randn(n, dtype=arithmetic(dtype))
    matrix = None
    chosen = select_subset(labels, draw_priority(labels, torch.Generator().manual_seed(7)))
    if labels.dim() == 2 or seed % 3 == 0:
        matrix = label_similarity_matrix(labels[chosen], "negative_l1")
        matrix = matrix.to(torch.float64 if seed % 2 else torch.float32)
    options = {"matrix": matrix, "strength": strength, "weight": weight, "path": path}

    leaf = x.clone().requires_grad_()
    expected_rows = reference.ranksim_loss(
        leaf,
        labels,
        interp_strength=strength,
        weight=weight,
        reduction="none",
        label_similarity=matrix,
        generator=torch.Generator().manual_seed(7),
    )
    index, result = run(simulator, x, labels, **options)
    assert index.tolist() == chosen.tolist()
    m = len(chosen)
    swaps = narrow(dtype, n, strength, weight) and not integer
    assert not result["rows"][m:].any()
    torch.testing.assert_close(result["loss"][0], expected_rows.detach().sum(), rtol=1e-4 if swaps else 1e-5, atol=0)
    (expected,) = torch.autograd.grad(expected_rows.sum(), leaf, retain_graph=True)
    compare = close_but_for_swaps if swaps else close
    compare(result["gradient"].to(dtype), expected)
    if not swaps:
        torch.testing.assert_close(result["rows"][:m], expected_rows.detach(), rtol=1e-6, atol=0)

    _, result = run(simulator, x, labels, row_weight=row_weight, **options)
    assert result["gradient"].dtype == dtype
    (expected,) = torch.autograd.grad(expected_rows, leaf, row_weight[:m])
    compare(result["gradient"], expected)


@pytest.mark.slow
@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for short rows")
@pytest.mark.parametrize("n", [200, 400, 700, 1100])
def test_ranksim_of_large_batches(simulator, n: int) -> None:
    leaf = torch.randint(-99, 100, (n, 4)).float().requires_grad_()  # whose products are exact
    labels = torch.randint(0, 20 * n, (n,))
    loss = reference.ranksim_loss(leaf, labels, generator=torch.Generator().manual_seed(7))
    loss.backward()
    _, result = run(simulator, leaf, labels)
    torch.testing.assert_close(result["loss"][0], loss.detach(), rtol=1e-6, atol=0)
    close(result["gradient"], leaf.grad)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("path", [*PATHS])
def test_products_in_float32_have_no_limits_of_their_own(simulator, path: str, dtype: torch.dtype) -> None:
    """Rows of small integers of any size, whose products are exact, and float32 would overflow or underflow."""
    torch.manual_seed(5)
    n, least = 70, {torch.float16: -8, torch.bfloat16: -100}.get(dtype, -120)
    sizes = torch.randint(least, 1 - least if dtype != torch.float16 else 11, (n, 1))
    x = (torch.randint(-3, 4, (n, 9)) * 2.0**sizes).to(dtype)
    assert narrow(dtype, n) == (dtype != torch.float64)
    x[7] = 0
    leaf, labels = x.double().requires_grad_(), torch.randperm(n)
    rows = reference.ranksim_loss(leaf, labels, reduction="none", generator=torch.Generator().manual_seed(7))
    rows.sum().backward()
    _, result = run(simulator, x, labels, path=path)
    torch.testing.assert_close(result["rows"].double(), rows.detach(), rtol=1e-6, atol=0)
    for actual, expected in zip(result["gradient"], leaf.grad, strict=True):  # as different as their sizes
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * scale)


def test_a_small_perturbation_has_products_in_float64(simulator) -> None:
    """Features so alike that float32 products would swap ranks."""
    torch.manual_seed(5)
    x, labels, weight = 1 + 1e-3 * torch.randn(80, 3), torch.randperm(80), 1e-6
    assert not narrow(x.dtype, len(x), weight=weight)
    leaf = x.clone().requires_grad_()
    reference.ranksim_loss(leaf, labels, weight=weight, generator=torch.Generator().manual_seed(7)).backward()
    _, result = run(simulator, x, labels, weight=weight)
    close_but_for_swaps(result["gradient"], leaf.grad)


@pytest.mark.parametrize("n", [6, 70])
def test_ranksim_without_feature_dimensions(simulator, n: int) -> None:
    _, result = run(simulator, torch.empty(n, 0), torch.arange(n))
    assert result["loss"].isfinite().all()
    assert result["gradient"].shape == (n, 0)


@pytest.mark.parametrize("path", [*PATHS])
def test_ranksim_of_one_row_and_of_one_label(simulator, path: str) -> None:
    for n, labels in ((1, torch.ones(1)), (5, torch.ones(5))):
        index, result = run(simulator, torch.randn(n, 3), labels, path=path)
        assert len(index) == 1
        assert result["loss"].item() == 0
        assert not result["gradient"].any()


def test_ranksim_of_rows_shorter_than_the_bound(simulator) -> None:
    """F.normalize divides those by a constant, which has no gradient of its own."""
    torch.manual_seed(3)
    x = torch.randn(9, 4, dtype=torch.float64)
    x[2] *= 1e-14
    x[5] = 0
    leaf, labels = x.clone().requires_grad_(), torch.randperm(9)
    reference.ranksim_loss(leaf, labels).backward()
    _, result = run(simulator, x, labels)
    for actual, expected in zip(result["gradient"], leaf.grad, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12 * expected.abs().max().item())


# ---- NaN ----


@pytest.mark.parametrize("path", [*PATHS])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_shows(simulator, path: str, value: float) -> None:
    labels = torch.randint(0, 6, (20,))
    clean = torch.randn(20, 3)
    index, result = run(simulator, clean, labels, path=path)
    assert result["loss"].isfinite().all()
    left_out = next(row for row in range(20) if row not in index)
    for row in (left_out, index[0]):
        x = clean.clone()
        x[row, 1] = value
        index, result = run(simulator, x, labels, path=path)
        assert result["loss"].isnan().all()
        assert result["rows"][: len(index)].isnan().all()
        assert result["gradient"][index].isnan().all()
    target = torch.rand(20)
    target[4] = value
    index, result = run(simulator, clean, target, path=path)
    assert result["loss"].isnan().all()
    assert result["gradient"][index].isnan().all()


@pytest.mark.parametrize("path", [*PATHS])
def test_a_similarity_matrix_without_order_shows(simulator, path: str) -> None:
    x, labels = torch.randn(12, 3), torch.arange(12) // 2
    matrix = torch.randn(7, 7)
    assert run(simulator, x, labels, matrix=matrix, path=path)[1]["loss"].isfinite().all()
    matrix[6, 2] = torch.nan  # beyond the six labels
    assert run(simulator, x, labels, matrix=matrix, path=path)[1]["loss"].isfinite().all()
    matrix[5, 2] = torch.nan
    for wrong in (matrix, matrix[:5, :5].contiguous().nan_to_num()):
        index, result = run(simulator, x, labels, matrix=wrong, path=path)
        assert result["loss"].isnan().all()
        assert result["gradient"][index].isnan().all()
