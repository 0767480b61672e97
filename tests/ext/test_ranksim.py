"""functional.ranksim_loss against NumPy in float64, the reference and PyTorch's machinery."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.devices import CAPABILITIES
from support.gradients import gradients
from torch import Tensor

from dadl_ext import RankSimLoss, functional, reference
from dadl_ext._shared.label_similarity import draw_priority
from dadl_ext.reference.ranksim import select_subset


def numpy_ranks(values: np.ndarray) -> np.ndarray:
    n = values.shape[1]
    ascending = np.argsort(values, axis=1, kind="stable")
    ranks = np.empty_like(ascending)
    np.put_along_axis(ranks, ascending, np.broadcast_to(np.arange(n, 0, -1), values.shape), axis=1)
    return ranks


def numpy_ranksim(x: np.ndarray, label_similarity: np.ndarray, strength: float, weight: float):
    """Row losses and the gradient of their sum: literally the published formulas, in float64."""
    m = len(x)
    norm = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    unit = x / norm
    similarity = unit @ unit.T
    rank = numpy_ranks(similarity)
    difference = (rank - numpy_ranks(label_similarity)) / m  # of integers, so that equal differences stay equal
    rows = weight * (difference**2).mean(axis=1)
    g = weight * 2 / m * difference
    gradient = -(rank - numpy_ranks(similarity + strength * g)) / m / (strength + 1e-8)
    unit_gradient = (gradient + gradient.T) @ unit
    return rows, (unit_gradient - unit * (unit_gradient * unit).sum(axis=1, keepdims=True)) / norm


def chosen_rows(labels: Tensor, seed: int) -> Tensor:
    labels = labels.long() if not labels.is_floating_point() else labels
    generator = torch.Generator(labels.device).manual_seed(seed)
    return select_subset(labels, draw_priority(labels, generator))


def make_labels(kind: str, n: int) -> Tensor:
    return {
        "distinct": lambda: torch.rand(n, dtype=torch.float64) * 50,
        "float32": lambda: torch.rand(n) * 50,
        "integer": lambda: torch.randint(0, 3 * n + 1, (n,)),
        "tied": lambda: torch.randint(0, max(1, n // 4), (n,)).float(),
        "half": lambda: torch.randint(0, n + 1, (n,)).half() / 8,
        "vector": lambda: torch.randint(0, 6, (n, 3)),
    }[kind]()


def label_similarity_of(labels: Tensor) -> np.ndarray:
    if labels.dim() == 2:
        return -(labels[:, None] - labels[None]).abs().sum(2).numpy()
    return -(labels[:, None] - labels[None]).abs().double().numpy()


def run(function: Callable[..., Tensor], x: Tensor, labels: Tensor, upstream: float = 1.0, **options):
    leaf = x.clone().requires_grad_()
    generator = torch.Generator(x.device).manual_seed(5)
    loss = function(leaf, labels.to(x.device), generator=generator, **options)
    (loss * upstream).sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("kind", ["distinct", "float32", "integer", "tied", "half", "vector"])
@pytest.mark.parametrize("weight", [3e-4, 0.1, 1.0, 100.0])
def test_published_formulas(device: str, kind: str, weight: float) -> None:
    for n in [*range(1, 20), 31, 32, 33, 64, 65, 100, 129, 300]:
        labels = make_labels(kind, n)
        chosen = chosen_rows(labels.to(device), 5).cpu().numpy()
        for dtype in (torch.float64, torch.float32):
            x = torch.randn(n, 17, dtype=dtype, device=device)
            similarity = label_similarity_of(labels[chosen])
            rows, gradient = numpy_ranksim(x.cpu().double().numpy()[chosen], similarity, 2.0, weight)
            for upstream in (1e-4, 1.0, 65536.0):
                loss, ours = run(functional.ranksim_loss, x, labels, upstream, weight=weight)
                expected = np.zeros(x.shape)
                expected[chosen] = gradient * upstream
                assert_close_to_float64(loss, ours, rows.sum(), expected, may_flip(dtype, n))


def may_flip(dtype: torch.dtype, n: int) -> bool:
    """Larger batches of float32 features may be compared in float32, where nearly equal similarities may swap."""
    return dtype != torch.float64 and n >= 64


def assert_close_to_float64(loss: Tensor, gradient: Tensor, expected_loss, expected_gradient, flips: bool) -> None:
    actual, expected = gradient.detach().cpu().double().numpy(), np.asarray(expected_gradient, dtype=np.float64)
    if flips:
        np.testing.assert_allclose(loss.item(), expected_loss, rtol=1e-4)
        norms = np.linalg.norm(actual) * np.linalg.norm(expected)
        assert (actual * expected).sum() >= 0.9995 * norms
        np.testing.assert_allclose(np.linalg.norm(actual), np.linalg.norm(expected), rtol=1e-2)
        return
    single = gradient.dtype != torch.float64
    np.testing.assert_allclose(loss.item(), expected_loss, rtol=1e-6 if single else 1e-12, atol=1e-300)
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=(1e-5 if single else 1e-10) * scale + 1e-300)


def tensors(n: int, d: int, seed: int, integer: bool, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if integer:
        return torch.randint(-3, 4, (n, d), generator=generator).to(dtype)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


@given(
    n=st.integers(0, 90),
    d=st.integers(2, 9),
    kind=st.sampled_from(["distinct", "float32", "integer", "tied", "half", "vector"]),
    integer=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    weight=st.floats(0, 100),
    strength=st.floats(0.01, 20),
    reduction=st.sampled_from(["sum", "mean", "none"]),
    seed=st.integers(0, 2**31),
)
def test_equals_reference(n, d, kind, integer, dtype, weight, strength, reduction, seed) -> None:
    torch.manual_seed(seed)
    x, labels = tensors(n, d, seed, integer, dtype), make_labels(kind, n)
    options = {"weight": weight, "interp_strength": strength, "reduction": reduction}
    loss, gradient = run(functional.ranksim_loss, x, labels, **options)
    expected_loss, expected_gradient = run(reference.ranksim_loss, x, labels, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    if may_flip(dtype, n) and not integer:
        assert_close_to_float64(loss.sum(), gradient, expected_loss.sum().item(), expected_gradient.double(), True)
        return
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-12)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    scale = expected_gradient.abs().max().item() if n else 0.0
    cancelled = 1e-14 if dtype == torch.float64 else 1e-7  # rounding of what the projection takes away
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance * scale + cancelled)


def test_integer_features_keep_every_tie() -> None:
    """Equal cosines from different norms: 3 / sqrt(9 k) = 2 / sqrt(4 k), in float32 too."""
    x = torch.randint(-2, 3, (120, 5), dtype=torch.float64)
    labels = torch.randperm(120)
    inner = (x @ x.T).long()
    squared = (x * x).sum(1).long().clamp(min=1)
    # Exact order of sign(d) d² / q by integers.
    key = inner.sign() * inner * inner * (np.lcm.reduce(squared.numpy()) // squared)[None, :]
    ranks, label_ranks = numpy_ranks(key.numpy()), numpy_ranks(-(labels[:, None] - labels).abs().numpy())
    expected = ((ranks - label_ranks) ** 2).sum() / 120**3
    for dtype in (torch.float64, torch.float32, torch.float16):
        loss, _ = run(functional.ranksim_loss, x.to(dtype), labels)
        assert loss.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_every_shape(dtype: torch.dtype) -> None:
    """Float32 products come in blocks of rows and columns, and in groups of columns that are added up."""
    for n, d in ((64, 3), (64, 64), (65, 31), (97, 33), (130, 129), (200, 700), (300, 16), (600, 40)):
        for integer in (False, True):
            x, labels = tensors(n, d, n + d, integer, dtype), torch.randperm(n).float()
            loss, gradient = run(functional.ranksim_loss, x, labels)
            expected_loss, expected = run(functional.ranksim_loss, x.double(), labels)
            if dtype == torch.float32:
                assert_close_to_float64(loss, gradient, expected_loss.item(), expected, flips=not integer)
            else:
                assert torch.cosine_similarity(gradient.double().flatten(), expected.flatten(), dim=0) > 0.9995


def test_tiny_and_huge_features_keep_their_ranks() -> None:
    x, labels = torch.randn(100, 20), torch.randperm(100).float()
    expected, _ = run(functional.ranksim_loss, x, labels)
    for scale in (1e-16, 1e17):
        loss, gradient = run(functional.ranksim_loss, x * scale, labels)
        if scale > 1:  # smaller rows than 1e-12 follow F.normalize
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
        assert gradient.isfinite().all()


def test_linear_in_the_upstream_scalar(device: str) -> None:
    x, labels = torch.randn(40, 8, device=device), torch.rand(40)
    _, one = run(functional.ranksim_loss, x, labels)
    for upstream in (2.0**-14, 0.25, 65536.0):
        _, scaled = run(functional.ranksim_loss, x, labels, upstream)
        assert torch.equal(scaled, one * upstream)  # powers of two: exactly


def test_rows_may_have_their_own_upstream(device: str) -> None:
    x, labels = torch.randn(30, 8, dtype=torch.float64, device=device), torch.rand(30)
    upstream = torch.randn(30, dtype=torch.float64, device=device)
    gradients = []
    for function in (functional.ranksim_loss, reference.ranksim_loss):
        leaf = x.clone().requires_grad_()
        function(leaf, labels.to(device), reduction="none").backward(upstream)
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_reductions_agree(device: str) -> None:
    x, labels = torch.randn(50, 8, device=device), torch.randint(0, 20, (50,))
    rows, rows_gradient = run(functional.ranksim_loss, x, labels, reduction="none")
    total, gradient = run(functional.ranksim_loss, x, labels)
    mean, mean_gradient = run(functional.ranksim_loss, x, labels, reduction="mean")
    m = len(labels.unique())
    assert rows.shape == (m,)
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(mean, total / m)
    torch.testing.assert_close(rows_gradient, gradient)
    torch.testing.assert_close(mean_gradient, gradient / m)


def test_subset_is_uniform_and_rows_left_out_have_no_gradient(device: str) -> None:
    x, labels = torch.randn(6, 4, device=device), torch.tensor([0, 1, 1, 1, 2, 2])
    generator = torch.Generator(device).manual_seed(0)
    counts = torch.zeros(6)
    draws = 600
    for _ in range(draws):
        leaf = x.clone().requires_grad_()
        functional.ranksim_loss(leaf, labels.to(device), weight=30.0, generator=generator).backward()
        chosen = functional_subset(labels.to(device), generator)
        counts[chosen.cpu()] += 1
    expected = torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert (counts / draws - expected).abs().max() < 0.08  # more than four standard deviations
    _, gradient = run(functional.ranksim_loss, x, labels, weight=30.0)
    left_out = torch.ones(6, dtype=torch.bool)
    left_out[chosen_rows(labels.to(device), 5).cpu()] = False
    assert left_out.sum() == 3
    assert gradient.cpu()[left_out].eq(0).all()


def functional_subset(labels: Tensor, generator: torch.Generator) -> Tensor:
    from dadl_ext.ops.ranksim import ranksim_select

    index, _, count = ranksim_select(labels, draw_priority(labels, generator))
    return index[: int(count)]


@given(st.integers(0, 80), st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**31))
def test_select_equals_reference(n: int, k: int, values: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(0, values, (n, k)).squeeze(1) if k > 1 else torch.randint(0, values, (n,))
    for typed in (labels, labels.double(), labels.half(), labels.float() - values / 2):
        priority = torch.rand(n, dtype=torch.float64).mul(4).floor()  # ties: the first row wins
        index, order, count = torch.ops.dadl.ranksim_select(typed, priority)
        expected = select_subset(typed, priority)
        assert count.item() == len(expected)
        assert torch.equal(index[: len(expected)], expected)
        if k == 1:
            assert torch.equal(order[: len(expected)], torch.argsort(typed[expected], stable=True))


def test_one_generator_state_gives_one_result(device: str) -> None:
    x, labels = torch.randn(30, 8, device=device), torch.randint(0, 7, (30,))
    first, second = (run(functional.ranksim_loss, x, labels) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@given(st.integers(1, 63), st.integers(1, 40), st.integers(0, 2**31))
def test_same_bits_for_every_thread_count(n: int, d: int, seed: int) -> None:
    """Where ranks are decided in float64: BLAS may round larger float32 products differently."""
    x, labels = tensors(n, d, seed, False, torch.float32), tensors(n, 1, seed + 1, False, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(run(functional.ranksim_loss, x, labels))
    torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("similarity", ["negative_l1", "negative_l2", "cosine", "callable", "matrix"])
def test_label_similarities(device: str, similarity: str) -> None:
    labels = torch.randn(24, 3, dtype=torch.float64)
    difference = labels[:, None] - labels[None]
    unit = labels / labels.norm(dim=1, keepdim=True)
    matrix = {
        "negative_l1": -difference.abs().sum(2),
        "negative_l2": -difference.square().sum(2).sqrt(),
        "cosine": unit @ unit.T,
    }.get(similarity, -difference.abs().amax(2))
    option = {
        "callable": lambda y: -(y[:, None] - y[None]).abs().amax(2),
        "matrix": matrix.to(device),
    }.get(similarity, similarity)
    x = torch.randn(24, 6, dtype=torch.float64, device=device)
    rows, gradient = numpy_ranksim(x.cpu().numpy(), matrix.numpy(), 2.0, 1.0)
    loss, ours = run(functional.ranksim_loss, x, labels, label_similarity=option)
    np.testing.assert_allclose(loss.item(), rows.sum(), rtol=1e-12)
    np.testing.assert_allclose(ours.cpu(), gradient, rtol=0, atol=1e-12)


def test_scalar_labels_have_one_distance() -> None:
    """Squares of these float16 differences overflow, and would tie."""
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0.0, 500.0, 900.0, 2000.0, 4000.0, 9000.0]).half()
    for function in (functional.ranksim_loss, reference.ranksim_loss):
        assert torch.equal(function(x, labels), function(x, labels, label_similarity="negative_l2"))


def test_similarities_keep_their_order_under_large_perturbations() -> None:
    """Equal differences of ranks move similarities equally far: what then decides is in their last digits."""
    x, labels = 1 + 1e-4 * torch.randn(64, 8, dtype=torch.float64), torch.randperm(64)
    rows, expected = numpy_ranksim(x.numpy(), label_similarity_of(labels), 2.0, 3e4)
    loss, gradient = run(functional.ranksim_loss, x, labels, weight=3e4)
    assert_close_to_float64(loss, gradient, rows.sum(), expected, flips=False)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e8), (torch.float16, 1e4), (torch.bfloat16, 2.0**17)])
@pytest.mark.parametrize("n", [5, 40])
def test_rounded_distances_tie(n: int, dtype: torch.dtype, far: float) -> None:
    """The far label is equally far from 1, 2 and 3: the larger column ranks first, as in the definition."""
    x = torch.randn(n, 4, dtype=torch.float64)
    labels = torch.cat([torch.tensor([2.0, far, 1.0, 3.0, -7.0]), 4.0 + torch.randperm(n - 5)]).to(dtype)
    similarity = -(labels[:, None] - labels[None]).abs().float()
    rows, _ = numpy_ranksim(x.numpy(), similarity.numpy(), 2.0, 1.0)
    assert functional.ranksim_loss(x, labels).item() == pytest.approx(rows.sum(), rel=1e-12)
    assert functional.ranksim_loss(x, labels) != functional.ranksim_loss(x, labels.double())


def test_integer_distances_are_exact() -> None:
    x = torch.randn(4, 4, dtype=torch.float64)
    labels = torch.tensor([-(2**63), 2**63 - 1, 0, 2**53 + 1])
    exact = [[-abs(int(a) - int(b)) for b in labels] for a in labels]
    order = {value: float(i) for i, value in enumerate(sorted({v for row in exact for v in row}))}
    similarity = np.array([[order[v] for v in row] for row in exact])
    rows, _ = numpy_ranksim(x.numpy(), similarity, 2.0, 1.0)
    assert functional.ranksim_loss(x, labels).item() == pytest.approx(rows.sum(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_one_distinct_label_gives_zero(device: str, dtype: torch.dtype, reduction: str) -> None:
    loss, gradient = run(functional.ranksim_loss, torch.randn(7, 4, device=device).to(dtype), torch.ones(7),
                         reduction=reduction)  # fmt: skip
    assert loss.item() == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_empty_batch(device: str, reduction: str) -> None:
    for labels in (torch.zeros(0), torch.zeros(0, 3)):
        loss, gradient = run(functional.ranksim_loss, torch.zeros(0, 4, device=device), labels, reduction=reduction)
        assert loss.sum().item() == 0
        assert gradient.shape == (0, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("label", ["distinct", "tied"])
def test_bad_features_show(device: str, dtype: torch.dtype, value: float, label: str) -> None:
    """NaN and infinity anywhere, also in rows that the subset leaves out."""
    labels = torch.arange(12) if label == "distinct" else torch.arange(12) // 6
    for row in range(12):
        x = torch.randn(12, 5, device=device).to(dtype)
        x[row, 2] = value
        loss, gradient = run(functional.ranksim_loss, x, labels)
        assert loss.isnan()
        assert gradient.isnan().any()
        rows, _ = run(functional.ranksim_loss, x, labels, reduction="none")
        assert rows.isnan().all()


def test_bad_labels_show(device: str) -> None:
    x = torch.randn(6, 5, device=device)
    for value in (float("nan"), float("inf")):
        for labels in (torch.rand(6), torch.rand(6, 2)):
            labels.view(-1)[3] = value
            loss, gradient = run(functional.ranksim_loss, x, labels)
            assert loss.isnan()
            assert gradient.isnan().any()


def test_zero_rows_follow_normalize() -> None:
    x = torch.randn(9, 5, dtype=torch.float64)
    x[4] = 0
    labels = torch.rand(9)
    rows, gradient = numpy_ranksim(x.numpy(), label_similarity_of(labels), 2.0, 1.0)
    loss, ours = run(functional.ranksim_loss, x, labels)
    assert loss.item() == pytest.approx(rows.sum(), rel=1e-12)
    np.testing.assert_allclose(ours, gradient, rtol=1e-10, atol=1e-10 * np.abs(gradient).max())


@pytest.mark.parametrize("n", [9, 100])
def test_rows_shorter_than_the_least_norm_follow_normalize(device: str, dtype: torch.dtype, n: int) -> None:
    """Their norm is a constant, so that nothing is projected out of their gradient."""
    if dtype == torch.float16:
        pytest.skip("float16 holds no such rows")
    x, labels = torch.randn(n, 6, device=device).to(dtype), torch.arange(n, device=device).float()
    x[2], x[4] = x[2] * 1e-13, 0
    weight = 0.1  # float64 decides the ranks
    _, gradient = run(functional.ranksim_loss, x, labels, weight=weight)
    _, expected = run(reference.ranksim_loss, x.double(), labels, weight=weight)
    largest = expected.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 2e-2)
    torch.testing.assert_close(gradient / largest, expected / largest, rtol=0, atol=tolerance, check_dtype=False)


def test_a_small_perturbation_is_resolved_exactly(device: str) -> None:
    """Below the documented limit of float32 products, on features that are so alike that these would swap ranks."""
    for n in (64, 150):
        x = 1 + 0.01 * torch.randn(n, 50, device=device)
        labels = torch.randperm(n, device=device).float()
        limit = 1e-3 * 3 * n / 2  # of λγ
        for share in (0.99, 0.2):
            options = {"interp_strength": 1.0, "weight": share * limit}
            _, gradient = run(functional.ranksim_loss, x, labels, **options)
            _, expected = run(functional.ranksim_loss, x.double(), labels, **options)
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-4 * scale)
        _, gradient = run(functional.ranksim_loss, x, labels, interp_strength=1.0, weight=limit)
        _, expected = run(functional.ranksim_loss, x.double(), labels, interp_strength=1.0, weight=limit)
        assert torch.cosine_similarity(gradient.double().flatten(), expected.flatten(), dim=0) > 0.9995


def test_scale_of_a_row_does_not_matter(device: str) -> None:
    x, labels = torch.randn(20, 8, device=device), torch.rand(20)
    scale = 2.0 ** torch.randint(-30, 30, (20, 1), device=device)
    loss, gradient = run(functional.ranksim_loss, x, labels)
    scaled_loss, scaled_gradient = run(functional.ranksim_loss, x * scale, labels)
    assert torch.equal(loss, scaled_loss)
    torch.testing.assert_close(scaled_gradient * scale, gradient, rtol=1e-5, atol=1e-8)


def test_trailing_dimensions_are_flattened_and_strides_do_not_matter(device: str) -> None:
    x, labels = torch.randn(12, 3, 4, device=device), torch.rand(12)
    flat = run(functional.ranksim_loss, x.flatten(1), labels)
    deep = run(functional.ranksim_loss, x, labels)
    assert deep[1].shape == x.shape
    assert torch.equal(flat[0], deep[0])
    assert torch.equal(flat[1], deep[1].flatten(1))
    strided = run(functional.ranksim_loss, x.flatten(1).T.contiguous().T, labels.repeat(2)[::2].sort().values)
    again = run(functional.ranksim_loss, x.flatten(1), labels.repeat(2)[::2].sort().values)
    assert torch.equal(strided[1], again[1])


def test_gradient_only_where_wanted(device: str) -> None:
    x, labels = torch.randn(8, 4, device=device), torch.rand(8, device=device, requires_grad=True)
    loss = functional.ranksim_loss(x, labels)
    assert not loss.requires_grad
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert not functional.ranksim_loss(leaf, labels).requires_grad
    functional.ranksim_loss(leaf, labels).backward()
    assert labels.grad is None


def test_second_derivative_raises(device: str) -> None:
    x, labels = torch.randn(8, 4, device=device, requires_grad=True), torch.rand(8, device=device)
    for reduction in ("sum", "none"):
        loss = functional.ranksim_loss(x, labels, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.square().sum().backward()


def test_forward_mode_raises() -> None:
    x, labels = torch.randn(8, 4), torch.rand(8)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda v: functional.ranksim_loss(v, labels), (x,), (x,))


def test_autocast(device: str) -> None:
    x, labels = torch.randn(16, 8, device=device), torch.rand(16)
    plain = run(functional.ranksim_loss, x.bfloat16(), labels)
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = run(functional.ranksim_loss, x.bfloat16(), labels)
    assert torch.equal(plain[0], cast[0])
    assert cast[1].dtype == torch.bfloat16
    torch.testing.assert_close(plain[1], cast[1])


def test_amp_loss_scale_does_not_change_the_gradient(device: str) -> None:
    """A float16 encoder under a loss scale of 65536: unscaled, the gradient is the unscaled one."""
    x, labels = torch.randn(32, 16, device=device).half(), torch.rand(32)
    _, plain = run(functional.ranksim_loss, x.float(), labels)
    _, scaled = run(functional.ranksim_loss, x, labels, 1024.0)
    torch.testing.assert_close(scaled.float() / 1024.0, plain, rtol=2e-3, atol=2e-3 * plain.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distinct", "tied", "vector"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_compile(device: str, kind: str, reduction: str) -> None:
    torch._dynamo.reset()
    x, labels = torch.randn(20, 6, device=device), make_labels(kind, 20).to(device)

    def loss(v: Tensor) -> Tensor:
        return functional.ranksim_loss(v * 1.5, labels, weight=3.0, reduction=reduction)

    compiled = torch.compile(loss, fullgraph=True)
    for _ in range(2):
        eager, graph = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.manual_seed(3)
        expected = loss(eager)
        expected.backward()
        torch.manual_seed(3)
        actual = compiled(graph)
        actual.backward()
        if kind == "tied":  # compiled code draws other random numbers
            assert actual.isfinite()
            continue
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(graph.grad, eager.grad)


def test_the_bare_operator_does_not_lose_gradients_silently(device: str) -> None:
    x, labels = torch.randn(6, 4, device=device, requires_grad=True), torch.rand(6, device=device)
    priority = torch.rand(6, dtype=torch.float64, device=device)
    loss, _ = torch.ops.dadl.ranksim_loss(x, labels, priority, None, 2.0, 1.0, False, True)
    with pytest.raises(RuntimeError, match=r"use dadl_ext\.functional\.ranksim_loss"):
        loss.backward()


def test_memory_is_bounded_by_four_matrices() -> None:
    m, d = 512, 512
    x, labels = torch.randn(m, d, requires_grad=True), torch.rand(m)
    functional.ranksim_loss(x, labels).backward()
    x.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        functional.ranksim_loss(x, labels).backward()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():  # allocations and frees in time order
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    gradients = 2 * 4 * m * d  # the saved one and the one in x.grad
    assert 0 < peak <= 4 * 4 * m * m + gradients


@pytest.mark.parametrize(
    ("features", "labels", "options", "error", "message"),
    [
        ([1.0], torch.zeros(1), {}, TypeError, "torch.Tensor"),
        (torch.zeros(3, 2), [1.0], {}, TypeError, "torch.Tensor"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3), {}, TypeError, r"int64 of shape \(3, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.zeros(3, 2), torch.zeros(4), {}, ValueError, r"\(3, 2\) and labels \(4,\)"),
        (torch.zeros(3), torch.zeros(3), {}, ValueError, r"features \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 1, 1), {}, ValueError, r"labels \(3, 1, 1\)"),
        (torch.zeros(3, 2), torch.zeros(3, 0), {}, ValueError, "k >= 1"),
        (torch.zeros(3, 2), torch.zeros(3, device="meta"), {}, ValueError, "meta"),
        (torch.zeros(3, 2), torch.zeros(3), {"interp_strength": 0.0}, ValueError, "interp_strength"),
        (torch.zeros(3, 2), torch.zeros(3), {"weight": -1.0}, ValueError, "weight"),
        (torch.zeros(3, 2), torch.zeros(3), {"weight": float("nan")}, ValueError, "weight"),
        (torch.zeros(3, 2), torch.zeros(3), {"reduction": "max"}, ValueError, "reduction"),
        (torch.zeros(3, 2), torch.zeros(3), {"label_similarity": "l3"}, ValueError, "label_similarity"),
        (torch.zeros(3, 2), torch.zeros(3), {"label_similarity": 3}, TypeError, "label_similarity"),
        (torch.zeros(3, 2), torch.zeros(3), {"label_similarity": torch.zeros(2, 3)}, ValueError, "square"),
        (torch.zeros(3, 2), torch.arange(3), {"label_similarity": torch.zeros(2, 2)}, ValueError, r"\(2, 2\)"),
        (torch.zeros(3, 2), torch.arange(3), {"label_similarity": lambda y: 1}, TypeError, "callable"),
    ],
)
def test_errors(features, labels, options, error, message) -> None:
    for function in (functional.ranksim_loss, reference.ranksim_loss):
        with pytest.raises(error, match=message):
            function(features, labels, **options)


def test_module(device: str) -> None:
    x, labels = torch.randn(10, 4, device=device), torch.rand(10, device=device)
    module = RankSimLoss(interp_strength=1.5, weight=3.0, reduction="mean")
    expected = functional.ranksim_loss(x, labels, interp_strength=1.5, weight=3.0, reduction="mean")
    assert torch.equal(module(x, labels), expected)
    assert "interp_strength=1.5" in repr(module)
    assert not module.state_dict()
    with pytest.raises(ValueError, match="reduction"):
        RankSimLoss(reduction="max")


SAVE_RANKSIM = """
import sys
import numpy as np, torch
from dadl_ext import functional

torch.set_num_threads(1)
results = []
for m in (33, 64, 100, 300):
    for kind in ("normal", "integer", "close", "double"):
        rng = np.random.default_rng(m)  # torch's own numbers depend on the instruction set
        x, y = rng.standard_normal((m, 24)), torch.from_numpy(rng.standard_normal(m).astype("float32"))
        x = np.round(3 * x) if kind == "integer" else 1 + 1e-4 * x if kind == "close" else x
        x = torch.from_numpy(x if kind == "double" else x.astype("float32"))
        similarity = torch.from_numpy(rng.standard_normal((m, m))) if m == 100 else None
        for weight in (3e-4, 1.0, 100.0):
            x.requires_grad_().grad = None
            loss = functional.ranksim_loss(x, y, weight=weight, label_similarity=similarity)
            loss.backward()
            results += [loss.detach(), x.grad]
torch.save(results, sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    results = []
    for capability in CAPABILITIES:
        file = tmp_path / capability
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        subprocess.run([sys.executable, "-c", SAVE_RANKSIM, str(file)], env=environment, check=True)
        results.append(torch.load(file))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("n", [5, 20, 63, 64, 100])
@pytest.mark.parametrize("exponent", [-38, -25, -14, 0, 19, 30, 37, 38])
def test_features_of_any_size(device: str, dtype: torch.dtype, n: int, exponent: int) -> None:
    """Neither products nor norms leave the range of a dtype before the result does."""
    values = torch.randn(n, 7, dtype=torch.float64).clamp(-3, 3)
    features, labels = (values * 10.0**exponent).to(device, dtype), torch.randperm(n).to(device)
    if not features.isfinite().all():
        pytest.skip("this dtype does not hold them")
    value, (gradient,) = gradients(lambda x: functional.ranksim_loss(x, labels, weight=3.0), features)
    expected, (slope,) = gradients(lambda x: reference.ranksim_loss(x, labels, weight=3.0), features)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    assert torch.equal(gradient.isfinite(), slope.isfinite())  # half precision overflows where the gradient is large
    if slope.isfinite().all() and slope.abs().max() > torch.finfo(dtype).tiny:
        largest = slope.abs().max().double()
        torch.testing.assert_close(gradient.double() / largest, slope.double() / largest, rtol=0, atol=0.03)


@pytest.mark.parametrize("n", [5, 63, 64, 100])
def test_single_numbers_are_all_ties(device: str, dtype: torch.dtype, n: int) -> None:
    """Their cosines are 1 and -1."""
    features = torch.randn(n, 1, device=device).to(dtype)
    labels = torch.randperm(n, device=device)
    value, (gradient,) = gradients(lambda x: functional.ranksim_loss(x, labels, weight=3.0), features)
    signs, _ = gradients(lambda x: reference.ranksim_loss(x, labels, weight=3.0), features.sign())
    torch.testing.assert_close(value, signs)
    assert gradient.abs().max() < 1e-3 / features[features != 0].abs().min()


@pytest.mark.parametrize("n", [5, 64])
def test_rows_too_long_for_cosines_count_as_infinite(device: str, n: int) -> None:
    features = torch.randn(n, 3, dtype=torch.float64, device=device)
    features[2] *= 1e100
    value, (gradient,) = gradients(lambda x: functional.ranksim_loss(x, torch.arange(n, device=device)), features)
    assert value.isnan()
    assert gradient.isnan().all()


@pytest.mark.parametrize("k", [None, 2])
def test_repeated_nan_labels_are_one_label(device: str, k: int | None) -> None:
    labels = torch.tensor([torch.nan, 1.0, torch.nan, 2.0, 1.0], device=device)
    labels = labels if k is None else torch.stack([labels] * k, dim=1)
    for module in (functional, reference):
        rows = module.ranksim_loss(torch.randn(5, 3, device=device), labels, reduction="none")
        assert rows.shape == (3,)
        assert rows.isnan().all()
