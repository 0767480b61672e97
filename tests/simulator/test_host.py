"""The CUDA operators' own host code on the CPU: checks, allocations, launch plans and library calls.

The library of build.build_host() has what `_C_cuda.so` has, registered as `dadl_simulated`, and its kernels run in the
simulator. CUDA and PyTorch's CUDA half are those of host.cpp, which complains of calls that a GPU would not forgive.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import FLAVOUR, FLOATING, arithmetic
from simulator.host import (
    ALLOCATION,
    LAUNCH,
    LIBRARY,
    MEMSET,
    OPERATORS,
    OPTIONAL,
    Host,
    arguments,
    arguments_with,
    call,
)
from torch import Tensor

from dadl_ext import functional, reference
from dadl_ext._shared.checks import REDUCTIONS, SIMILARITIES
from dadl_ext._shared.label_similarity import draw_priority, label_similarity_matrix
from dadl_ext._shared.members import MEASURES
from tools.architectures import ARCHITECTURES

pytestmark = pytest.mark.skipif(FLAVOUR != "plain", reason="once is enough")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().nan_to_num(0, 0, 0).max().item() if expected.numel() else 0.0
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-3), equal_nan=True
    )


def compare(host: Host, name: str, *arguments, differentiable: int, **options) -> None:
    """A function's value and the gradients of its first arguments, against the reference in float64."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    dtypes = {value.dtype for value in tensors if value.dtype in FLOATING}
    tolerance = max(TOLERANCE[dtype] for dtype in dtypes)

    def run(function, prepare):
        prepared = [prepare(value) if isinstance(value, Tensor) else value for value in arguments]
        leaves = [value.detach().requires_grad_() for value in prepared[:differentiable]]
        value = function(*leaves, *prepared[differentiable:], **options)
        upstream = torch.arange(value.numel()).remainder(3).sub(0.5).reshape(value.shape)
        return value, torch.autograd.grad((value.double() * upstream).sum(), leaves) if leaves else ()

    def wide(value: Tensor) -> Tensor:
        return value.double() if value.dtype in FLOATING else value

    with pytest.MonkeyPatch.context() as patch:
        for operator in OPERATORS:
            patch.setattr(torch.ops.dadl, operator, getattr(torch.ops.dadl_simulated, operator))
        value, gradients = run(getattr(functional, name), torch.clone)
    expected, slopes = run(getattr(reference, name), wide)
    close(value, expected, tolerance)
    for gradient, slope in zip(gradients, slopes, strict=True):
        close(gradient, slope, tolerance)
    assert host.complaints() == []


every_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
seeds = st.integers(0, 2**31)
gpus = st.sampled_from(["8.0", "8.6"])  # of which the first prefers split products
few = settings(max_examples=8)


# ---- every operator against the reference ----


@every_dtype
@few
@given(shape=st.sampled_from([(0,), (1,), (7,), (3, 40), (0, 5), (4, 0), (2, 3, 33), (2, 1030)]), seed=seeds)
def test_rank(library: Host, dtype, shape, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(shape).to(dtype)
    x = x.transpose(0, -1).contiguous().transpose(0, -1)  # not contiguous
    leaf = x.double().requires_grad_()
    expected = reference.rank(leaf, 2.0)
    grad = torch.randn(shape).to(arithmetic(dtype))
    ranks = torch.ops.dadl_simulated.rank(x, 2.0)
    assert ranks.dtype == arithmetic(dtype)
    assert torch.equal(ranks.double(), expected.detach())
    (slope,) = torch.autograd.grad(expected, leaf, grad.double())
    gradient = torch.ops.dadl_simulated.rank_backward(grad, x, ranks, 2.0)
    assert gradient.dtype == dtype
    if dtype == torch.float64:  # elsewhere the perturbation is rounded
        close(gradient, slope, 1e-12)
    assert library.complaints() == []


@pytest.mark.parametrize(("dtype", "longest"), [(torch.float32, 8192), (torch.float64, 6144)])
def test_rank_of_long_rows(host: Host, dtype: torch.dtype, longest: int) -> None:
    """By the library's sort, where a block's memory ends."""
    for n, sorts in ((longest, 0), (longest + 1, 1)):
        x = torch.randint(-50, 50, (3, n)).to(dtype)
        assert torch.equal(torch.ops.dadl_simulated.rank(x, 2.0), reference.rank(x))
        assert host.calls(LIBRARY) == sorts


def test_rank_of_many_long_rows(host: Host) -> None:
    """By the library's sort, in several parts."""
    x = torch.randn(520, 8200, dtype=torch.float16)
    assert torch.equal(torch.ops.dadl_simulated.rank(x[:, :8193], 2.0)[-1], reference.rank(x[-1:, :8193])[0])
    assert host.calls(LIBRARY) == 2


@every_dtype
@few
@given(
    n=st.sampled_from([0, 1, 2, 9, 33, 70]),
    d=st.sampled_from([0, 1, 3, 40]),
    label_dtype=st.sampled_from([torch.int64, *FLOATING]),
    similarity=st.sampled_from([None, "negative_l1"]),
    reduction=st.sampled_from(["sum", "mean"]),
    seed=seeds,
)
def test_ranksim_loss(library: Host, n, d, dtype, label_dtype, similarity, reduction, seed) -> None:
    torch.manual_seed(seed)
    features = torch.randint(-9, 10, (n, d)).to(dtype) if d < 3 or n >= 64 else torch.randn(n, d).to(dtype)
    labels = torch.randint(0, n + 1, (n,)).to(label_dtype)
    priority = draw_priority(labels, torch.Generator().manual_seed(1))
    matrix = None
    if similarity is not None:
        matrix = label_similarity_matrix(labels[reference.ranksim.select_subset(labels, priority)], similarity).double()
    leaf = features.double().requires_grad_()
    expected = reference.ranksim_loss(
        leaf, labels, reduction=reduction, label_similarity=matrix, generator=torch.Generator().manual_seed(1)
    )
    (slope,) = torch.autograd.grad(expected, leaf)
    arguments = features, labels, priority, matrix, 2.0, 1.0, reduction == "mean"
    loss, gradient = torch.ops.dadl_simulated.ranksim_loss(*arguments, True)
    close(loss, expected.detach(), 1e-5)
    close(gradient, slope, TOLERANCE[arithmetic(dtype)])
    alone, nothing = torch.ops.dadl_simulated.ranksim_loss(*arguments, False)
    assert torch.equal(alone, loss)
    assert nothing.shape == (0, d)
    assert library.complaints() == []


@every_dtype
@few
@given(n=st.sampled_from([0, 1, 9, 33]), vectors=st.booleans(), seed=seeds)
def test_ranksim_rows(library: Host, n, dtype, vectors, seed) -> None:
    torch.manual_seed(seed)
    features, labels = torch.randn(n, 6).to(dtype), torch.randint(0, n + 1, (n, 2) if vectors else (n,))
    priority = draw_priority(labels, torch.Generator().manual_seed(1))
    index, order, count = torch.ops.dadl_simulated.ranksim_select(labels, priority)
    chosen = reference.ranksim.select_subset(labels, priority)
    m = len(chosen)
    assert count.item() == m
    assert torch.equal(index[:m], chosen)
    matrix = label_similarity_matrix(labels[chosen], "negative_l1").double() if vectors else None
    leaf = features.double().requires_grad_()
    expected = reference.ranksim_loss(
        leaf, labels, reduction="none", label_similarity=matrix, generator=torch.Generator().manual_seed(1)
    )
    arguments = features, labels, index, order, count, matrix, 2.0, 1.0
    rows = torch.ops.dadl_simulated.ranksim_rows(*arguments)
    close(rows[:m], expected.detach(), 1e-5)
    assert not rows[m:].any()
    grad = torch.randn(n, dtype=arithmetic(dtype))
    (slope,) = torch.autograd.grad(expected, leaf, grad[:m].double())
    close(torch.ops.dadl_simulated.ranksim_rows_backward(grad, *arguments), slope, TOLERANCE[dtype])
    assert library.complaints() == []


@every_dtype
@few
@given(
    n=st.sampled_from([0, 1, 2, 9, 33, 70]),
    d=st.sampled_from([0, 1, 3, 40]),
    label_dtype=st.sampled_from([torch.int64, *FLOATING]),
    vectors=st.booleans(),
    similarity=st.sampled_from(SIMILARITIES),
    reduction=st.sampled_from(REDUCTIONS),
    seed=seeds,
)
def test_rank_n_contrast(library: Host, n, d, dtype, label_dtype, vectors, similarity, reduction, seed) -> None:
    torch.manual_seed(seed)
    features = torch.randn(n, d).to(dtype) + 2  # directions that do not vanish, in one dimension either
    labels = torch.randint(0, n + 1, (n, 2) if vectors else (n,)).to(label_dtype)
    leaf = features.double().requires_grad_()
    expected = reference.rank_n_contrast(leaf, labels, similarity=similarity, reduction=reduction)
    numbers = 2.0, SIMILARITIES.index(similarity), 0
    loss, gradient = torch.ops.dadl_simulated.rank_n_contrast(
        features, labels, *numbers, REDUCTIONS.index(reduction), True
    )
    close(loss, expected.detach(), 1e-5)
    (slope,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
    close(gradient, slope, TOLERANCE[arithmetic(dtype)])
    alone, nothing = torch.ops.dadl_simulated.rank_n_contrast(
        features, labels, *numbers, REDUCTIONS.index(reduction), False
    )
    assert torch.equal(alone, loss)
    assert nothing.shape == (0, d)
    if reduction == "none":
        grad = torch.randn(n, dtype=arithmetic(dtype))
        (slope,) = torch.autograd.grad(expected, leaf, grad.double())
        backward = torch.ops.dadl_simulated.rank_n_contrast_backward(grad, features, labels, *numbers)
        assert backward.dtype == dtype
        close(backward, slope, TOLERANCE[dtype])
    assert library.complaints() == []


@pytest.mark.parametrize(
    ("n", "launches", "sorts"),
    [(1, 8, 0), (64, 8, 0), (1024, 8, 0), (1025, 10, 0), (6144, 10, 0), (6145, 7 + 1 + 2 * 2 * 10, 2 * 10)],
)
@pytest.mark.parametrize("dtype", FLOATING)
def test_launches_of_ranksim(host: Host, n: int, launches: int, sorts: int, dtype: torch.dtype) -> None:
    """The subset, loss and gradient, nothing being computed. Beyond 1024 rows ranks and their comparison have launches
    of their own, and beyond 6144 the library sorts in parts of 4 Mi values."""
    labels, priority = torch.arange(n), torch.rand(n, dtype=torch.float64)
    features = torch.zeros(n, 5, dtype=dtype)
    host.run_dry()
    torch.ops.dadl_simulated.ranksim_loss(features, labels, priority, None, 2.0, 1.0, True, True)
    assert (host.calls(LAUNCH), host.calls(MEMSET)) == (launches, 0)
    assert host.calls(LIBRARY) == 2 + sorts  # the two products
    assert host.refusals == []


def test_rank_n_contrast_takes_at_most_eight_launches(host: Host) -> None:
    for values in (torch.rand(40), torch.rand(40, 2)):
        for similarity in (0, 1):
            before = host.calls(LAUNCH) + host.calls(LIBRARY)
            torch.ops.dadl_simulated.rank_n_contrast(torch.randn(40, 6), values, 2.0, similarity, 0, 1, True)
            assert host.calls(LAUNCH) + host.calls(LIBRARY) - before <= 8


@pytest.mark.parametrize("stored", [*zip(FLOATING, FLOATING, strict=True), (torch.float32, torch.float16)], ids=str)
@few
@given(
    b=st.sampled_from([0, 1, 5, 33, 70]),
    n=st.sampled_from([0, 1, 40, 130]),
    d=st.sampled_from([0, 1, 8, 33, 130]),
    masked=st.booleans(),
    exclude_self=st.booleans(),
    processors=st.sampled_from([1, 3, 132]),
    gpu=gpus,
    seed=seeds,
)
def test_similarity_logsumexp(library: Host, b, n, d, stored, masked, exclude_self, processors, gpu, seed) -> None:
    torch.manual_seed(seed)
    library.become(ARCHITECTURES[gpu])
    library.set_multiprocessors(processors)
    n = b if exclude_self else n
    query, key = torch.randn(b, d).to(stored[0]), torch.randn(n, d).to(stored[1])
    mask = torch.rand(n) < 0.7 if masked else None
    scale = max(d, 1) ** -0.5
    leaves = query.double().requires_grad_(), key.double().requires_grad_()
    expected = reference.similarity_logsumexp(*leaves, scale=scale, key_mask=mask, exclude_self=exclude_self)
    lse, slope = torch.ops.dadl_simulated.similarity_logsumexp(query, key, mask, scale, exclude_self, True)
    close(lse.exp(), expected.detach().exp(), 1e-5)
    met = expected > -torch.inf
    grad = torch.randn(b, dtype=lse.dtype)
    as_key = torch.ops.dadl_simulated.similarity_logsumexp_key_gradient(
        grad, query, key, mask, lse, scale, exclude_self
    )
    assert as_key.dtype == key.dtype
    if met.any():
        tolerance = max(TOLERANCE[dtype] for dtype in stored)
        (slopes,) = torch.autograd.grad(expected[met].sum(), leaves[0], retain_graph=True)
        close(slope, slopes, tolerance)
        (slopes,) = torch.autograd.grad((expected * grad)[met].sum(), leaves[1])
        close(as_key, slopes, tolerance)
    assert library.complaints() == []


@pytest.mark.parametrize(
    ("gpu", "dtype", "d", "split"),
    [
        *((gpu, torch.float32, 256, gpu not in ("8.6", "8.9", "12.0", "12.1")) for gpu in ARCHITECTURES),
        ("9.0", torch.float32, 257, False),
        ("9.0", torch.float64, 64, False),
        ("9.0", torch.float16, 64, False),
    ],
)
def test_split_products_where_tensor_cores_are_fast(
    host: Host, gpu: str, dtype: torch.dtype, d: int, split: bool
) -> None:
    host.become(ARCHITECTURES[gpu])
    host.run_dry()
    torch.ops.dadl_simulated.similarity_logsumexp(
        torch.randn(3, d).to(dtype), torch.randn(4, d).to(dtype), None, 1.0, False, True
    )
    assert host.refusals == []
    assert any("contrast_split" in name for name, _ in host.launches) == split


@pytest.mark.parametrize("stored", [*zip(FLOATING, FLOATING, strict=True), (torch.float32, torch.bfloat16)], ids=str)
@few
@given(
    b=st.sampled_from([0, 1, 5, 33]),
    classes=st.integers(1, 6),
    slots=st.sampled_from([0, 1, 9, 40]),
    d=st.sampled_from([1, 8, 33]),
    counted=st.booleans(),
    form=st.sampled_from(["cross_entropy", "kl"]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    gpu=gpus,
    seed=seeds,
)
def test_pseudo_group_contrast(
    library: Host, b, classes, slots, d, stored, counted, form, reduction, gpu, seed
) -> None:
    torch.manual_seed(seed)
    library.become(ARCHITECTURES[gpu])
    query, key = (torch.nn.functional.normalize(torch.randn(b, d), dim=1).to(stored[0]) for _ in range(2))
    queue = torch.nn.functional.normalize(torch.randn(classes, slots, d), dim=2).to(stored[1])
    target = torch.randint(-1, classes, (b,))
    counts = torch.randint(0, slots + 1, (classes,)) if counted else None
    leaf = query.double().requires_grad_()
    options = {"temperature": 0.5, "form": form, "ignore_index": -1, "slot_count": counts, "reduction": reduction}
    expected = reference.pseudo_group_contrast(leaf, key.double(), queue.double(), target, **options)
    number = ["none", "mean", "sum"].index(reduction)
    loss, slope = torch.ops.dadl_simulated.pseudo_group_contrast(
        query, key, queue, target, counts, 0.5, ["cross_entropy", "kl"].index(form), -1, number, True
    )
    tolerance = max(TOLERANCE[dtype] for dtype in stored)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=2e-6)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(expected.sum(), leaf)
        close(slope, gradient, tolerance)
    assert library.complaints() == []


@every_dtype
@few
@given(
    shape=st.sampled_from([(1, 3, 4), (3, 0, 5), (2, 4, 1), (5, 3, 2, 7), (3, 2, 600), (2, 2, 5000)]),
    measure=st.sampled_from(MEASURES),
    reduction=st.sampled_from(["none", "sum", "mean"]),
    seed=seeds,
)
def test_disagreement(library: Host, shape, measure, reduction, dtype, seed) -> None:
    torch.manual_seed(seed)
    predictions = torch.randn(shape).to(dtype)
    differentiable = 0 if measure == "softmax_l1" and dtype != torch.float64 else 1  # which of two is the larger
    compare(library, "disagreement", predictions, measure, differentiable=differentiable, reduction=reduction)


@every_dtype
@few
@given(
    batch=st.sampled_from([0, 1, 5, 17]),
    width=st.sampled_from([1, 40, 130]),
    outputs=st.sampled_from([1, 3, 8, 9, 20]),
    samples=st.integers(1, 5),
    with_bias=st.booleans(),
    processors=st.sampled_from([1, 132]),
    seed=seeds,
)
def test_dropout_linear(library: Host, batch, width, outputs, samples, dtype, with_bias, processors, seed) -> None:
    torch.manual_seed(seed)
    library.set_multiprocessors(processors)
    leaves = [torch.randn(batch, width), torch.randn(outputs, width) / width**0.5, torch.randn(outputs)]
    leaves = [leaf.to(dtype) for leaf in leaves[: 2 + with_bias]]
    compare(library, "dropout_linear", *leaves, differentiable=len(leaves), p=0.5, samples=samples, seed=seed)


@few
@given(
    batch=st.sampled_from([0, 1, 5, 17]),
    width=st.sampled_from([1, 40, 130]),
    outputs=st.sampled_from([1, 3, 8]),
    samples=st.sampled_from([1, 3, 16]),
    measure=st.sampled_from([measure for measure in MEASURES if measure != "softmax_l1"]),
    reduction=st.sampled_from(["sum", "mean"]),
    minimax=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    with_bias=st.booleans(),
    seed=seeds,
)
def test_dropout_disagreement(
    library: Host, batch, width, outputs, samples, measure, reduction, minimax, dtype, with_bias, seed
) -> None:
    torch.manual_seed(seed)
    leaves = [torch.randn(batch, width), torch.randn(outputs, width) / width**0.5, torch.randn(outputs)]
    leaves = [leaf.to(dtype) for leaf in leaves[: 2 + with_bias]]
    options = {"p": 0.5, "samples": samples, "seed": seed, "measure": measure, "minimax": minimax}
    compare(library, "dropout_disagreement", *leaves, differentiable=len(leaves), reduction=reduction, **options)


def test_dropout_disagreement_of_more_predictions_than_a_block_keeps(host: Host) -> None:
    leaves = torch.randn(5, 40), torch.randn(8, 40) / 7, torch.randn(8)
    compare(host, "dropout_disagreement", *leaves, differentiable=3, p=0.5, samples=130, seed=3, measure="mse")


# ---- what every operator must do ----


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(one, other, strict=True))


# Every operator, and once more those that prefer split products on some GPUs.
SPLIT = ["similarity_logsumexp", "similarity_logsumexp_key_gradient", "pseudo_group_contrast"]
WAYS = [*((name, "8.6") for name in OPERATORS), *((name, "8.0") for name in SPLIT)]


@pytest.fixture(params=WAYS, ids=lambda way: " on ".join(way))
def name(host: Host, request: pytest.FixtureRequest) -> str:
    """An operator, and a GPU for it."""
    name, architecture = request.param
    host.become(ARCHITECTURES[architecture])
    return name


def test_the_order_of_threads_does_not_matter(host: Host, name: str) -> None:
    values = arguments(name)
    expected = call(name, values)
    for order in (1, 2):
        host.set_order(order)
        assert same(call(name, values), expected)


def test_work_goes_to_the_device_and_the_stream_of_the_tensors(host: Host, name: str) -> None:
    values = arguments(name)
    expected = call(name, values)
    host.set_device(1)
    assert same(call(name, values), expected)
    host.use_side_stream()
    assert same(call(name, values), expected)
    assert host.calls(LAUNCH) > 0


def test_tensors_of_several_devices_are_refused(host: Host, name: str) -> None:
    values = arguments(name)
    positions = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    for position in positions if len(positions) > 1 else ():
        other = list(values)
        other[position] = values[position].clone()
        host.put(other[position].data_ptr(), 1)
        with pytest.raises(RuntimeError, match=r"on (the|one) device"):
            call(name, tuple(other))
        host.put(other[position].data_ptr(), 0)


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_tensor_of_another_device_is_refused(host: Host, name: str) -> None:
    _, tensor = OPTIONAL[name]
    values = arguments_with(name, tensor)
    call(name, values)
    host.put(tensor.data_ptr(), 1)
    with pytest.raises(RuntimeError, match=r"on (the|one) device"):
        call(name, values)
    host.put(tensor.data_ptr(), 0)


@pytest.mark.parametrize("size", [(25, 24), (41, 41)])
@pytest.mark.parametrize("name", ["ranksim_loss", "ranksim_rows", "ranksim_rows_backward"])
def test_a_matrix_of_another_size_is_refused(host: Host, name: str, size: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"label_similarity must be (a square matrix, )?\[m, m\]"):
        call(name, arguments_with(name, torch.randn(size)))


def apart(value: object) -> object:
    """A tensor of the same values, between which others lie."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return torch.stack([value, value.flip(-1)], dim=-1)[..., 0]


def test_tensors_are_read_by_their_strides(host: Host, name: str) -> None:
    with_optional = [arguments_with(name, OPTIONAL[name][1])] if name in OPTIONAL else []
    for values in (arguments(name), *with_optional):
        assert same(call(name, tuple(map(apart, values))), call(name, values))


def test_a_graph_can_capture_it(host: Host, name: str) -> None:
    values = arguments(name)
    host.begin_capture()
    call(name, values)


@pytest.mark.parametrize("kind", [ALLOCATION, LAUNCH, MEMSET, LIBRARY], ids=["memory", "launch", "memset", "library"])
def test_every_call_may_fail(host: Host, name: str, kind: int) -> None:
    """The operator raises, leaks nothing, and the next call works."""
    values = arguments(name)
    expected = call(name, values)
    before, held = host.calls(kind), host.allocated()
    call(name, values)
    calls = host.calls(kind) - before
    for number in range(1, calls + 1):
        host.fail(kind, number)
        error = torch.OutOfMemoryError if kind == ALLOCATION else RuntimeError
        with pytest.raises(error, match="out of memory" if kind == ALLOCATION else None) as caught:
            call(name, values)
        del caught
        host.assert_clean(held)
        assert same(call(name, values), expected)


def test_calls_that_fail_were_there(host: Host) -> None:
    """The batches above reach allocations, launches, memsets and the library."""
    for name in OPERATORS:
        call(name, arguments(name))
    assert all(host.calls(kind) > 0 for kind in (ALLOCATION, LAUNCH, MEMSET, LIBRARY))


def test_gpus_before_ampere_are_refused(host: Host) -> None:
    host.set_capability(7, 5, 64 << 10)
    with pytest.raises(RuntimeError, match=r"need a GPU of compute capability 8\.0 \(Ampere\) or newer"):
        torch.ops.dadl_simulated.rank(torch.randn(3), 1.0)
