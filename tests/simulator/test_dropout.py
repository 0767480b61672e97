"""The CUDA kernels of disagreement and dropout, run on the host by tests/simulator, against the reference in float64.

Every result is computed in forward and in reverse thread order and must be the same to the bit. test_simulator.py runs
the file again under sanitizers.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import build
from simulator.helpers import EXAMPLES, FLAVOUR, FLOATING, arithmetic, in_both_orders, name, to_numpy, to_torch
from torch import Tensor

from dadl_ext import reference
from dadl_ext._members import CLASS_MEASURES, MEASURES
from dadl_ext.reference.dropout import dropout_masks

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TILE = 8 << 20  # elements, as on CUDA

seeds = st.integers(-(2**63), 2**63 - 1)
multiprocessors = st.sampled_from([1, 2, 100])


@pytest.fixture(scope="session")
def simulator():
    return build.load(FLAVOUR)


def close(actual: Tensor, expected: Tensor, tolerance: float, least: float = 1e-30) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * max(scale, least))


# ---- disagreement ----


def disagree(simulator, x: Tensor, measure: str, mean: bool = False) -> tuple[Tensor, Tensor]:
    """Rows and gradient of [K, B, R, C]; the rows alone must be the same."""
    arguments = to_numpy(x), name(x.dtype), MEASURES.index(measure), mean
    rows, gradient = in_both_orders(simulator.disagreement, *arguments, True)
    alone, nothing = in_both_orders(simulator.disagreement, *arguments, False)
    assert alone.tobytes() == rows.tobytes()
    assert nothing.shape == (0, *x.shape[1:])
    return torch.from_numpy(rows), torch.from_numpy(gradient)


def check_disagreement(simulator, x: Tensor, measure: str) -> None:
    leaf = x.double().requires_grad_()
    shaped = leaf if measure in CLASS_MEASURES else leaf.flatten(2)
    expected = reference.disagreement(shaped, measure, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    rows, gradient = disagree(simulator, x, measure)
    assert rows.dtype == gradient.dtype == arithmetic(x.dtype)
    exact = 1e-11 if x.dtype == torch.float64 else 2e-5
    magnitude = max(1.0, x.abs().max().item() if x.numel() else 1.0)
    torch.testing.assert_close(rows.double(), expected.detach(), rtol=exact, atol=exact * 1e-2 * magnitude)
    if measure != "softmax_l1" or x.dtype == torch.float64:  # else rounding may change which probability is the larger
        scale = slope.abs().max().item() if slope.numel() else 0.0
        atol = exact * max(scale, magnitude / max(1, slope.numel()))
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=atol)
    means, mean_gradient = disagree(simulator, x, measure, True)
    batch = max(x.shape[1], 1)
    torch.testing.assert_close(means * batch, rows, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(mean_gradient * batch, gradient, rtol=1e-6, atol=1e-30)


@settings(max_examples=EXAMPLES // 2)
@given(
    measure=st.sampled_from(MEASURES),
    members=st.integers(1, 9) | st.just(33),
    batch=st.integers(0, 5),
    rows=st.integers(1, 4),
    classes=st.integers(1, 9) | st.sampled_from([15, 16, 17, 31, 32, 33, 64, 130]),
    dtype=st.sampled_from(FLOATING),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    near=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_disagreement(simulator, measure, members, batch, rows, classes, dtype, spread, near, ties, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(members, batch, rows, classes) * spread
    x = x[:1] + 1e-2 * x if near else x
    check_disagreement(simulator, (x.round() if ties else x).to(dtype), measure)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shape", [(3, 2, 1, 513), (2, 1, 2, 4100), (2, 2, 1, 9000)])
def test_disagreement_of_long_rows(simulator, measure: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.bfloat16):
        check_disagreement(simulator, torch.randn(shape).to(dtype), measure)


@pytest.mark.parametrize("measure", CLASS_MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [6, 600])
def test_any_finite_logits_give_finite_values(simulator, measure: str, dtype: torch.dtype, classes: int) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([0.0, 1e4, -1e4, 1e30, -1e30, largest, -largest], dtype=dtype)
    torch.manual_seed(0)
    for members in (5, 100 if classes == 6 else 5):
        x = values[torch.randint(len(values), (members, 20, 1, classes))]
        rows, gradient = disagree(simulator, x, measure)
        assert rows.isfinite().all()
        assert (rows >= -1e-6).all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("members", [1, 2, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(simulator, measure: str, members: int, value: float) -> None:
    for classes in (5, 520):
        x = torch.randn(members, 3, 1, classes)
        x[-1, 1, 0, 2] = value
        rows, gradient = disagree(simulator, x, measure)
        if value != value or measure not in ("l1", "js"):  # an infinite l1 is infinite
            assert rows.isnan().tolist() == [False, True, False]
        else:
            assert rows.isfinite().tolist() == [True, False, True]
        assert gradient[:, 1].isnan().any() or not gradient[:, 1].isfinite().all() or measure == "l1"
        assert gradient[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("measure", MEASURES)
def test_one_member_agrees_with_itself(simulator, measure: str) -> None:
    for classes in (1, 7, 600):
        rows, gradient = disagree(simulator, torch.randn(1, 3, 2, classes), measure)
        assert rows.abs().max() < 1e-6
        assert gradient.abs().max() < 1e-6


def test_nearly_equal_members_keep_their_digits(simulator) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 1, 100) + 1e-3 * torch.randn(4, 16, 1, 100)
    for measure in ("mse", "variance", "js", "symmetric_kl"):
        leaf = x.double().requires_grad_()
        exact = reference.disagreement(leaf, measure, reduction="none")
        (slope,) = torch.autograd.grad(exact.sum(), leaf)
        rows, gradient = disagree(simulator, x, measure)
        torch.testing.assert_close(rows.double(), exact.detach(), rtol=1e-3, atol=0)
        close(gradient, slope, 1e-3)


# ---- dropout ----


def dropouts(simulator, features, weight, bias, p, samples, seed, *, tile=TILE, processors=1):
    sides = to_numpy(features), to_numpy(weight), None if bias is None else to_numpy(bias), name(features.dtype)
    return simulator.Dropouts(*sides, np.array([seed]), round(p * 65536), samples, tile, processors)


def head(batch: int, width: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, width).to(dtype),
        (torch.randn(outputs, width) / width**0.5).to(dtype),
        torch.randn(outputs).to(dtype),
    )


widths = st.integers(1, 40) | st.sampled_from([127, 128, 129, 300])
probabilities = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1 / 65536])


@settings(max_examples=EXAMPLES // 2)
@given(
    seed=seeds,
    samples=st.integers(1, 4) | st.just(17),
    rows=st.integers(0, 5),
    width=widths,
    many=st.booleans(),
    p=probabilities,
)
def test_masks_are_those_of_the_reference(simulator, seed, samples, rows, width, many, p) -> None:
    """In the gradients that weights of 1 and one member's upstream gradient give, and in predictions of one feature."""
    outputs = 9 if many else 1
    expected = dropout_masks(seed, samples, rows, width, p)
    weight = torch.zeros(outputs, width, dtype=torch.float64)
    weight[0] = 1
    features = torch.ones(rows, width, dtype=torch.float64)
    task = dropouts(simulator, features, weight, None, p, samples, seed, tile=1000)
    for k in range(samples):
        grad = torch.zeros(samples, rows, outputs, dtype=torch.float64)
        grad[k, :, 0] = 1
        gradient, weight_gradient = in_both_orders(simulator.dropout_linear_backward, task, grad.numpy(), True, True)
        assert np.array_equal(gradient != 0, expected[k].numpy())
        assert np.array_equal(weight_gradient[0] != 0, expected[k].any(0).numpy())
    powers = 2.0 ** (torch.arange(width) % 50)  # of which no sum of fifty loses any
    weight[0] = powers * (torch.arange(width) // 50 == width // 50)
    scale = 65536 / (65536 - round(p * 65536))
    task = dropouts(simulator, features, weight, None, p, samples, seed, tile=1000)
    result = in_both_orders(simulator.dropout_linear, task)[..., 0]
    np.testing.assert_allclose(result, ((expected * weight[0]).sum(-1) * scale).numpy(), rtol=1e-15)


def gradients(function, *leaves: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    leaves = tuple(leaf.double().requires_grad_() for leaf in leaves)
    value = function(*leaves)
    upstream = torch.arange(value.numel()).remainder(3).reshape(value.shape) / 2 + 0.5  # exact in every dtype
    return value.detach(), upstream, torch.autograd.grad((value * upstream).sum(), leaves)


@settings(max_examples=EXAMPLES // 2)
@given(
    batch=st.integers(0, 6) | st.sampled_from([17, 40]),
    width=widths,
    outputs=st.integers(1, 12),
    samples=st.integers(1, 5) | st.sampled_from([16, 17, 35]),
    p=probabilities,
    dtype=st.sampled_from(FLOATING),
    with_bias=st.booleans(),
    tile=st.sampled_from([1, 500, TILE]),
    processors=multiprocessors,
    seed=seeds,
)
def test_dropout_linear(simulator, batch, width, outputs, samples, p, dtype, with_bias, tile, processors, seed) -> None:
    torch.manual_seed(seed % 2**32)
    features, weight, bias = head(batch, width, outputs, dtype)
    leaves = (features, weight, bias) if with_bias else (features, weight)
    options = {"p": p, "samples": samples, "seed": seed}
    expected, upstream, slopes = gradients(lambda *x: reference.dropout_linear(*x, **options), *leaves)
    bias_or_none = bias if with_bias else None
    task = dropouts(simulator, features, weight, bias_or_none, p, samples, seed, tile=tile, processors=processors)
    result = to_torch(in_both_orders(simulator.dropout_linear, task), dtype)
    assert result.shape == (samples, batch, outputs)
    assert result.dtype == (dtype if outputs <= 8 else arithmetic(dtype))
    close(result, expected, TOLERANCE[result.dtype])
    grad = upstream.to(arithmetic(dtype)).numpy()
    both = in_both_orders(simulator.dropout_linear_backward, task, grad, True, True)
    for gradient, slope in zip(both, slopes, strict=False):
        assert to_torch(gradient, dtype).dtype == result.dtype
        close(to_torch(gradient, dtype), slope, TOLERANCE[result.dtype])
    for wanted in ((True, False), (False, True)):
        alone = in_both_orders(simulator.dropout_linear_backward, task, grad, *wanted)
        for one, other, is_wanted in zip(alone, both, wanted, strict=True):
            assert one.tobytes() == other.tobytes() if is_wanted else one.shape == (0, width)


@settings(max_examples=EXAMPLES // 2)
@given(
    batch=st.integers(0, 6) | st.sampled_from([17, 40]),
    width=widths,
    outputs=st.integers(1, 8),
    samples=st.integers(1, 6) | st.sampled_from([16, 17]),
    measure=st.sampled_from(MEASURES),
    mean=st.booleans(),
    minimax=st.booleans(),
    dtype=st.sampled_from(FLOATING),
    with_bias=st.booleans(),
    processors=multiprocessors,
    seed=seeds,
)
def test_dropout_disagreement(
    simulator, batch, width, outputs, samples, measure, mean, minimax, dtype, with_bias, processors, seed
) -> None:
    torch.manual_seed(seed % 2**32)
    leaves = head(batch, width, outputs, dtype)
    if not with_bias:
        leaves[2].zero_()
    check_fused(simulator, leaves, with_bias, samples, seed, measure, mean, minimax, processors)


def check_fused(simulator, leaves, with_bias, samples, seed, measure, mean=False, minimax=False, processors=1) -> None:
    features, weight, bias = leaves
    dtype = features.dtype
    options = {"p": 0.5, "samples": samples, "seed": seed, "measure": measure, "minimax": minimax}
    wide = tuple(leaf.double().requires_grad_() for leaf in leaves)
    expected = reference.dropout_disagreement(*wide, **options, reduction="none") / (
        max(len(features), 1) if mean else 1
    )
    slopes = torch.autograd.grad(expected.sum(), wide)
    task = dropouts(simulator, features, weight, bias if with_bias else None, 0.5, samples, seed, processors=processors)
    arguments = task, MEASURES.index(measure), mean, minimax
    rows, *grads = map(torch.from_numpy, in_both_orders(simulator.dropout_disagreement, *arguments, True))
    alone, *nothing = in_both_orders(simulator.dropout_disagreement, *arguments, False)
    assert alone.tobytes() == rows.numpy().tobytes()
    assert not any(gradient.size for gradient in nothing)
    assert rows.dtype == arithmetic(dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    close(rows, expected.detach(), tolerance, 1e-3)
    if measure == "softmax_l1" and dtype != torch.float64:
        return  # rounding may change which of two members is the larger
    # The bias's gradient may be nothing but rounding: it is a sum of what cancels between members.
    largest = max([0.1, *(slope.abs().max().item() for slope in slopes if slope.numel())])
    for gradient, slope in zip(grads, slopes, strict=True):
        close(gradient, slope, tolerance, largest)


@pytest.mark.parametrize("measure", ["mse", "js"])  # the reference would take long over the pairs of the others
def test_more_predictions_than_a_block_keeps(simulator, measure: str) -> None:
    torch.manual_seed(0)
    for samples in (128, 129):
        check_fused(simulator, head(2, 20, 8, torch.float64), True, samples, 3, measure)


@pytest.mark.parametrize("outputs", [2, 11])
def test_nan_stays_visible(simulator, outputs: int) -> None:
    """Also where the feature is dropped, as in PyTorch's own dropout."""
    features, weight, bias = head(4, 30, outputs, torch.float32)
    features[2, 7] = torch.nan
    task = dropouts(simulator, features, weight, bias, 0.5, 3, 1)
    result = torch.from_numpy(in_both_orders(simulator.dropout_linear, task))
    assert result.isnan().all(0).all(1).tolist() == [False, False, True, False]
    assert result[:, [0, 1, 3]].isfinite().all()
    grad = np.ones((3, 4, outputs), dtype=np.float32)
    _, weight_gradient = in_both_orders(simulator.dropout_linear_backward, task, grad, True, True)
    assert np.isnan(weight_gradient).all(0).nonzero()[0].tolist() == [7]
    if outputs <= 8:
        rows, *_ = in_both_orders(simulator.dropout_disagreement, task, 1, False, False, True)
        assert np.isnan(rows).tolist() == [False, False, True, False]
