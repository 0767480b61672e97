"""The CUDA kernels of the disagreement, run on the host, against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.helpers import EXAMPLES, FLOATING, arithmetic, close, in_every_order, name, to_numpy
from torch import Tensor

from dadl_ext import reference
from dadl_ext._shared.members import CLASS_MEASURES, MEASURES


def disagree(simulator, x: Tensor, measure: str, mean: bool = False) -> tuple[Tensor, Tensor]:
    """Rows and gradient of [K, B, R, C]; the rows alone must be the same."""
    arguments = to_numpy(x), name(x.dtype), MEASURES.index(measure), mean
    rows, gradient = in_every_order(simulator.disagreement, *arguments, True)
    alone, nothing = in_every_order(simulator.disagreement, *arguments, False)
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
@pytest.mark.parametrize("shape", [(3, 2, 1, 513), (33, 2, 1, 130), (2, 1, 2, 4100), (2, 2, 1, 9000)])
def test_disagreement_of_long_rows(simulator, measure: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.bfloat16):
        check_disagreement(simulator, torch.randn(shape).to(dtype), measure)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("members", [8, 9])
def test_members_in_registers_and_beyond(simulator, measure: str, members: int) -> None:
    for classes in (2, 40):  # members of a class are shared by threads, or a thread's own
        check_disagreement(simulator, torch.randn(members, 3, 1, classes), measure)


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
