"""Linear maps under dropout masks from a counter-based generator, and the disagreement of their results."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.devices import DEVICES, DTYPES
from support.gradients import gradients
from torch import Tensor

from dadl_ext import functional, reference
from dadl_ext._shared.members import MEASURES
from dadl_ext.reference.dropout import dropout_masks, philox

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    actual, expected = actual.cpu().double(), expected.cpu().double()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale + 1e-30)


# ---- masks ----


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that Random123 publishes for philox4x32-10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    words = tuple(torch.tensor(int(word, 16)) for word in counter.split())
    low, high = (torch.tensor(int(word, 16)) for word in key.split())
    assert [f"{int(word):08x}" for word in philox(words, (low, high))] == expected.split()


def masks(seed: int, samples: int, rows: int, features: int, p: float, device: str) -> Tensor:
    """The operator's masks: the gradients that one feature's weight of 1 gives."""
    options = {"dtype": torch.float64, "device": device}
    weight = torch.ones(1, features, **options)
    out = torch.zeros(samples, rows, features, dtype=torch.bool)
    for k in range(samples):
        grad = torch.zeros(samples, rows, 1, **options)
        grad[k] = 1
        gradient, _ = torch.ops.dadl.dropout_linear_backward(
            *(grad, torch.zeros(rows, features, **options), weight),
            *(torch.tensor(seed, device=device), p, True, False),
        )
        out[k] = (gradient != 0).cpu()
    return out


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    samples=st.integers(1, 4),
    rows=st.integers(0, 5),
    features=st.integers(1, 400),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1 / 65536]),
)
def test_masks_are_those_of_the_reference(device, seed, samples, rows, features, p) -> None:
    assert torch.equal(masks(seed, samples, rows, features, p, device), dropout_masks(seed, samples, rows, features, p))


@pytest.mark.parametrize("device", DEVICES)
def test_draws_at_the_threshold_are_kept(device: str) -> None:
    """Of half a million draws some are 0, the threshold of p = 0."""
    assert masks(1, 8, 64, 1024, 0.0, device).all()


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_masks_are_the_same_on_every_processor(capability: str) -> None:
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    tests = ["test_masks_are_those_of_the_reference", "test_draws_at_the_threshold_are_kept", "test_dropout_linear"]
    command = [sys.executable, "-m", "pytest", "-q", *(f"{__file__}::{test}" for test in tests)]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def test_masks_are_random() -> None:
    """Frequencies, and independence of neighbouring features, rows, members and seeds, within five deviations."""
    samples, rows, features = 8, 64, 1024
    for p in (0.5, 0.1):
        keep = dropout_masks(1234, samples, rows, features, p).double()
        count = keep.numel()
        deviation = math.sqrt(p * (1 - p))
        assert abs(keep.mean().item() - (1 - p)) < 5 * deviation / math.sqrt(count)
        for dim in range(3):  # each member's, row's and feature's own frequency
            other = tuple(d for d in range(3) if d != dim)
            bound = 5 * deviation / math.sqrt(count / keep.shape[dim])
            assert (keep.mean(dim=other) - (1 - p)).abs().max() < bound
        centred = (keep - (1 - p)) / deviation
        lags = [(2, 1), (2, 16), (2, 32), (2, 128), (1, 1), (0, 1)]
        others = [centred.roll(lag, dims=dim) for dim, lag in lags]
        others.append((dropout_masks(1235, samples, rows, features, p).double() - (1 - p)) / deviation)
        others.append((dropout_masks(1234 + 2**32, samples, rows, features, p).double() - (1 - p)) / deviation)
        for other in others:
            assert abs((centred * other).mean().item()) < 5 / math.sqrt(count)


def test_runs_of_masks_are_random() -> None:
    """The serial test: all patterns of four neighbouring draws are equally frequent (chi-squared, 15 degrees)."""
    keep = dropout_masks(7, 4, 64, 4096, 0.5).reshape(-1, 4).long()
    observed = torch.bincount(keep @ torch.tensor([1, 2, 4, 8]), minlength=16).double()
    expected = observed.sum() / 16
    assert ((observed - expected) ** 2 / expected).sum() < 50


# ---- values and gradients ----


def head(
    batch: int, width: int, outputs: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, width).to(device, dtype),
        (torch.randn(outputs, width) / width**0.5).to(device, dtype),
        torch.randn(outputs).to(device, dtype),
    )


@pytest.mark.parametrize("device", DEVICES)
@given(
    batch=st.integers(0, 6) | st.just(40),
    width=st.integers(1, 40) | st.sampled_from([127, 128, 129, 300, 600]),
    outputs=st.integers(1, 12) | st.just(40),
    samples=st.integers(1, 5),
    p=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    dtype=st.sampled_from(DTYPES),
    with_bias=st.booleans(),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_dropout_linear(device, batch, width, outputs, samples, p, dtype, with_bias, seed) -> None:
    torch.manual_seed(seed % 2**32)
    features, weight, bias = head(batch, width, outputs, dtype)
    leaves = (features, weight, bias) if with_bias else (features, weight)
    options = {"p": p, "samples": samples, "seed": seed}
    expected, slopes = gradients(lambda *x: reference.dropout_linear(*x, **options), *(x.double() for x in leaves))
    actual, grads = gradients(lambda *x: functional.dropout_linear(*x, **options), *(x.to(device) for x in leaves))
    assert actual.shape == (samples, batch, outputs)
    assert actual.dtype == dtype
    close(actual, expected, TOLERANCE[dtype])
    for gradient, slope in zip(grads, slopes, strict=True):
        close(gradient, slope, TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", [1, 3, 11])
def test_dropout_linear_any_derivative(device: str, outputs: int) -> None:
    torch.manual_seed(0)
    leaves = tuple(x.requires_grad_() for x in head(3, 9, outputs, torch.float64, device))
    options = {"p": 0.4, "samples": 2, "seed": 5}
    assert torch.autograd.gradcheck(lambda *x: functional.dropout_linear(*x, **options), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: functional.dropout_linear(*x, **options).square(), leaves)


def test_dropout_linear_of_many_dimensions_and_strides(device: str) -> None:
    features, weight, bias = head(12, 30, 2, torch.float32, device)
    seed = torch.tensor(1, device=device)
    flat = functional.dropout_linear(features, weight, bias, p=0.5, samples=3, seed=1)
    folded = functional.dropout_linear(features.view(3, 4, 30), weight, bias, p=0.5, samples=3, seed=seed)
    assert torch.equal(folded.view(3, 12, 2), flat)
    strided = features.T.contiguous().T
    assert torch.equal(
        functional.dropout_linear(strided, weight.T.contiguous().T, bias, p=0.5, samples=3, seed=1), flat
    )


def test_dropout_keeps_the_expectation(device: str) -> None:
    features, weight, bias = head(4, 500, 1, torch.float64, device)
    mean = functional.dropout_linear(features, weight, bias, p=0.3, samples=4000, seed=3).mean(dim=0)
    deviation = 5 * ((features**2 @ weight.T**2) * 0.3 / 0.7 / 4000).sqrt()
    assert ((mean - torch.nn.functional.linear(features, weight, bias)).abs() < deviation).all()


@pytest.mark.parametrize("device", DEVICES)
@given(
    batch=st.integers(1, 6) | st.just(40),
    width=st.integers(1, 40) | st.sampled_from([128, 300]),
    outputs=st.integers(1, 11),
    samples=st.integers(1, 6) | st.just(35),
    measure=st.sampled_from(MEASURES),
    minimax=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from(DTYPES),
    with_bias=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_dropout_disagreement(
    device, batch, width, outputs, samples, measure, minimax, reduction, dtype, with_bias, seed
) -> None:
    torch.manual_seed(seed % 2**32)
    features, weight, bias = head(batch, width, outputs, dtype)
    leaves = (features, weight, bias) if with_bias else (features, weight)
    options = {
        "p": 0.5,
        "samples": samples,
        "seed": seed,
        "measure": measure,
        "minimax": minimax,
        "reduction": reduction,
    }
    expected, slopes = gradients(
        lambda *x: reference.dropout_disagreement(*x, **options), *(x.double() for x in leaves)
    )
    actual, grads = gradients(
        lambda *x: functional.dropout_disagreement(*x, **options), *(x.to(device) for x in leaves)
    )
    # Beyond the few outputs, or row by row, the predictions are rounded to half precision on their way.
    tolerance = 10 * TOLERANCE[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=tolerance, atol=tolerance * max(scale, 1e-3))
    if measure in ("l1", "softmax_l1") and dtype in (torch.float16, torch.bfloat16):
        return  # rounding may change which of two members is the larger
    # The bias's gradient is a sum that cancels for most measures: it is measured by the others.
    largest = max(slope.abs().max().item() for slope in slopes)
    for gradient, slope in zip(grads, slopes, strict=True):
        reach = max(slope.abs().max().item() if slope.dim() == 2 else largest, 1e-2)
        torch.testing.assert_close(gradient.cpu().double(), slope, rtol=tolerance, atol=tolerance * reach)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_minimax_reverses_the_head_alone(device: str, reduction: str) -> None:
    leaves = head(8, 50, 2, torch.float64, device)
    options = {"p": 0.5, "samples": 4, "seed": 9, "reduction": reduction}
    plain = gradients(lambda *x: functional.dropout_disagreement(*x, **options), *leaves)
    game = gradients(lambda *x: functional.dropout_disagreement(*x, **options, minimax=True), *leaves)
    assert torch.equal(game[0], plain[0])
    assert torch.equal(game[1][0], plain[1][0])
    assert torch.equal(game[1][1], -plain[1][1])
    assert torch.equal(game[1][2], -plain[1][2])
    assert plain[1][1].abs().max() > 0


@pytest.mark.parametrize("measure", MEASURES)
def test_dropout_disagreement_gradient_is_exact(device: str, measure: str) -> None:
    torch.manual_seed(0)
    leaves = tuple(x.requires_grad_() for x in head(3, 7, 3, torch.float64, device))
    options = {"p": 0.4, "samples": 3, "seed": 5, "measure": measure}
    assert torch.autograd.gradcheck(lambda *x: functional.dropout_disagreement(*x, **options), leaves)


@pytest.mark.parametrize("outputs", [1, 3, 8, 11])
def test_every_way_matches_the_reference(device: str, dtype: torch.dtype, outputs: int) -> None:
    """Few examples, one of each: what also runs under a GPU's own sanitizers."""
    leaves = head(20, 150, outputs, dtype, device)
    wide = tuple(leaf.double() for leaf in leaves)
    for samples in (2, 17, 130):
        for name, more in (
            ("dropout_linear", {}),
            ("dropout_disagreement", {"measure": "js" if outputs > 1 else "mse"}),
        ):
            options = {"p": 0.5, "samples": samples, "seed": -3, **more}
            own, other = getattr(functional, name), getattr(reference, name)
            actual, grads = gradients(lambda *x, f=own, o=options: f(*x, **o), *leaves)
            expected, slopes = gradients(lambda *x, f=other, o=options: f(*x, **o), *wide)
            tolerance = 10 * TOLERANCE[dtype]
            close(actual, expected, tolerance)
            for gradient, slope in zip(grads, slopes, strict=True):
                atol = tolerance * max(slope.abs().max().item(), 1e-2)
                torch.testing.assert_close(gradient.double(), slope, rtol=tolerance, atol=atol)


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@pytest.mark.parametrize("outputs", [3, 11])
def test_a_graph_captures_them_and_reads_the_seed_anew(outputs: int) -> None:
    leaves, seed = head(20, 150, outputs, torch.float32, "cuda"), torch.tensor(1, device="cuda")
    options = {"p": 0.5, "samples": 4, "seed": seed}

    def step() -> tuple[Tensor, ...]:
        linear, grads = gradients(lambda *x: functional.dropout_linear(*x, **options), *leaves)
        loss, fused = gradients(lambda *x: functional.dropout_disagreement(*x, **options, measure="js"), *leaves)
        return linear, *grads, loss, *fused

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for value in (5, -7):
        seed.fill_(value)
        graph.replay()
        for actual, expected in zip(captured, step(), strict=True):
            assert torch.equal(actual, expected)


# ---- as operators of PyTorch ----


def calls(device: str) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    leaves = tuple(value.requires_grad_() for value in head(6, 20, 3, torch.float32, device))
    options: dict[str, Any] = {"p": 0.5, "samples": 3, "seed": torch.tensor(1, device=device)}
    return {
        "dropout_linear": (lambda *x: functional.dropout_linear(*x, **options).square().mean(), leaves),
        "dropout_disagreement": (lambda *x: functional.dropout_disagreement(*x, **options), leaves),
    }


@pytest.mark.parametrize("name", ["dropout_linear", "dropout_disagreement"])
def test_compile(device: str, name: str) -> None:
    function, leaves = calls(device)[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager, traced = (torch.autograd.grad(f(*leaves), leaves) for f in (function, compiled))
    for a, b in zip(eager, traced, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivative_raises(device: str) -> None:
    function, leaves = calls(device)["dropout_disagreement"]
    (gradient, *_) = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["dropout_linear", "dropout_disagreement"])
def test_forward_mode_raises(device: str, name: str) -> None:
    function, leaves = calls(device)[name]
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.make_dual(leaf.detach(), torch.ones_like(leaf)) for leaf in leaves]
        with pytest.raises(NotImplementedError, match="forward-mode"):
            function(*dual)


def test_autocast_computes_in_float32(device: str) -> None:
    features, weight, bias = head(6, 20, 3, torch.float32, device)
    options = {"p": 0.5, "samples": 3, "seed": 1}
    low = features.bfloat16().requires_grad_()
    weight.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        predictions = functional.dropout_linear(low, weight, bias, **options)
        loss = functional.dropout_disagreement(low, weight, bias, **options)
        same = functional.disagreement(predictions, "mse")
    assert predictions.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(loss, same)
    (loss + predictions.sum()).backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"p": 1.0}, ValueError, "p must be in"),
        ({"p": math.nan}, ValueError, "p must be in"),
        ({"p": 1e-6}, ValueError, "round to 0"),
        ({"samples": 0}, ValueError, "samples"),
        ({"seed": 2**63}, ValueError, "64 bits"),
        ({"weight": torch.randn(3, 19)}, ValueError, r"weight \(3, 19\)"),
        ({"bias": torch.randn(2)}, ValueError, "same number of outputs"),
        ({"weight": torch.randn(3, 20, dtype=torch.float64)}, TypeError, "weight is torch.float64"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": torch.ones(1)}, TypeError, "one int64"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    features, weight, bias = head(6, 20, 3, torch.float32)
    arguments = {"features": features, "weight": weight, "bias": bias, "p": 0.5, "samples": 3, "seed": 1} | changed
    for module in (functional, reference):
        for name in ("dropout_linear", "dropout_disagreement"):
            with pytest.raises(error, match=message):
                getattr(module, name)(**arguments)


def test_dropout_disagreement_holds_no_masks() -> None:
    """Peak memory beyond inputs and gradients, in a process of its own: B = F = 4096, K = 32 under 8 MiB."""
    code = """
import resource, torch
from dadl_ext import functional
torch.set_num_threads(2)
features, weight = torch.randn(4096, 4096).requires_grad_(), torch.randn(1, 4096).requires_grad_()
options = {"p": 0.5, "samples": 32, "seed": 1}
functional.dropout_disagreement(features[:64], weight, **options).backward()
features.grad = torch.zeros_like(features)  # the gradient's own memory, once
features.grad = None
spare = torch.empty_like(features).fill_(1)
del spare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
functional.dropout_disagreement(features, weight, **options).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 8
