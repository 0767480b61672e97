"""Reweighting, label distribution smoothing and weighted losses against slow formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dadl import LabelDistributionSmoothing, bin_labels, bin_weights, weighted_l1_loss, weighted_mse_loss
from torch import Tensor

COUNTS = torch.tensor([0, 3, 1, 250, 1500, 40, 0, 7])


def test_gaussian_window_is_a_filtered_impulse() -> None:
    window = LabelDistributionSmoothing("gaussian", ks=5, sigma=2).window
    expected = torch.tensor([0.858285, 0.945828, 1, 0.945828, 0.858285], dtype=torch.float64)
    torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ks", [1, 3, 5, 9, 15])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 7.5])
def test_gaussian_window_matches_scipy(ks: int, sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros(ks)
    impulse[ks // 2] = 1
    expected = ndimage.gaussian_filter1d(impulse, sigma, mode="reflect")
    window = LabelDistributionSmoothing("gaussian", ks, sigma).window
    np.testing.assert_allclose(window.numpy(), expected / expected.max(), rtol=1e-12)


def test_triangular_and_laplace_windows_by_hand() -> None:
    triangular = LabelDistributionSmoothing("triangular", ks=5).window
    assert triangular.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    laplace = LabelDistributionSmoothing("laplace", ks=5, sigma=2).window
    assert laplace.tolist() == pytest.approx([math.exp(-1), math.exp(-0.5), 1, math.exp(-0.5), math.exp(-1)])


@pytest.mark.parametrize("kernel", ["gaussian", "triangular", "laplace"])
@pytest.mark.parametrize("ks", [1, 5, 11])  # 11 is wider than the 8 bins
def test_smoothing_is_a_zero_padded_convolution(kernel: str, ks: int) -> None:
    smoothing = LabelDistributionSmoothing(kernel, ks, 2.0)  # type: ignore[arg-type]
    window, n, half = smoothing.window.tolist(), COUNTS.tolist(), ks // 2
    expected = [sum(window[j - i + half] * n[j] for j in range(len(n)) if abs(j - i) <= half) for i in range(len(n))]
    torch.testing.assert_close(smoothing(COUNTS.double()), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [None, LabelDistributionSmoothing("laplace", 3, 1.0)])
@pytest.mark.parametrize(
    ("reweighting", "clip"), [("inverse", (5.0, 1000.0)), ("inverse", None), ("sqrt_inv", (5.0, 1000.0))]
)
def test_bin_weights_against_a_loop(
    reweighting: str, clip: tuple[float, float] | None, smoothing: LabelDistributionSmoothing | None
) -> None:
    n = [float(count) for count in COUNTS]
    if reweighting == "sqrt_inv":
        density = [math.sqrt(x) for x in n]
    else:
        density = [min(max(x, clip[0]), clip[1]) for x in n] if clip else n
    if smoothing is not None:
        side = math.exp(-1.0)
        density = [
            density[i] + side * sum(density[j] for j in (i - 1, i + 1) if 0 <= j < len(n)) for i in range(len(n))
        ]
    samples = [i for i, count in enumerate(COUNTS.tolist()) for _ in range(count)]
    mean = sum(1 / density[i] for i in samples) / len(samples)
    expected = [1 / d / mean if count else 0.0 for d, count in zip(density, n, strict=True)]

    weights = bin_weights(COUNTS.double(), reweighting, clip=clip, smoothing=smoothing)  # type: ignore[arg-type]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert weights[torch.tensor(samples)].mean().item() == pytest.approx(1)
    assert bin_weights(COUNTS).dtype == torch.float32


def test_bins_match_numpy_histogram() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0, 5, 500), np.linspace(0, 5, 51)])
    bins = bin_labels(torch.from_numpy(scores), 0, 5, 50)
    expected, _ = np.histogram(scores, bins=50, range=(0, 5))
    np.testing.assert_array_equal(np.bincount(bins.numpy(), minlength=50), expected)


def test_bins_at_the_edges() -> None:
    assert bin_labels(torch.tensor([0.0, 0.7, 4.99, 5.0]), 0, 5, 50).tolist() == [0, 7, 49, 49]
    assert bin_labels(torch.tensor([-3, 0, 1, 120, 300]), 0, 121, 121).tolist() == [0, 0, 1, 120, 120]


@pytest.mark.parametrize(("loss", "power"), [(weighted_l1_loss, 1), (weighted_mse_loss, 2)])
def test_weighted_losses(loss: Callable[..., Tensor], power: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y, w = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    terms = [[w[i].item() * abs((x[i, j] - y[i, j]).item()) ** power for j in range(3)] for i in range(4)]
    torch.testing.assert_close(loss(x, y, w, "none").detach(), torch.tensor(terms, dtype=torch.float64))
    assert loss(x, y, w, "sum").item() == pytest.approx(sum(map(sum, terms)))
    assert loss(x, y, w).item() == pytest.approx(sum(map(sum, terms)) / 12)
    plain = torch.nn.functional.l1_loss if power == 1 else torch.nn.functional.mse_loss
    torch.testing.assert_close(loss(x, y), plain(x, y))
    torch.testing.assert_close(loss(x, y, torch.ones(4, 3, dtype=torch.float64)), plain(x, y))
    assert torch.autograd.gradcheck(lambda x: loss(x, y, w), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelDistributionSmoothing("box"), "kernel must be one of .*'box'"),  # type: ignore[arg-type]
        (lambda: LabelDistributionSmoothing(ks=4), "ks must be odd and positive.*4"),
        (lambda: LabelDistributionSmoothing(sigma=0), "sigma must be positive, got 0"),
        (lambda: LabelDistributionSmoothing()(torch.ones(2, 2)), r"vector \[num_bins\], got shape \[2, 2\]"),
        (lambda: bin_weights(torch.tensor([1, -1])), "non-negative"),
        (lambda: bin_weights(torch.tensor([1.0, math.nan])), "non-negative"),
        (lambda: bin_weights(torch.zeros(3)), "all zero"),
        (lambda: bin_weights(COUNTS, "cube"), "reweighting must be one of .*'cube'"),  # type: ignore[arg-type]
        (lambda: bin_weights(COUNTS, "inverse", clip=(0, 5)), "clip=None leaves"),
        (lambda: bin_labels(torch.tensor([math.nan]), 0, 1, 2), "NaN"),
        (lambda: bin_labels(torch.tensor([1.0]), 1, 1, 2), "low < high"),
        (lambda: weighted_l1_loss(torch.ones(4), torch.ones(4, 1)), r"\[4\] and \[4, 1\].*squeeze"),
        (lambda: weighted_mse_loss(torch.ones(4, 2), torch.ones(4, 2), torch.ones(2)), r"\[4\], got \[2\]"),
        (lambda: weighted_l1_loss(torch.ones(1), torch.ones(1), reduction="avg"), "'avg'"),  # type: ignore[arg-type]
    ],
)
def test_errors_say_what_is_expected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
