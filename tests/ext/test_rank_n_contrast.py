"""functional.rank_n_contrast against a double loop in float64, the reference and PyTorch's machinery."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.devices import CAPABILITIES
from support.gradients import gradients
from torch import Tensor

from dadl_ext import RankNContrastLoss, functional, reference

KINDS = ["distinct", "float32", "integer", "tied", "equal", "half", "vector"]
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make_labels(kind: str, n: int) -> Tensor:
    return {
        "distinct": lambda: torch.rand(n, dtype=torch.float64) * 50,
        "float32": lambda: torch.rand(n) * 50,
        "integer": lambda: torch.randint(0, 3 * n + 1, (n,)),
        "tied": lambda: torch.randint(0, max(1, n // 4), (n,)).float(),
        "equal": lambda: torch.ones(n),
        "half": lambda: torch.randint(0, n + 1, (n,)).half() / 8,
        "vector": lambda: torch.randint(0, 6, (n, 3)),
    }[kind]()


def numpy_loop(
    x: np.ndarray, labels: np.ndarray, temperature: float, cosine: bool = False, squared: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [n] of the anchors and the gradient of their sum: literally the published formula, in float64.

    Distances as differences; the gradient from the softmax of every denominator.
    """
    n, labels = len(x), labels.reshape(len(x), labels[:1].size)
    rows, gradient = np.zeros(n), np.zeros_like(x)
    norm = np.linalg.norm(x, axis=1)
    for i in range(n):
        offsets = x[i] - x
        distance = np.sqrt((offsets**2).sum(axis=1))
        offset = labels[i] - labels
        delta = (offset**2).sum(axis=1) if squared else np.abs(offset).sum(axis=1)
        s = x @ x[i] / (norm * norm[i]) / temperature if cosine else -distance / temperature
        slope = np.zeros(n)
        for j in range(n):
            if j == i:
                continue
            farther = (delta >= delta[j]) & (np.arange(n) != i)
            largest = s[farther].max()
            weights = np.where(farther, np.exp(np.minimum(s - largest, 0)), 0.0)
            rows[i] += largest + math.log(weights.sum()) - s[j]
            slope += weights / weights.sum()
            slope[j] -= 1
        rows[i] /= max(n - 1, 1)
        slope /= temperature * max(n - 1, 1)
        for j in range(n):
            if j == i:
                continue
            if cosine:
                unit, other, product = x[i] / norm[i], x[j] / norm[j], x[i] @ x[j] / (norm[i] * norm[j])
                gradient[i] += slope[j] * (other - product * unit) / norm[i]
                gradient[j] += slope[j] * (unit - product * other) / norm[j]
            elif distance[j] > 0:
                step = -slope[j] * offsets[j] / distance[j]
                gradient[i] += step
                gradient[j] -= step
    return rows, gradient


def run(function: Callable[..., Tensor], x: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    loss = function(leaf, labels.to(x.device), **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


def assert_close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach().cpu().double(), expected, rtol=0, atol=tolerance * scale + 1e-300)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.05, 2.0, 100.0])
@pytest.mark.parametrize("similarity", ["negative_l2", "cosine"])
def test_published_formula(device: str, kind: str, temperature: float, similarity: str) -> None:
    for n in [*range(6), 7, 8, 9, 17, 32, 33, 65]:
        labels = make_labels(kind, n)
        features = torch.randn(n, 5, device=device)
        rows, gradient = numpy_loop(
            features.cpu().double().numpy(), labels.double().numpy(), temperature, similarity == "cosine"
        )
        for single in (False, True):
            x = features if single else features.double()
            options = {"temperature": temperature, "similarity": similarity}
            loss, ours = run(functional.rank_n_contrast, x, labels, reduction="none", **options)
            assert_close(loss, rows, 1e-6 if single else 1e-11)
            assert_close(ours, gradient, 1e-5 if single else 1e-10)
            for reduction, share in (("sum", 1), ("mean", max(n, 1))):
                loss, ours = run(functional.rank_n_contrast, x, labels, reduction=reduction, **options)
                assert_close(loss, rows.sum() / share, 1e-6 if single else 1e-11)
                assert_close(ours, gradient / share, 1e-5 if single else 1e-10)


@given(
    n=st.integers(0, 60),
    d=st.integers(0, 9),
    kind=st.sampled_from(KINDS),
    integer=st.booleans(),
    dtype=st.sampled_from(FLOATING),
    temperature=st.floats(0.05, 100),
    similarity=st.sampled_from(["negative_l2", "cosine"]),
    label_distance=st.sampled_from(["l1", "l2"]),
    reduction=st.sampled_from(["sum", "mean", "none"]),
    seed=st.integers(0, 2**31),
)
@example(6, 1, "distinct", False, torch.float32, 1.0, "cosine", "l1", "sum", 0)
def test_equals_reference(n, d, kind, integer, dtype, temperature, similarity, label_distance, reduction, seed) -> None:
    torch.manual_seed(seed)
    x = (torch.randint(-3, 4, (n, d)) if integer else torch.randn(n, d)).to(dtype)
    x[~x.any(dim=1)] = 1  # without a direction, cosines have gradients of 1e12
    options = {"temperature": temperature, "similarity": similarity, "label_distance": label_distance}
    labels = make_labels(kind, n)
    loss, (gradient,) = gradients(lambda v: functional.rank_n_contrast(v, labels, reduction=reduction, **options), x)
    expected, (slope,) = gradients(
        lambda v: reference.rank_n_contrast(v, labels, reduction=reduction, **options), x.double()
    )
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert_close(loss, expected, 1e-10 if dtype == torch.float64 else 1e-5)
    tolerance = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    scale = slope.abs().max().item() if slope.numel() else 0.0
    # Integer features cancel to gradients of 0; what remains is rounding of terms as large as 1 / temperature.
    term = 1 / temperature / max(n if reduction == "mean" else 1, 1)
    error = (gradient.double() - slope).abs()
    if d == 1 and similarity == "cosine" and dtype != torch.float64:
        # All cosines are 1 or -1: every gradient is 0, and its terms are divided by the norm too.
        error = (error - 4 * torch.finfo(torch.float32).eps * term / x.double().abs()).clamp(min=0)
    atol = tolerance * max(scale, 1e-3 * term) + 1e-7 * (dtype == torch.float16)
    torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=atol)


# ---- properties ----


@given(n=st.integers(2, 40), kind=st.sampled_from(["integer", "tied", "distinct"]), seed=st.integers(0, 2**31))
def test_only_the_order_of_label_distances_counts(n: int, kind: str, seed: int) -> None:
    """Shifts and scales keep it, and so does any map of the positions of labels whose gaps grow alike."""
    torch.manual_seed(seed)
    x, labels = torch.randn(n, 4, dtype=torch.float64), make_labels(kind, n)
    exact = labels.double().mul(2.0**20).round()  # distances without rounding
    first = run(functional.rank_n_contrast, x, exact)
    for changed in (exact * 8, -exact, exact + 2.0**24, (exact - exact.mean().round()) / 4):
        for one, another in zip(first, run(functional.rank_n_contrast, x, changed), strict=True):
            assert_close(another, one, 1e-12)


def test_a_monotone_map_that_keeps_the_order_of_distances() -> None:
    """Powers of two: every gap is larger than all gaps below it together, as it is of powers of three."""
    x = torch.randn(20, 4, dtype=torch.float64)
    exponents = torch.randperm(20).double()
    for one, another in zip(
        run(functional.rank_n_contrast, x, 2.5**exponents),
        run(functional.rank_n_contrast, x, 3.0**exponents),
        strict=True,
    ):
        assert_close(another, one, 1e-12)


@given(
    n=st.integers(1, 50),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_rows_may_be_permuted(n: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, labels, order = torch.randn(n, 6, dtype=dtype), make_labels(kind, n), torch.randperm(n)
    loss, gradient = run(functional.rank_n_contrast, x, labels, reduction="none")
    permuted, permuted_gradient = run(functional.rank_n_contrast, x[order], labels[order], reduction="none")
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    assert_close(permuted, loss[order], tolerance)
    assert_close(permuted_gradient, gradient[order], tolerance)


@given(n=st.integers(1, 20), views=st.integers(1, 3), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_views_are_concatenated_view_by_view(n: int, views: int, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, labels = torch.randn(n, views, 4, dtype=torch.float64), make_labels(kind, n)
    loss, gradient = run(functional.rank_n_contrast, x, labels, reduction="none")
    flat = torch.cat([x[:, v] for v in range(views)])
    repeated = torch.cat([labels] * views)
    expected, slope = run(functional.rank_n_contrast, flat, repeated, reduction="none")
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, slope.view(views, n, 4).transpose(0, 1))


@given(
    n=st.integers(2, 8),
    kind=st.sampled_from(KINDS),
    similarity=st.sampled_from(["negative_l2", "cosine"]),
    seed=st.integers(0, 2**31),
)
def test_finite_differences(n: int, kind: str, similarity: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, labels = torch.randn(n, 3, dtype=torch.float64, requires_grad=True), make_labels(kind, n)
    for reduction in ("mean", "none"):
        torch.autograd.gradcheck(
            lambda v, r=reduction: functional.rank_n_contrast(v, labels, similarity=similarity, reduction=r), x
        )


def test_equal_features_have_the_subgradient_zero(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 4, device=device).to(dtype)[[0, 0, 1, 2, 2, 2]]
    loss, gradient = run(functional.rank_n_contrast, x, torch.arange(6))
    expected, slope = run(reference.rank_n_contrast, x.double().cpu(), torch.arange(6))
    assert_close(loss, expected, 1e-6)
    assert_close(gradient, slope, {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6))
    _, gradient = run(functional.rank_n_contrast, torch.ones(5, 3, device=device), torch.arange(5))
    assert not gradient.any()


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("arrangement", ["one point", "two points", "pairs"])
@pytest.mark.parametrize("temperature", [0.05, 2.0])
def test_features_that_nearly_coincide(device: str, spread: float, arrangement: str, temperature: float) -> None:
    """Inner products lose what they have in common, in the distances and in the gradient."""
    n, d = 48, 24
    centres = {"one point": torch.ones(n, d), "two points": torch.arange(n)[:, None] % 2 + torch.ones(d)}
    centre = centres.get(arrangement, torch.randn(n // 2, d).repeat(2, 1))
    x = (centre + spread * torch.randn(n, d)).to(device)
    labels = torch.rand(n)
    rows, gradient = numpy_loop(x.double().cpu().numpy(), labels.double().numpy(), temperature)
    loss, ours = run(functional.rank_n_contrast, x, labels, reduction="none", temperature=temperature)
    assert_close(loss, rows, 1e-6)
    assert_close(ours, gradient, 2e-5)
    rows, gradient = numpy_loop(x.double().cpu().numpy(), labels.double().numpy(), temperature)
    loss, ours = run(functional.rank_n_contrast, x.double(), labels, reduction="none", temperature=temperature)
    assert_close(loss, rows, 1e-11)
    assert_close(ours, gradient, 1e-9)


ARRANGEMENTS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda n, d: torch.randn(n, d),
    "far from 0": lambda n, d: torch.randn(n, d).relu() + 3,
    "a line": lambda n, d: torch.linspace(-1, 1, n)[:, None] * torch.randn(d) + 0.05 * torch.randn(n, d),
    "clusters": lambda n, d: torch.randn(5, d)[torch.arange(n) % 5] + 0.01 * torch.randn(n, d),
    "one far away": lambda n, d: torch.randn(n, d) * (1 + 30 * (torch.arange(n) == 3)[:, None]),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("farthest", [0.01, 1.1, 8.0, 31.0, 33.0, 1900.0])
def test_many_rows_in_float32(device: str, arrangement: str, farthest: float) -> None:
    """Where similarities are neither too large nor too small, the CPU computes all in float32 from 64 rows on."""
    cases = ((64, 8, "distinct", 1e-15), (100, 130, "tied", 1.0), (131, 3, "integer", 1e14), (100, 40, "vector", 1e-9))
    for n, d, kind, scale in cases:
        x, labels = ARRANGEMENTS[arrangement](n, d) * scale, make_labels(kind, n)
        temperature = 2 * (x - x.mean(dim=0)).double().norm(dim=1).max().item() / farthest
        options = {"reduction": "none", "temperature": temperature}
        loss, gradient = run(functional.rank_n_contrast, x.to(device), labels, **options)
        expected, slope = run(reference.rank_n_contrast, x.double(), labels, **options)
        assert_close(loss, expected, 1e-6)
        assert_close(gradient, slope, 2e-5)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("farthest", [0.01, 1.1, 8.0, 31.0, 33.0])
def test_derivatives_that_cancel(device: str, arrangement: str, farthest: float) -> None:
    """With equal labels an anchor has one softmax of all others, which is nearly uniform in many dimensions."""
    n = 300
    x = ARRANGEMENTS[arrangement](n, 130)
    temperature = 2 * (x - x.mean(dim=0)).double().norm(dim=1).max().item() / farthest
    wide = x.double().requires_grad_()
    others = ~torch.eye(n, dtype=torch.bool)
    similarity = -(wide[:, None] - wide)[others].norm(dim=1).view(n, n - 1) / temperature
    expected = similarity.logsumexp(dim=1) - similarity.mean(dim=1)
    expected.sum().backward()
    loss, gradient = run(
        functional.rank_n_contrast, x.to(device), torch.ones(n), temperature=temperature, reduction="none"
    )
    assert_close(loss, expected.detach(), 1e-6)
    assert_close(gradient, wide.grad, 2e-5)


def test_large_similarities_of_many_rows(device: str) -> None:
    """In many dimensions all are large and nearly alike: float32 would resolve them to 10⁻⁴."""
    x, labels = torch.randn(64, 8000), torch.rand(64)
    options = {"reduction": "none", "temperature": 2 * x.norm(dim=1).max().item() / 1900}
    loss, gradient = run(functional.rank_n_contrast, x.to(device), labels, **options)
    expected, slope = run(reference.rank_n_contrast, x.double(), labels, **options)
    assert_close(loss, expected, 5e-7)
    assert_close(gradient, slope, 2e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_large_distances_do_not_underflow(device: str, dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale /= 100
    x = (scale * torch.randn(20, 5)).to(device, dtype)
    for labels in (torch.rand(20, dtype=torch.float64), torch.arange(20) // 3):
        rows, gradient = numpy_loop(x.double().cpu().numpy(), labels.double().numpy(), 0.05)
        loss, ours = run(functional.rank_n_contrast, x, labels, temperature=0.05, reduction="none")
        assert_close(loss, rows, 1e-6 if loss.dtype == torch.float32 else 1e-11)
        assert_close(ours, gradient, {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5))


def test_integer_distances_are_exact() -> None:
    x = torch.randn(4, 4, dtype=torch.float64)
    labels = torch.tensor([-(2**63), 2**63 - 1, 0, 2**53 + 1])
    exact = [[abs(int(a) - int(b)) for b in labels] for a in labels]
    order = sorted({value for row in exact for value in row})
    expected = sum(
        math.log(sum(math.exp(-(x[i] - x[k]).norm() / 2) for k in range(4) if k != i and exact[i][k] >= exact[i][j]))
        + float((x[i] - x[j]).norm()) / 2
        for i in range(4)
        for j in range(4)
        if j != i
    )
    assert len(order) > 4
    for function in (functional.rank_n_contrast, reference.rank_n_contrast):
        assert function(x, labels).item() == pytest.approx(expected / 12, rel=1e-12)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e8), (torch.float16, 1e4), (torch.bfloat16, 2.0**17)])
def test_rounded_distances_tie(dtype: torch.dtype, far: float) -> None:
    """The far label is equally far from 1, 2 and 3, on one side of it."""
    x = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([2.0, far, 1.0, 3.0, -7.0]).to(dtype)
    assert functional.rank_n_contrast(x, labels).item() == pytest.approx(
        reference.rank_n_contrast(x, labels).item(), rel=1e-12
    )
    assert functional.rank_n_contrast(x, labels) != functional.rank_n_contrast(x, labels.double())


def test_l1_and_l2_differ_for_vectors_alone() -> None:
    x, labels = torch.randn(12, 4, dtype=torch.float64), torch.randint(-9, 9, (12, 3))
    for squared, label_distance in ((False, "l1"), (True, "l2")):
        rows, gradient = numpy_loop(x.numpy(), labels.double().numpy(), 2.0, squared=squared)
        loss, ours = run(functional.rank_n_contrast, x, labels, label_distance=label_distance, reduction="sum")
        assert_close(loss, rows.sum(), 1e-11)
        assert_close(ours, gradient, 1e-10)
    scalar = [functional.rank_n_contrast(x, labels[:, 0], label_distance=kind) for kind in ("l1", "l2")]
    assert torch.equal(*scalar)
    assert torch.equal(scalar[0], functional.rank_n_contrast(x, labels[:, :1]))


# ---- the edges ----


def test_zero_rows_follow_normalize() -> None:
    x, labels = torch.randn(9, 5, dtype=torch.float64), torch.rand(9)
    x[2], x[4] = x[2] * 1e-13, 0  # the norms of both are replaced by a constant
    loss, ours = run(functional.rank_n_contrast, x, labels, similarity="cosine")
    expected, gradient = run(reference.rank_n_contrast, x, labels, similarity="cosine")
    assert_close(loss, expected, 1e-11)
    largest = gradient.abs().amax(dim=1, keepdim=True)
    assert_close(ours / largest, gradient / largest, 1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_give_zero(device: str, dtype: torch.dtype, reduction: str, n: int) -> None:
    for labels in (torch.zeros(n), torch.zeros(n, 3)):
        x = torch.randn(n, 4, device=device).to(dtype)
        loss, gradient = run(functional.rank_n_contrast, x, labels, reduction=reduction)
        assert loss.shape == ((n,) if reduction == "none" else ())
        assert not loss.any()
        assert gradient.shape == (n, 4)
        assert not gradient.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [1, 2, 12, 70])
def test_bad_values_show(device: str, dtype: torch.dtype, value: float, n: int) -> None:
    clean = torch.randn(n, 5, device=device).to(dtype)
    x = clean.clone()
    x[n // 2, 2] = value
    for features, labels in ((x, torch.arange(n)), (x, torch.rand(n, 2)), (clean, "scalar"), (clean, "vector")):
        if isinstance(labels, str):
            labels = torch.rand(n) if labels == "scalar" else torch.rand(n, 2)
            labels.view(-1)[-1] = value
        for reduction in ("mean", "none"):
            loss, gradient = run(functional.rank_n_contrast, features, labels, reduction=reduction)
            assert loss.isnan().all()
            assert gradient.isnan().all()


def test_strides_do_not_matter(device: str) -> None:
    x, labels = torch.randn(12, 6, device=device), torch.rand(12).repeat(2)
    plain = run(functional.rank_n_contrast, x, labels[::2].contiguous())
    strided = run(functional.rank_n_contrast, x.T.contiguous().T, labels[::2])
    assert torch.equal(plain[0], strided[0])
    assert torch.equal(plain[1], strided[1])


def test_gradient_only_where_wanted(device: str) -> None:
    x, labels = torch.randn(8, 4, device=device), torch.rand(8, device=device, requires_grad=True)
    assert not functional.rank_n_contrast(x, labels).requires_grad
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert not functional.rank_n_contrast(leaf, labels).requires_grad
    functional.rank_n_contrast(leaf, labels).backward()
    assert labels.grad is None


def test_second_derivative_raises(device: str) -> None:
    x, labels = torch.randn(8, 4, device=device, requires_grad=True), torch.rand(8, device=device)
    for reduction in ("sum", "none"):
        loss = functional.rank_n_contrast(x, labels, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.square().sum().backward()


def test_forward_mode_raises() -> None:
    x, labels = torch.randn(8, 4), torch.rand(8)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda v: functional.rank_n_contrast(v, labels), (x,), (x,))


def test_the_bare_operator_does_not_lose_gradients_silently(device: str) -> None:
    x, labels = torch.randn(6, 4, device=device, requires_grad=True), torch.rand(6, device=device)
    for with_gradient in (False, True):
        loss, _ = torch.ops.dadl.rank_n_contrast(x, labels, 2.0, 0, 0, 1, with_gradient)
        with pytest.raises(RuntimeError, match=r"use dadl_ext\.functional\.rank_n_contrast"):
            loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(device: str, reduction: str) -> None:
    x, labels = torch.randn(16, 8, device=device), torch.rand(16)
    plain = run(functional.rank_n_contrast, x.bfloat16(), labels, reduction=reduction)
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = run(functional.rank_n_contrast, x.bfloat16(), labels, reduction=reduction)
    assert torch.equal(plain[0], cast[0])
    assert cast[1].dtype == torch.bfloat16
    torch.testing.assert_close(plain[1], cast[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distinct", "tied", "vector"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_compile(device: str, kind: str, reduction: str) -> None:
    torch._dynamo.reset()
    labels = make_labels(kind, 20).to(device)

    def loss(v: Tensor) -> Tensor:
        return functional.rank_n_contrast(v * 1.5, labels, reduction=reduction).sum()

    compiled = torch.compile(loss, fullgraph=True)
    for _ in range(2):
        x = torch.randn(20, 6, device=device)
        eager, graph = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, actual = loss(eager), compiled(graph)
        expected.backward()
        actual.backward()
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(graph.grad, eager.grad)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap(device: str, reduction: str) -> None:
    x, labels = torch.randn(9, 3, 5, device=device), torch.rand(3, 9, device=device)

    def loss(v: Tensor, y: Tensor) -> Tensor:
        return functional.rank_n_contrast(v, y, reduction=reduction)

    mapped = torch.vmap(loss, in_dims=(1, 0))(x, labels)
    assert torch.equal(mapped, torch.stack([loss(x[:, i], labels[i]) for i in range(3)]))
    assert torch.equal(torch.vmap(loss, in_dims=(1, None))(x, labels[0])[2], loss(x[:, 2], labels[0]))


def test_deterministic(device: str, dtype: torch.dtype) -> None:
    x, labels = torch.randn(130, 40, device=device).to(dtype), torch.randint(0, 40, (130,))
    first = [run(functional.rank_n_contrast, x, labels) for _ in range(2)]
    assert torch.equal(first[0][0], first[1][0])
    assert torch.equal(first[0][1], first[1][1])


def test_memory_is_bounded_by_three_matrices() -> None:
    n, d = 600, 16
    x, labels = torch.randn(n, d, requires_grad=True), torch.rand(n)
    functional.rank_n_contrast(x, labels).backward()
    x.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        functional.rank_n_contrast(x, labels).backward()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():  # allocations and frees in time order
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    assert 0 < peak <= 3 * 4 * n * n


@pytest.mark.parametrize(
    ("features", "labels", "options", "error", "message"),
    [
        ([1.0], torch.zeros(1), {}, TypeError, "torch.Tensor"),
        (torch.zeros(3, 2), [1.0], {}, TypeError, "torch.Tensor"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3), {}, TypeError, r"int64 of shape \(3, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.zeros(3, 2), torch.zeros(4), {}, ValueError, r"\(3, 2\) and labels \(4,\)"),
        (torch.zeros(3), torch.zeros(3), {}, ValueError, r"features \(3,\)"),
        (torch.zeros(3, 2, 2, 2), torch.zeros(3), {}, ValueError, r"\[n, views, d\]"),
        (torch.zeros(3, 2), torch.zeros(3, 0), {}, ValueError, "k >= 1"),
        (torch.zeros(3, 2), torch.zeros(3, device="meta"), {}, ValueError, "meta"),
        (torch.zeros(3, 2), torch.zeros(3), {"temperature": 0.0}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3), {"temperature": float("nan")}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3), {"similarity": "l2"}, ValueError, "similarity"),
        (torch.zeros(3, 2), torch.zeros(3), {"label_distance": "l3"}, ValueError, "label_distance"),
        (torch.zeros(3, 2), torch.zeros(3), {"reduction": "max"}, ValueError, "reduction"),
    ],
)
def test_errors(features, labels, options, error, message) -> None:
    for function in (functional.rank_n_contrast, reference.rank_n_contrast):
        with pytest.raises(error, match=message):
            function(features, labels, **options)


def test_module(device: str) -> None:
    x, labels = torch.randn(10, 2, 4, device=device), torch.rand(10, device=device)
    options = {"temperature": 0.5, "similarity": "cosine", "label_distance": "l2", "reduction": "sum"}
    module = RankNContrastLoss(**options)
    assert torch.equal(module(x, labels), functional.rank_n_contrast(x, labels, **options))
    assert "temperature=0.5" in repr(module)
    assert not module.state_dict()
    with pytest.raises(ValueError, match="reduction"):
        RankNContrastLoss(reduction="max")


SAVE = """
import sys
import numpy as np, torch
from dadl_ext import functional

torch.set_num_threads(1)
results = []
for n in (2, 33, 60):  # larger products are the BLAS library's, which rounds as it likes
    for kind in ("normal", "integer", "far", "double"):
        rng = np.random.default_rng(n)  # torch's own numbers depend on the instruction set
        x, y = rng.standard_normal((n, 24)), torch.from_numpy(rng.integers(0, 20, n))
        x = np.round(3 * x) if kind == "integer" else 1e3 * x if kind == "far" else x
        x = torch.from_numpy(x if kind == "double" else x.astype("float32"))
        for similarity in ("negative_l2", "cosine"):
            x.requires_grad_().grad = None
            loss = functional.rank_n_contrast(x, y, similarity=similarity, temperature=0.2)
            loss.backward()
            results += [loss.detach(), x.grad]
torch.save(results, sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_result(tmp_path: Path) -> None:
    results = []
    for capability in CAPABILITIES:
        file = tmp_path / capability
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        subprocess.run([sys.executable, "-c", SAVE, str(file)], env=environment, check=True)
        results.append(torch.load(file))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert_close(another, one, 1e-6 if one.dtype == torch.float32 else 1e-11)
