"""The CUDA kernels, run on the host by tests/simulator, against the reference.

Every result is computed in forward and in reverse thread order and must be the same to the bit. The file, with
test_simulator_dropout.py, runs again in processes of its own with the simulator built for AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import build
from simulator.helpers import EXAMPLES, FLAVOUR, FLOATING, arithmetic, in_both_orders, name, to_numpy, to_torch
from torch import Tensor

from dadl_ext import reference
from dadl_ext._labels import draw_priority, label_similarity_matrix
from dadl_ext.reference.ranking import integer_ranks
from dadl_ext.reference.ranksim import select_subset

# Where the ways of ranking hand over to each other: each way for every length, and the thresholds that CUDA uses.
PATHS = {"warp": (1024, 4096, 1 << 22), "block": (0, 4096, 1 << 22), "sort": (0, 0, 200)}

around_powers_of_two = st.integers(0, 8).flatmap(lambda k: st.integers(max(0, 2**k - 1), 2**k + 1))


@pytest.fixture(scope="session")
def simulator():
    return build.load(FLAVOUR)


def limits(simulator, path: str):
    return simulator.RankLimits(*PATHS[path])


def make_values(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64)
    if kind == "ties":
        values = torch.randint(-3, 4, shape).double() * 0.5
        values = torch.where(torch.rand(shape) < 0.5, values, -values)  # both zeros
    elif kind == "special":
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1.0, 5e-324, 1e-45, 6e-8])
        values = special[torch.randint(0, len(special), shape)].double()
    return values.to(dtype)


# ---- rank ----


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
    ranks = to_torch(in_both_orders(simulator.rank, to_numpy(x), name(dtype), limits(simulator, path)), dtype)
    assert ranks.dtype == arithmetic(dtype)
    assert torch.equal(ranks, integer_ranks(x).to(ranks.dtype))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2048, 4095, 4096, 4097, 6000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_of_long_rows(simulator, n: int, dtype: torch.dtype) -> None:
    for kind in ("normal", "ties"):
        x = make_values(kind, (3, n), dtype)
        ranks = in_both_orders(simulator.rank, to_numpy(x), name(dtype), limits(simulator, "warp"))
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
    result = in_both_orders(simulator.rank_backward, *inputs, name(dtype), strength, limits(simulator, path))
    assert torch.equal(to_torch(result, dtype), x.grad)


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
    return in_both_orders(simulator.select, to_numpy(matrix), name(labels.dtype), priority.numpy())


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
    result = in_both_orders(
        simulator.ranksim,
        *(to_numpy(x), name(x.dtype), index, order, count),
        *(to_numpy(target), name(target.dtype), matrix is not None, strength, weight, mean),
        *(None if row_weight is None else row_weight.numpy(), True, limits(simulator, path)),
    )
    without_gradient = simulator.ranksim(
        *(to_numpy(x), name(x.dtype), index, order, count),
        *(to_numpy(target), name(target.dtype), matrix is not None, strength, weight, mean),
        *(None, False, limits(simulator, path), False),
    )
    assert without_gradient.keys() == {"loss", "rows"}
    for key, value in without_gradient.items():
        assert value.tobytes() == result[key].tobytes()
    return index[: count.item()], {key: to_torch(value, x.dtype) for key, value in result.items()}


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[actual.dtype]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale + 1e-7)


@settings(max_examples=EXAMPLES // 2)
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
    torch.testing.assert_close(result["rows"][:m], expected_rows.detach(), rtol=1e-6, atol=0)
    assert not result["rows"][m:].any()
    torch.testing.assert_close(result["loss"][0], expected_rows.detach().sum(), rtol=1e-5, atol=0)
    (expected,) = torch.autograd.grad(expected_rows.sum(), leaf, retain_graph=True)
    close(result["gradient"].to(dtype), expected)

    _, result = run(simulator, x, labels, row_weight=row_weight, **options)
    assert result["gradient"].dtype == dtype
    (expected,) = torch.autograd.grad(expected_rows, leaf, row_weight[:m])
    close(result["gradient"], expected)


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for short rows")
@pytest.mark.parametrize("n", [200, 400, 700, 1100])
def test_ranksim_of_large_batches(simulator, n: int) -> None:
    leaf = torch.randn(n, 4).requires_grad_()
    labels = torch.randint(0, 20 * n, (n,))
    loss = reference.ranksim_loss(leaf, labels, generator=torch.Generator().manual_seed(7))
    loss.backward()
    _, result = run(simulator, leaf, labels)
    torch.testing.assert_close(result["loss"][0], loss.detach(), rtol=1e-6, atol=0)
    close(result["gradient"], leaf.grad)


def test_ranksim_without_feature_dimensions(simulator) -> None:
    _, result = run(simulator, torch.empty(6, 0), torch.arange(6))
    assert result["loss"].isfinite().all()
    assert result["gradient"].shape == (6, 0)


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


# ---- contrast ----

# Queries and keys as they are stored; half precision on both sides goes to the tensor cores.
STORED = [(dtype, dtype) for dtype in FLOATING] + [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
# By the keys' dtype where it is the queries' too, of the largest value.
WEIGHTED = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

query_counts = st.sampled_from([0, 1, 31, 32, 33, 70])
key_counts = st.integers(0, 70) | st.sampled_from([127, 128, 129, 300])
feature_counts = st.integers(0, 40) | st.sampled_from([64, 96, 127, 128, 136, 257])
multiprocessors = st.sampled_from([1, 2, 3, 100])


def optional(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.contiguous().numpy()


IGNORED = -100  # a target


def run_contrast(
    simulator,
    query: Tensor,
    key: Tensor,
    *options,
    own=None,
    target=None,
    slot_count=None,
    kl=False,
    mean=False,
    processors=1,
):
    """Values and slope; the values alone must be the same."""
    mask, exclude_self, scale = options
    sides = to_numpy(query), name(query.dtype), to_numpy(key), name(key.dtype)
    group = optional(own), optional(target), optional(slot_count), kl, IGNORED, mean
    arguments = (*sides, optional(mask), exclude_self, *group, scale)
    values, slope = in_both_orders(simulator.contrast, *arguments, True, processors)
    alone, nothing = in_both_orders(simulator.contrast, *arguments, False, processors)
    assert alone.tobytes() == values.tobytes()
    assert nothing.shape == (0, query.shape[1])
    return torch.from_numpy(values), torch.from_numpy(slope)


def close_to_largest(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale + 1e-30)


@settings(max_examples=EXAMPLES)
@given(
    b=query_counts,
    n=key_counts,
    d=feature_counts,
    stored=st.sampled_from(STORED),
    scale=st.sampled_from([-2.0, 0.1, 1.0, 5.0]),
    masked=st.booleans(),
    exclude_self=st.booleans(),
    processors=multiprocessors,
    seed=st.integers(0, 2**31),
)
def test_similarity_logsumexp(simulator, b, n, d, stored, scale, masked, exclude_self, processors, seed) -> None:
    torch.manual_seed(seed)
    n = b if exclude_self else n
    query, key = torch.randn(b, d).to(stored[0]), torch.randn(n, d).to(stored[1])
    mask = torch.rand(n) < 0.3 if masked else None
    if masked:
        key[~mask] = torch.nan  # what does not take part does not show
    scale /= max(d, 1) ** 0.5
    clean = key if mask is None else key.masked_fill(~mask[:, None], 0)
    leaves = query.double().requires_grad_(), clean.double().requires_grad_()
    expected = reference.similarity_logsumexp(*leaves, scale=scale, key_mask=mask, exclude_self=exclude_self)
    met = expected > -torch.inf
    weight = torch.randn(b, dtype=torch.float64)
    slope, key_gradient = (torch.zeros_like(leaf) for leaf in leaves)
    if met.any():
        (slope,) = torch.autograd.grad(expected[met].sum(), leaves[0], retain_graph=True)
        (key_gradient,) = torch.autograd.grad((expected * weight)[met].sum(), leaves[1])
    expected = expected.detach()

    lse, actual = run_contrast(simulator, query, key, mask, exclude_self, scale, processors=processors)
    exact = 1e-12 if stored[1] == torch.float64 else 1e-5
    torch.testing.assert_close(lse.double(), expected, rtol=exact, atol=exact)
    tolerance = WEIGHTED[stored[1] if stored[0] == stored[1] else torch.float32]
    close_to_largest(actual, slope, tolerance)

    if stored[0] != stored[1]:
        return
    # As large as a loss scale makes them, and beyond what weights in float16 could be.
    upstream = 1e4 / max(key_gradient.abs().max().item(), 1e-4) if key_gradient.numel() else 1.0
    gradient = in_both_orders(
        simulator.contrast_key_gradient,
        *((weight * upstream).to(lse.dtype).numpy(), to_numpy(query), to_numpy(key), name(key.dtype)),
        *(optional(mask), expected.to(lse.dtype).numpy(), scale, exclude_self, processors),
    )
    close_to_largest(to_torch(gradient, key.dtype), key_gradient * upstream, tolerance)


@settings(max_examples=EXAMPLES)
@given(
    b=query_counts,
    classes=st.integers(1, 12),
    slots=st.integers(0, 12) | st.just(33),
    d=feature_counts.filter(bool),
    stored=st.sampled_from(STORED),
    temperature=st.sampled_from([0.07, 1.0, 10.0]),
    partial=st.booleans(),
    form=st.sampled_from(["cross_entropy", "kl"]),
    processors=multiprocessors,
    seed=st.integers(0, 2**31),
)
def test_group_contrast(simulator, b, classes, slots, d, stored, temperature, partial, form, processors, seed) -> None:
    torch.manual_seed(seed)
    unit = [
        torch.nn.functional.normalize(torch.randn(shape), dim=-1) for shape in ((b, d), (b, d), (classes, slots, d))
    ]
    query, own, queue = unit[0].to(stored[0]), unit[1].to(arithmetic(stored[0])), unit[2].to(stored[1])
    target = torch.randint(classes, (b,))
    counts = torch.randint(-1, slots + 3, (classes,)) if partial else None
    leaf = query.double().requires_grad_()
    expected = reference.pseudo_group_contrast(
        *(leaf, own.double(), queue.double(), target),
        **{"temperature": temperature, "slot_count": counts, "reduction": "none", "form": form},
    )
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    options = {"own": own, "slot_count": counts, "processors": processors, "kl": form == "kl"}
    rows, slope = run_contrast(simulator, query, queue, None, False, 1 / temperature, target=target, **options)
    exact = 1e-12 if stored[1] == torch.float64 else 2e-6
    torch.testing.assert_close(rows.double(), expected.detach(), rtol=exact, atol=exact * max(1, 1 / temperature))
    tolerance = WEIGHTED[stored[1] if stored[0] == stored[1] else torch.float32]
    torch.testing.assert_close(slope.double(), gradient, rtol=0, atol=tolerance / temperature)

    outside = torch.tensor([-1, classes, -(2**63), 2**63 - 1, IGNORED])[torch.randint(5, (b,))]
    wrong = torch.rand(b) < 0.5
    target = torch.where(wrong, outside, target)
    shown, shown_slope = run_contrast(simulator, query, queue, None, False, 1 / temperature, target=target, **options)
    ignored = target == IGNORED
    assert not shown[ignored].any()
    assert shown[wrong & ~ignored].isnan().all()
    assert not shown_slope[wrong].any()
    assert torch.equal(shown[~wrong], rows[~wrong])
    assert torch.equal(shown_slope[~wrong], slope[~wrong])

    options["mean"] = True
    means, mean_slope = run_contrast(simulator, query, queue, None, False, 1 / temperature, target=target, **options)
    counted = max(1, int((~ignored).sum()))
    torch.testing.assert_close(means * counted, shown, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(mean_slope * counted, shown_slope, rtol=1e-5, atol=0)


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for fewer")
@pytest.mark.parametrize("dtype", FLOATING)
def test_contrast_of_many_keys_and_features(simulator, dtype: torch.dtype) -> None:
    for b, n, d, processors in ((2, 20000, 2, 100), (3, 70, 4097, 1)):
        query, key = torch.randn(b, d).to(dtype), torch.randn(n, d).to(dtype)
        leaf = query.double().requires_grad_()
        expected = reference.similarity_logsumexp(leaf, key.double(), scale=d**-0.5)
        expected.sum().backward()
        lse, slope = run_contrast(simulator, query, key, None, False, d**-0.5, processors=processors)
        torch.testing.assert_close(lse.double(), expected.detach(), rtol=1e-6, atol=1e-6)
        close_to_largest(slope, leaf.grad, WEIGHTED[dtype])


@pytest.mark.parametrize("dtype", FLOATING)
def test_large_logits_do_not_overflow(simulator, dtype: torch.dtype) -> None:
    query, key = torch.tensor([[100.0], [-100.0], [0.0]]).to(dtype), torch.tensor([[100.0], [-100.0]]).to(dtype)
    lse, slope = run_contrast(simulator, query, key, None, False, 1.0)
    torch.testing.assert_close(lse, torch.tensor([1e4, 1e4, np.log(2)]).to(lse.dtype))
    assert slope.tolist() == [[100], [-100], [0]]


@pytest.mark.parametrize("dtype", FLOATING)
def test_nan_stays_visible(simulator, dtype: torch.dtype) -> None:
    query, key = torch.randn(40, 5).to(dtype), torch.randn(200, 5).to(dtype)
    query[33, 2] = torch.nan
    lse, slope = run_contrast(simulator, query, key, None, False, 1.0, processors=3)
    assert lse.isnan().nonzero().tolist() == [[33]]
    assert slope.isnan().all(dim=1).nonzero().tolist() == [[33]]
    key[170] = torch.nan
    lse, slope = run_contrast(simulator, query, key, None, False, 1.0, processors=3)
    assert lse.isnan().all()
    assert slope.isnan().all()


# ---- the simulator itself ----


def test_a_missing_barrier_shows(simulator) -> None:
    values = np.arange(64, dtype=np.float32)
    for reverse in (False, True):
        assert np.array_equal(simulator.reverse_block(values, True, reverse), values[::-1])
    wrong = [simulator.reverse_block(values, False, reverse) for reverse in (False, True)]
    assert not np.array_equal(*wrong)
    assert np.isnan(wrong[0]).any()  # read before anything was written


def test_threads_that_wait_in_vain_are_an_error(simulator) -> None:
    with pytest.raises(RuntimeError, match="25 of 32 threads wait, one of them at __any_sync"):
        simulator.divergent(True)
    with pytest.raises(RuntimeError, match="some threads are at __any_sync, others at __syncwarp"):
        simulator.divergent(False)


def run_process(flavour: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    build.build(flavour)
    environment = {**os.environ, **build.runtime(flavour), "DADL_SIMULATOR": flavour}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent)


@pytest.mark.skipif(FLAVOUR != "plain", reason="this process is a sanitizer's own")
@pytest.mark.parametrize("flavour", ["address", "undefined"])
def test_sanitizer(flavour: str) -> None:
    files = __file__, str(Path(__file__).with_name("test_simulator_dropout.py"))
    done = run_process(flavour, "-m", "pytest", "--capture=sys", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.skipif(FLAVOUR != "plain", reason="this process is a sanitizer's own")
def test_the_sanitizer_sees_shared_memory() -> None:
    script = "from simulator import build; build.load('address').overrun({})"
    assert run_process("address", "-c", script.format(0)).returncode == 0
    done = run_process("address", "-c", script.format(1))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
