"""Huber, focal losses and Balanced MSE against slow formulas and known limits."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from dadl import (
    BalancedMSE,
    GaussianMixture,
    focal_l1_loss,
    focal_mse_loss,
    weighted_huber_loss,
    weighted_l1_loss,
    weighted_mse_loss,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

FINITE = st.floats(-50, 50, allow_subnormal=False)
PAIRS = st.lists(st.tuples(FINITE, FINITE, st.floats(0, 3)), min_size=1, max_size=8)
MIXTURE = GaussianMixture(torch.tensor([0.7, 0.3]), torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.1]))


def columns(rows: list[tuple[float, float, float]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))


@given(PAIRS, st.floats(0.01, 5), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_focal_losses_against_the_formula(rows: list[tuple[float, float, float]], beta: float, gamma: float) -> None:
    for loss, power in ((focal_l1_loss, 1), (focal_mse_loss, 2)):
        value = loss(*columns(rows), "none", beta=beta, gamma=gamma).tolist()
        for got, (x, y, w) in zip(value, rows, strict=True):
            e = abs(x - y)
            assert got == pytest.approx(w * e**power * (2 / (1 + math.exp(-beta * e)) - 1) ** gamma, rel=1e-6, abs=1e-9)


@given(PAIRS, st.floats(0.1, 5))
def test_huber_against_the_formula(rows: list[tuple[float, float, float]], beta: float) -> None:
    value = weighted_huber_loss(*columns(rows), "none", beta=beta).tolist()
    for got, (x, y, w) in zip(value, rows, strict=True):
        e = abs(x - y)
        assert got == pytest.approx(w * (e**2 / (2 * beta) if e < beta else e - beta / 2))


@pytest.mark.parametrize("loss", [weighted_huber_loss, focal_l1_loss, focal_mse_loss])
def test_weights_reductions_and_gradient(loss: Callable[..., Tensor]) -> None:
    x, y = torch.randn(5, 2, dtype=torch.float64, requires_grad=True), torch.randn(5, 2, dtype=torch.float64)
    w = torch.rand(5, dtype=torch.float64)
    terms = loss(x, y, reduction="none") * w[:, None]
    torch.testing.assert_close(loss(x, y, w), terms.mean())
    torch.testing.assert_close(loss(x, y, w, "sum"), terms.sum())
    assert torch.autograd.gradcheck(lambda x: loss(x, y, w), x)


def test_no_focus_is_the_plain_loss() -> None:
    x, y, w = torch.randn(6), torch.randn(6), torch.rand(6)
    torch.testing.assert_close(focal_l1_loss(x, y, w, gamma=0), weighted_l1_loss(x, y, w))
    torch.testing.assert_close(focal_mse_loss(x, y, w, gamma=0), weighted_mse_loss(x, y, w))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_an_exact_prediction_has_a_gradient_of_zero(gamma: float) -> None:
    x = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(focal_l1_loss(x, torch.zeros(2), gamma=gamma), x)
    assert gradient.tolist() == [0, 0]


@given(PAIRS, st.floats(0.3, 4))
def test_batch_balanced_mse_against_the_formula(rows: list[tuple[float, float, float]], sigma: float) -> None:
    x, y, w = columns(rows)
    value = BalancedMSE(sigma, reduction="none").double()(x, y, w).tolist()
    for i, got in enumerate(value):
        exponents = [-((x[i] - label).item() ** 2) / (2 * sigma**2) for label in y]
        top = max(exponents)
        log_sum = top + math.log(sum(math.exp(e - top) for e in exponents))
        assert got == pytest.approx(w[i].item() * 2 * sigma**2 * (log_sum - exponents[i]), rel=1e-5, abs=1e-5)


def test_mixture_balanced_mse_against_quadrature() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    x, y = torch.tensor([0.3, -2.0, 1.5]).double(), torch.tensor([0.5, -1.0, 2.5]).double()
    sigma = 0.8
    value = BalancedMSE(sigma, mixture=MIXTURE, reduction="none").double()(x, y).tolist()

    def integrand(label: float, x: float) -> float:
        normals = zip(*(part.tolist() for part in MIXTURE), strict=True)
        density = sum(w * math.exp(-((label - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) for w, m, v in normals)
        return density * math.exp(-((x - label) ** 2) / (2 * sigma**2))

    for got, a, b in zip(value, x.tolist(), y.tolist(), strict=True):
        integral = integrate.quad(integrand, -15, 15, args=(a,), points=[-1, 2])[0]
        assert got == pytest.approx(2 * sigma**2 * ((a - b) ** 2 / (2 * sigma**2) + math.log(integral)), rel=1e-5)


def test_a_mixture_of_the_batch_labels_is_the_batch_loss() -> None:
    x, y = torch.randn(6).double(), torch.randn(6).double()
    points = GaussianMixture(torch.full((6,), 1 / 6), y, torch.zeros(6))
    difference = BalancedMSE(1.0).double()(x, y) - BalancedMSE(1.0, mixture=points).double()(x, y)
    assert difference.item() == pytest.approx(2 * math.log(6), rel=1e-6)  # the sum over labels is n times the mean


def test_vector_labels_and_weights() -> None:
    x, y, w = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4)
    loss = BalancedMSE(0.7, reduction="none")
    logits = -torch.cdist(x, y).square() / (2 * 0.7**2)
    expected = F.cross_entropy(logits, torch.arange(4), reduction="none") * 2 * 0.7**2
    torch.testing.assert_close(loss(x, y), expected)
    torch.testing.assert_close(loss(x, y, w), w * expected)
    torch.testing.assert_close(loss(x[:, 0], y[:, 0]), loss(x[:, :1], y[:, :1]))


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_gradients_of_balanced_mse(mixture: GaussianMixture | None) -> None:
    x, y = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    loss = BalancedMSE(1.3, mixture=mixture).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x)


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_a_learnt_sigma_has_the_gradient_of_the_likelihood(mixture: GaussianMixture | None) -> None:
    """The factor 2 σ² is a constant."""
    x, y = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    loss = BalancedMSE(1.3, learn=True, mixture=mixture).double()

    def log_likelihood(log_sigma: Tensor) -> Tensor:
        value: Tensor = torch.func.functional_call(loss, {"log_sigma": log_sigma}, (x, y))
        return value / (2 * (2 * log_sigma).exp())

    step, s = 1e-5, loss.log_sigma.detach()
    slope = (log_likelihood(s + step) - log_likelihood(s - step)) / (2 * step)
    (gradient,) = torch.autograd.grad(loss(x, y), loss.log_sigma)
    assert gradient.item() == pytest.approx(2 * 1.3**2 * slope.item(), rel=1e-5)


@pytest.mark.parametrize("batch", ["bmc", "gai", "vectors"])
def test_a_step_of_sigma_against_loops(batch: str) -> None:
    """From the first batch's errors, towards those of the labels that are expected at each prediction."""
    shape = (5, 2) if batch == "vectors" else (5,)
    x, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    loss = BalancedMSE(momentum=0.3, mixture=MIXTURE if batch == "gai" else None).double()
    assert math.isnan(loss.sigma)
    first = sorted(abs(e) for e in (y - x).flatten().tolist())[(y.numel() - 1) // 2] / 0.6744898
    known = BalancedMSE(first, mixture=MIXTURE if loss.has_mixture else None).double()
    assert loss.eval()(x, y).item() == pytest.approx(known(x, y).item(), rel=1e-5)
    assert math.isnan(loss.sigma)  # which evaluation does not change

    def expected(i: int) -> Tensor:
        if batch == "gai":
            labels = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
            parts = zip(*(part.double() for part in MIXTURE), strict=True)
            density = torch.stack([w * (-((labels - m) ** 2) / (2 * v)).exp() / v.sqrt() for w, m, v in parts]).sum(0)
        else:
            labels = torch.stack([x[i] if j == i else y[j] for j in range(5)])
            density = torch.ones(len(labels), dtype=torch.float64)
        squares = (x[i] - labels).square()
        weights = density * (-(squares.sum(1) if batch == "vectors" else squares) / (2 * first**2)).exp()
        return torch.tensordot(weights / weights.sum(), labels, 1)

    errors = torch.stack([y[i] - expected(i) for i in range(5)])
    median = sorted(abs(e) for e in errors.flatten().tolist())[(y.numel() - 1) // 2]
    second = 0.7 * first + 0.3 * median / 0.6744898
    loss.train()(x, y)
    assert loss.sigma == pytest.approx(second, rel=1e-5)
    fixed = BalancedMSE(0.4).double()
    fixed(x, y)
    assert fixed.sigma == pytest.approx(0.4)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize("mixture", [False, True])
def test_sigma_finds_the_noise_in_any_unit(unit: float, mixture: bool) -> None:
    """Labels are skewed; the noise is normal, its deviation a fifth of theirs. Batches are large enough for BMC to see
    labels within the noise of each other."""
    torch.manual_seed(0)
    y = torch.distributions.Exponential(1.0).sample((6_400,))
    z = y + 0.2 * torch.randn(6_400)  # so under labels that are equally frequent p(y | z) = N(z, 0.2²)
    sigma, normal = 0.2, torch.distributions.Normal(0, 1)
    for _ in range(50):  # p(y | z) is normal around z - σ², as far as it is positive
        place = (z - sigma**2) / sigma
        expected = z - sigma**2 + sigma * normal.log_prob(place).exp() / normal.cdf(place)
        sigma = float((y - expected).abs().median()) / 0.6744898
    assert 0.17 < sigma < 0.2
    bins = torch.linspace(-0.5, 8, 86)
    counts = torch.histogram(y, bins).hist + 1e-3
    means, variances = unit * (bins[1:] + bins[:-1]) / 2, torch.full((85,), (0.1 * unit) ** 2)
    loss = BalancedMSE(mixture=GaussianMixture(counts / counts.sum(), means, variances) if mixture else None)
    line = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([line], lr=0.03)
    for rows in torch.randperm(6_400).repeat(20).split(256):
        optimizer.zero_grad()
        (loss(unit * (line[0] * z[rows] + line[1]), unit * y[rows]) / unit**2).backward()
        optimizer.step()
    assert loss.sigma == pytest.approx(sigma * unit, rel=0.1)
    assert line.tolist() == pytest.approx([1, 0], abs=0.05)


def test_a_few_large_errors_do_not_make_sigma_large() -> None:
    """Which would drive predictions apart, and so make more of them."""
    torch.manual_seed(0)
    y = torch.randn(64)
    x = y + 0.1 * torch.randn(64)
    x[:16] = 1e3
    loss = BalancedMSE()
    for _ in range(100):
        loss(x, y)
    assert 0.05 < loss.sigma < 0.2


@pytest.mark.parametrize("follow", [True, False])
def test_sigma_is_in_the_state(follow: bool) -> None:
    loss = BalancedMSE(None if follow else 0.3)
    loss(torch.randn(8), torch.randn(8))
    copy = BalancedMSE(None if follow else 0.5)
    copy.load_state_dict(loss.state_dict())
    assert copy.sigma == loss.sigma
    x, y = torch.randn(8), torch.randn(8)
    assert torch.equal(copy(x, y), loss(x, y))
    assert copy.sigma == loss.sigma
    assert not list(loss.parameters())


def test_one_sample_and_exact_predictions_are_no_problem() -> None:
    one = BalancedMSE()
    assert one(torch.tensor([1.0]), torch.tensor([3.0])) == 0
    assert one.sigma == pytest.approx(2 / 0.6744898)
    x = torch.randn(6, requires_grad=True)
    loss = BalancedMSE()
    value = loss(x, x.detach())
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert loss.sigma > 0


def test_half_precision_does_not_overflow(device: str) -> None:
    x, y = torch.tensor([[100.0, 0.0], [-200.0, 250.0]], device=device).half()
    for mixture in (None, MIXTURE):
        assert BalancedMSE(mixture=mixture).to(device)(x, y).isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_huber_loss(torch.ones(1), torch.ones(1), beta=0), "beta must be positive, got 0"),
        (lambda: focal_l1_loss(torch.ones(1), torch.ones(1), beta=math.nan), "beta must be positive"),
        (lambda: focal_mse_loss(torch.ones(1), torch.ones(1), gamma=-1), "gamma must not be negative, got -1"),
        (lambda: focal_mse_loss(torch.ones(2), torch.ones(2, 1)), "squeeze"),
        (lambda: BalancedMSE(0), "sigma must be positive, got 0"),
        (lambda: BalancedMSE(learn=True), "learn needs an initial sigma"),
        (lambda: BalancedMSE(momentum=0), "momentum must be above 0 and at most 1, got 0"),
        (lambda: BalancedMSE()(torch.ones(2), torch.ones(2, 1)), "squeeze"),
        (lambda: BalancedMSE()(torch.ones(2, 1, 1), torch.ones(2, 1, 1)), r"\[n\] or \[n, k\]"),
        (lambda: BalancedMSE(mixture=MIXTURE)(torch.ones(2, 1), torch.ones(2, 1)), r"expected predictions \[n\]"),
        (lambda: BalancedMSE(mixture=MIXTURE._replace(weights=torch.ones(2))), "sum to 1, got 2"),
        (lambda: BalancedMSE(mixture=MIXTURE._replace(means=torch.ones(3))), r"same shape \[K\]"),
        (lambda: BalancedMSE(mixture=MIXTURE._replace(variances=-torch.ones(2))), "non-negative"),
        (lambda: BalancedMSE(reduction="avg")(torch.ones(1), torch.ones(1)), "'avg'"),  # type: ignore[arg-type]
    ],
)
def test_errors_say_what_is_expected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
