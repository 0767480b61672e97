"""The CUDA kernels of dropout, run on the host, against the reference in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import EXAMPLES, FLOATING, arithmetic, close, in_every_order, name, to_numpy, to_torch
from torch import Tensor

from dadl_ext import reference
from dadl_ext._shared.members import MEASURES
from dadl_ext.reference.dropout import dropout_masks

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TILE = 8 << 20  # elements, as on CUDA

seeds = st.integers(-(2**63), 2**63 - 1)
multiprocessors = st.sampled_from([1, 2, 100])


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
        gradient, weight_gradient = in_every_order(simulator.dropout_linear_backward, task, grad.numpy(), True, True)
        assert np.array_equal(gradient != 0, expected[k].numpy())
        assert np.array_equal(weight_gradient[0] != 0, expected[k].any(0).numpy())
    powers = 2.0 ** (torch.arange(width) % 50)  # of which no sum of fifty loses any
    weight[0] = powers * (torch.arange(width) // 50 == width // 50)
    scale = 65536 / (65536 - round(p * 65536))
    task = dropouts(simulator, features, weight, None, p, samples, seed, tile=1000)
    result = in_every_order(simulator.dropout_linear, task)[..., 0]
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
    result = to_torch(in_every_order(simulator.dropout_linear, task), dtype)
    assert result.shape == (samples, batch, outputs)
    assert result.dtype == (dtype if outputs <= 8 else arithmetic(dtype))
    close(result, expected, TOLERANCE[result.dtype])
    grad = upstream.to(arithmetic(dtype)).numpy()
    both = in_every_order(simulator.dropout_linear_backward, task, grad, True, True)
    for gradient, slope in zip(both, slopes, strict=False):
        assert to_torch(gradient, dtype).dtype == result.dtype
        close(to_torch(gradient, dtype), slope, TOLERANCE[result.dtype])
    for wanted in ((True, False), (False, True)):
        alone = in_every_order(simulator.dropout_linear_backward, task, grad, *wanted)
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
    rows, *grads = map(torch.from_numpy, in_every_order(simulator.dropout_disagreement, *arguments, True))
    alone, *nothing = in_every_order(simulator.dropout_disagreement, *arguments, False)
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


@pytest.mark.parametrize("samples", [1, 5, 33])
@pytest.mark.parametrize("outputs", [1, 3])
def test_rows_of_more_groups_than_a_block_has_teams(simulator, outputs: int, samples: int) -> None:
    torch.manual_seed(0)
    check_fused(simulator, head(3, 2200, outputs, torch.float64), True, samples, 5, "mse")


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
    result = torch.from_numpy(in_every_order(simulator.dropout_linear, task))
    assert result.isnan().all(0).all(1).tolist() == [False, False, True, False]
    assert result[:, [0, 1, 3]].isfinite().all()
    grad = np.ones((3, 4, outputs), dtype=np.float32)
    _, weight_gradient = in_every_order(simulator.dropout_linear_backward, task, grad, True, True)
    assert np.isnan(weight_gradient).all(0).nonzero()[0].tolist() == [7]
    if outputs <= 8:
        rows, *_ = in_every_order(simulator.dropout_disagreement, task, 1, False, False, True)
        assert np.isnan(rows).tolist() == [False, False, True, False]
