"""Disagreement between the predictions of several members."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.devices import DEVICES, DTYPES
from support.gradients import gradients
from torch import Tensor

from dadl_ext import functional, reference
from dadl_ext._shared.members import CLASS_MEASURES, MEASURES


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, str]:
    measure = draw(st.sampled_from(MEASURES))
    members = draw(st.integers(1, 9) | st.sampled_from([31, 32, 33, 40]))
    batch = draw(st.integers(0, 5))
    least = 1 if measure in CLASS_MEASURES else 0
    outputs = draw(st.lists(st.integers(1, 5), min_size=least, max_size=3))
    if outputs and draw(st.booleans()):
        outputs[-1] = draw(st.sampled_from([1, 15, 16, 17, 63, 64, 65, 130]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(members, batch, *outputs) * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    if draw(st.booleans()):
        values = values[:1] + 1e-2 * values  # members that nearly agree
    if draw(st.booleans()):
        values = values.round()  # ties
    return values, measure


@pytest.mark.parametrize("device", DEVICES)
@given(case=predictions(), dtype=st.sampled_from(DTYPES), reduction=st.sampled_from(["mean", "sum", "none"]))
def test_disagreement(device, case, dtype, reduction) -> None:
    values, measure = case
    values = values.to(dtype)
    expected, (slope,) = gradients(lambda x: reference.disagreement(x, measure, reduction=reduction), values.double())
    actual, (gradient,) = gradients(
        lambda x: functional.disagreement(x, measure, reduction=reduction), values.to(device)
    )
    exact = 1e-11 if dtype == torch.float64 else 2e-5
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    magnitude = max(1.0, values.abs().max().item() if values.numel() else 1.0)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=exact, atol=exact * 1e-2 * magnitude)
    assert gradient.dtype == dtype
    if measure == "softmax_l1" and dtype != torch.float64:
        return  # rounding may change which of two probabilities is the larger
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 0.0)
    scale = slope.abs().max().item() if slope.numel() else 0.0
    torch.testing.assert_close(
        gradient.cpu().double(),
        slope,
        rtol=rounding,
        atol=exact * max(scale, magnitude / max(1, slope.numel())) + rounding * 1e-4,
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_disagreement_of_one_member_is_zero(device: str, measure: str) -> None:
    x = torch.randn(1, 3, 4, device=device, requires_grad=True)
    loss = functional.disagreement(x, measure)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-6


@pytest.mark.parametrize("measure", MEASURES)
def test_disagreement_gradient_is_exact(device: str, measure: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64, device=device, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: functional.disagreement(x, measure, reduction=r), x)


@pytest.mark.parametrize("measure", CLASS_MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [5, 100])
def test_any_finite_logits_give_finite_values(device: str, measure: str, dtype: torch.dtype, members: int) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([0.0, 1e4, -1e4, 1e30, -1e30, largest, -largest], dtype=dtype)
    torch.manual_seed(0)
    x = values[torch.randint(len(values), (members, 200, 6))].to(device).requires_grad_()
    loss = functional.disagreement(x, measure, reduction="none")
    loss.mean().backward()
    assert loss.isfinite().all()
    assert (loss >= -1e-6).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("members", [1, 2, 40])
def test_nan_stays_visible(device: str, measure: str, members: int) -> None:
    x = torch.randn(members, 3, 5, device=device)
    x[-1, 1, 2] = torch.nan
    leaf = x.requires_grad_()
    loss = functional.disagreement(leaf, measure, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    loss.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[:, 1].isnan().any()
    assert not leaf.grad[:, 0].isnan().any()


@pytest.mark.parametrize("members", [33, 40])
def test_l1_of_many_members_with_ties(device: str, members: int) -> None:
    """They are sorted instead of compared in pairs."""
    leaf = torch.randn(members, 3, 5, device=device).mul(2).round().requires_grad_()
    pairs = (leaf[:, None] - leaf).abs().sum(dim=(0, 1)).mean(dim=-1) / (members * (members - 1))
    (expected,) = torch.autograd.grad(pairs.sum(), leaf)
    loss = functional.disagreement(leaf, "l1", reduction="none")
    torch.testing.assert_close(loss, pairs.detach(), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_nearly_equal_members_keep_their_digits(device: str) -> None:
    """What float64 says of the same numbers, although the difference is far below a logit's rounding of its square."""
    torch.manual_seed(0)
    base = torch.randn(1, 16, 100)
    x = base + 1e-3 * torch.randn(4, 16, 100)
    for measure in ("mse", "variance", "js", "symmetric_kl"):
        exact = reference.disagreement(x.double(), measure).item()
        assert functional.disagreement(x.to(device), measure).item() == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_disagreement_does_not_depend_on_threads(measure: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 64, 300, requires_grad=True)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        loss = functional.disagreement(x, measure)
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("outputs", [1, 3, 8, 11])
def test_every_way_matches_the_reference(device: str, dtype: torch.dtype, outputs: int) -> None:
    """Few examples, one of each: what also runs under a GPU's own sanitizers."""
    exact = 1e-11 if dtype == torch.float64 else 3e-5
    for measure in MEASURES:
        for members, rows, classes in ((1, 2, outputs), (3, 2, outputs), (3, 1, 600)):
            x = torch.randn(members, 5, rows, classes).to(device, dtype)
            x = x if measure in CLASS_MEASURES else x.flatten(2)
            expected, _ = gradients(lambda x, m=measure: reference.disagreement(x, m), x.double())
            actual, (gradient,) = gradients(lambda x, m=measure: functional.disagreement(x, m), x)
            torch.testing.assert_close(actual.double(), expected, rtol=exact, atol=exact)
            assert gradient.isfinite().all()


def test_pairs_are_a_definition_of_their_own() -> None:
    """The measures by their formulas in NumPy, which share nothing with the reference."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 7))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if i != j]
    kl = np.mean([(p[i] * np.log(p[i] / p[j])).sum(-1) for i, j in pairs], axis=0)
    l1 = np.mean([np.abs(logits[i] - logits[j]).mean(-1) for i, j in pairs], axis=0)
    mean = p.mean(0)
    js = -(mean * np.log(mean)).sum(-1) + (p * np.log(p)).sum(-1).mean(0)
    x = torch.from_numpy(logits)
    for measure, expected in (
        ("symmetric_kl", kl),
        ("l1", l1),
        ("js", js),
        ("variance", logits.var(0, ddof=1).mean(-1)),
    ):
        np.testing.assert_allclose(functional.disagreement(x, measure, reduction="none").numpy(), expected, rtol=1e-11)


def test_compile(device: str) -> None:
    x = torch.randn(3, 4, 5, device=device, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return functional.disagreement(x, "js")

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (eager,), (traced,) = (torch.autograd.grad(f(x), x) for f in (loss, compiled))
    torch.testing.assert_close(eager, traced)


def test_second_derivative_raises(device: str) -> None:
    x = torch.randn(3, 4, 5, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(functional.disagreement(x, "js"), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_forward_mode_raises(device: str) -> None:
    x = torch.randn(3, 4, 5, device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            functional.disagreement(dual, "js")


@pytest.mark.parametrize(
    ("predictions", "options", "error", "message"),
    [
        (torch.randn(2, 3), {"measure": "kl"}, ValueError, "measure must be one of"),
        (torch.randn(2, 3), {"reduction": "max"}, ValueError, "reduction must be one of"),
        (torch.randn(2, 3), {"measure": "js"}, ValueError, r"\[K, B, \.\.\., C\].*\(2, 3\)"),
        (torch.randn(0, 3), {}, ValueError, "at least one member"),
        (torch.ones(2, 3, dtype=torch.int64), {}, TypeError, "float32"),
    ],
)
def test_bad_arguments(predictions: Tensor, options: dict[str, str], error: type[Exception], message: str) -> None:
    for module in (functional, reference):
        with pytest.raises(error, match=message):
            module.disagreement(predictions, **options)
