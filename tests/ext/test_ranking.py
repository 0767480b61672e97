"""functional.rank against the definition, the reference and PyTorch's machinery."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dadl_ext import functional, reference


def ranks_by_definition(values: np.ndarray) -> np.ndarray:
    """rank_i = 1 + #{x_j > x_i} + #{j > i : x_j = x_i}, NaN the largest, for one row."""
    n = len(values)
    key = np.where(np.isnan(values), np.inf, values)
    nan = np.isnan(values)
    ranks = np.empty(n, dtype=np.int64)
    for i in range(n):
        greater = (key > key[i]) & ~nan[i] | (nan & ~nan[i])
        equal = (nan & nan[i]) | ((key == key[i]) & ~nan & ~nan[i])
        ranks[i] = 1 + greater.sum() + equal[i + 1 :].sum()
    return ranks


finite_or_not = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 5e-324, -5e-324, 1e308]),
    st.floats(width=64),
    st.integers(-3, 3).map(float),
)
rows = st.integers(0, 150).flatmap(lambda n: hnp.arrays(np.float64, n, elements=finite_or_not))


@given(rows)
def test_definition(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    for array in (values, single):
        ranks = functional.rank(torch.from_numpy(array))
        assert ranks.dtype == (torch.float64 if array.dtype == np.float64 else torch.float32)
        np.testing.assert_array_equal(ranks.numpy(), ranks_by_definition(array.astype(np.float64)))


@given(rows)
def test_ranks_are_a_permutation(values: np.ndarray) -> None:
    ranks = functional.rank(torch.from_numpy(values))
    assert sorted(ranks.tolist()) == list(range(1, len(values) + 1))


@given(hnp.arrays(np.float64, st.integers(1, 150), elements=st.floats(-1e6, 1e6)))
def test_invariant_under_increasing_maps(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    doubled = 2 * x  # exact, so strictly increasing in floating point too
    assert torch.equal(functional.rank(x), functional.rank(doubled))
    cubed = torch.from_numpy(np.unique(values))
    assert torch.equal(functional.rank(cubed), torch.arange(len(cubed), 0, -1, dtype=torch.float64))


@given(st.integers(1, 300), st.randoms(use_true_random=False))
def test_equivariant_under_permutation_without_ties(n: int, random: object) -> None:
    x = torch.randperm(n).double()
    permutation = torch.randperm(n)
    assert torch.equal(functional.rank(x)[permutation], functional.rank(x[permutation]))


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 90)), elements=st.integers(-20, 20)),
    st.floats(0.01, 20),
    st.integers(0, 2**31),
)
def test_surrogate_gradient_formula(values: np.ndarray, strength: float, seed: int) -> None:
    x = torch.from_numpy(values).requires_grad_()
    ranks = functional.rank(x, strength)
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(ranks, x, upstream)
    perturbed = functional.rank(x.detach() + strength * upstream)
    torch.testing.assert_close(gradient, -(ranks.detach() - perturbed) / (strength + 1e-8), rtol=1e-14, atol=1e-14)


def test_example_of_ties() -> None:
    assert functional.rank(torch.tensor([0.0, -1.0, -1.0, -2.0, -2.0])).tolist() == [1, 3, 2, 5, 4]


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 64, 65, 127, 128, 1023, 1024, 1025, 4096, 4097, 8192, 8193, 65_537])
def test_equals_reference(device: str, dtype: torch.dtype, n: int) -> None:
    x = torch.randn(3, 2, n, device=device).to(dtype)
    x[..., ::3] = x[..., ::3].round()
    # On the CPU: PyTorch's GPU kernels divide by a number by multiplying with its reciprocal.
    ours, theirs = x.clone().requires_grad_(), x.cpu().requires_grad_()
    rank, expected = functional.rank(ours), reference.rank(theirs)
    assert rank.dtype == expected.dtype
    assert torch.equal(rank.cpu(), expected)
    upstream = torch.randn_like(rank)
    rank.backward(upstream)
    expected.backward(upstream.cpu())
    assert ours.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)


def test_a_million_values(device: str) -> None:
    x = torch.randn(2**20, device=device)
    assert torch.equal(functional.rank(x), reference.rank(x))


@pytest.mark.parametrize(
    "row",
    [
        torch.full((500,), 2.0),
        torch.cat([torch.linspace(0, 1e-6, 499), torch.tensor([1e6])]),  # one outlier hides the rest from 16 bits
        torch.logspace(-30, 30, 500)[torch.randperm(500)],
        torch.linspace(-3e38, 3e38, 500)[torch.randperm(500)],  # the range overflows
        torch.linspace(0, 1e-43, 500)[torch.randperm(500)],  # the scale overflows
        torch.tensor([float("inf"), float("-inf")]).repeat(250),
        torch.tensor([float("nan"), 1.0, -float("nan")]).repeat(200),
    ],
    ids=["equal", "outlier", "log", "overflow", "subnormal", "infinite", "nan"],
)
def test_hard_distributions(device: str, row: torch.Tensor) -> None:
    for values in (row.to(device), row.double().to(device)):
        # On the CPU: PyTorch's GPU sort tells a NaN from another, which the order here does not.
        assert torch.equal(functional.rank(values).cpu(), reference.rank(values.cpu()))


def test_strides(device: str) -> None:
    x = torch.randn(70, 40, device=device)
    assert torch.equal(functional.rank(x.T), functional.rank(x.T.contiguous()))
    assert torch.equal(functional.rank(x[:, ::3]), functional.rank(x[:, ::3].contiguous()))
    expanded = x[0].expand(5, 40).clone().requires_grad_()
    functional.rank(expanded).sum().backward()  # the upstream gradient has stride 0
    assert expanded.grad is not None


def test_same_bits_for_every_thread_count() -> None:
    x, upstream = torch.randn(257, 300), torch.randn(257, 300)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        rank = functional.rank(leaf)
        rank.backward(upstream)
        results.append((rank.detach(), leaf.grad))
    torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.slow
def test_compile(device: str) -> None:
    torch._dynamo.reset()
    x = torch.randn(6, 50, device=device)
    compiled = torch.compile(lambda v: functional.rank(v * 2, 3.0).square().sum(), fullgraph=True)
    eager, graph = x.clone().requires_grad_(), x.clone().requires_grad_()
    functional.rank(eager * 2, 3.0).square().sum().backward()
    compiled(graph).backward()
    torch.testing.assert_close(graph.grad, eager.grad)


def test_vmap(device: str) -> None:
    x = torch.randn(4, 5, 6, device=device)
    assert torch.equal(torch.vmap(functional.rank)(x), functional.rank(x))
    batched_last = torch.vmap(functional.rank, in_dims=2)(x)
    assert torch.equal(batched_last, functional.rank(x.movedim(2, 0)))
    leaf = x.clone().requires_grad_()
    ranks = functional.rank(leaf)
    upstream = torch.randn(3, *ranks.shape, device=device)
    (batched,) = torch.autograd.grad(ranks, leaf, upstream, is_grads_batched=True, retain_graph=True)
    for one, g in zip(batched, upstream, strict=True):
        assert torch.equal(one, torch.autograd.grad(ranks, leaf, g, retain_graph=True)[0])


def test_autocast_ranks_in_float32(device: str) -> None:
    x = torch.randn(8, 20, device=device).bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        ranks = functional.rank(x)
    assert ranks.dtype == torch.float32
    ranks.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_second_derivative_raises(device: str) -> None:
    x = torch.randn(5, device=device, requires_grad=True)
    weight = torch.randn(5, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad((functional.rank(x) * weight).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_forward_mode_raises() -> None:
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(functional.rank, (torch.randn(4),), (torch.randn(4),))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f([1.0]), TypeError, "torch.Tensor"),
        (lambda f: f(torch.arange(3)), TypeError, "int64"),
        (lambda f: f(torch.zeros(2, dtype=torch.complex64)), TypeError, "complex64"),
        (lambda f: f(torch.tensor(1.0)), ValueError, "at least one dimension"),
        (lambda f: f(torch.zeros(2).to_sparse()), TypeError, "dense"),
        (lambda f: f(torch.zeros(2), 0.0), ValueError, "interp_strength"),
        (lambda f: f(torch.zeros(2), float("nan")), ValueError, "interp_strength"),
    ],
)
def test_errors(call: object, error: type[Exception], message: str) -> None:
    for implementation in (functional.rank, reference.rank):
        with pytest.raises(error, match=message):
            call(implementation)  # type: ignore[operator]
