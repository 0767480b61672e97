"""Feature distribution smoothing against loops over buckets, samples and window."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from dadl import FeatureDistributionSmoothing, LabelDistributionSmoothing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

Statistics = dict[int, tuple[list[float], list[float]]]


def bucket_of(label: float, low: float, high: float, num_buckets: int) -> int:
    return min(max(math.floor((label - low) / (high - low) * num_buckets), 0), num_buckets - 1)


def mirrored(position: int, size: int) -> int:
    while not 0 <= position < size:
        position = -position if position < 0 else 2 * (size - 1) - position
        if size == 1:
            return 0
    return position


def loop_update(running: Statistics, features: Tensor, buckets: list[int], momentum: float) -> Statistics:
    """The running statistics after an epoch, sample by sample."""
    result = dict(running)
    for bucket in set(buckets):
        rows = [features[i].tolist() for i in range(len(buckets)) if buckets[i] == bucket]
        values = list(zip(*rows, strict=True))
        mean = [statistics.mean(column) for column in values]
        var = [statistics.variance(column) if len(rows) > 1 else 0.0 for column in values]
        if bucket in running:
            old_mean, old_var = running[bucket]
            mean = [momentum * old + (1 - momentum) * new for old, new in zip(old_mean, mean, strict=True)]
            var = [momentum * old + (1 - momentum) * new for old, new in zip(old_var, var, strict=True)]
        result[bucket] = mean, var
    return result


def loop_calibrate(
    z: list[float], bucket: int, running: Statistics, window: list[float], size: int, clip: tuple[float, float]
) -> list[float]:
    if bucket not in running or sum(running[bucket][1]) < 1e-10:
        return z
    mean, var = running[bucket]
    taps = [(w, mirrored(bucket + t - len(window) // 2, size)) for t, w in enumerate(window)]
    taps = [(w, b) for w, b in taps if b in running]
    total = sum(w for w, _ in taps)
    result = list(z)
    for k in range(len(z)):
        if var[k] > 0:
            smooth_mean, smooth_var = (sum(w * running[b][part][k] for w, b in taps) / total for part in (0, 1))
            ratio = min(max(smooth_var / var[k], clip[0]), clip[1])
            result[k] = (z[k] - mean[k]) * math.sqrt(ratio) + smooth_mean
    return result


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 7),
    ks=st.sampled_from([1, 3, 5, 9]),
    kernel=st.sampled_from(["gaussian", "triangular", "laplace"]),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    clip=st.sampled_from([(0.1, 10.0), (0.5, 2.0), (2.0, 3.0)]),
    epochs=st.integers(1, 3),
)
def test_against_loops(
    seed: int, size: int, ks: int, kernel: str, momentum: float, clip: tuple[float, float], epochs: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    settings = {"kernel": kernel, "ks": ks, "sigma": 1.5, "momentum": momentum, "clip": clip}
    fds = FeatureDistributionSmoothing(3, 2, 5, size, **settings).double()  # type: ignore[arg-type]
    window = LabelDistributionSmoothing(kernel, ks, 1.5).window  # type: ignore[arg-type]
    running: Statistics = {}
    for _ in range(epochs):
        n = int(torch.randint(1, 25, (), generator=generator))
        labels = torch.rand(n, generator=generator, dtype=torch.float64) * 5 + 1  # some beyond either edge
        features = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 5
        features[:, 1] = features[0, 1]  # a constant dimension
        cut = n // 3
        fds.observe(features[:cut], labels[:cut])  # an empty batch among them
        fds.observe(features[cut:], labels[cut:])
        fds.end_epoch()
        buckets = [bucket_of(label, 2, 5, size) for label in labels.tolist()]
        running = loop_update(running, features, buckets, momentum)
    labels = torch.rand(9, generator=generator, dtype=torch.float64) * 5 + 1
    z = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    expected = [
        loop_calibrate(row, bucket_of(label, 2, 5, size), running, window.tolist(), size, clip)
        for row, label in zip(z.tolist(), labels.tolist(), strict=True)
    ]
    given_z = z.clone()
    torch.testing.assert_close(fds(z, labels), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(z, given_z, rtol=0, atol=0)


@pytest.fixture
def fds() -> FeatureDistributionSmoothing:
    """Five buckets of a year, four samples in each but the last, which has one."""
    module = FeatureDistributionSmoothing(4, 0, 5, 5)
    labels = torch.tensor([0, 1, 2, 3] * 4 + [4])
    module.observe(torch.randn(17, 4) * (labels[:, None] + 1) + labels[:, None], labels)
    module.end_epoch()
    return module


def test_by_hand() -> None:
    fds = FeatureDistributionSmoothing(1, 0, 3, 3, kernel="triangular", ks=3).double()
    fds.observe(torch.tensor([[0.0], [2.0], [4.0], [8.0], [5.0]]).double(), torch.tensor([0, 0, 1, 1, 2]))
    fds.end_epoch()
    # Means 1, 6, 5 and variances 2, 8, 0; the window is 1/4, 1/2, 1/4, and bucket 1 is on both sides of bucket 0.
    smooth_mean, smooth_var = (2 * 1 + 2 * 6) / 4, (2 * 2 + 2 * 8) / 4
    expected = (3 - 1) * math.sqrt(smooth_var / 2) + smooth_mean
    assert fds(torch.tensor([[3.0]]).double(), torch.tensor([-7])).item() == pytest.approx(expected)
    assert fds(torch.tensor([[3.0]]).double(), torch.tensor([9])).item() == 3  # one sample has no variance


def test_identity_before_the_first_epoch_and_in_evaluation(fds: FeatureDistributionSmoothing) -> None:
    z, labels = torch.randn(6, 4), torch.arange(6)
    fresh = FeatureDistributionSmoothing(4, 0, 5, 5)
    fresh.observe(z, labels)
    assert torch.equal(fresh(z, labels), z)
    assert not torch.equal(fds(z, labels), z)
    assert torch.equal(fds.eval()(z, labels), z)


def test_equal_buckets_stay_as_they_are() -> None:
    fds = FeatureDistributionSmoothing(2, 0, 8, 8, ks=7).double()
    z = torch.randn(10, 2).double()
    fds.observe(z.repeat(8, 1), torch.arange(8).repeat_interleave(10))
    fds.end_epoch()
    torch.testing.assert_close(fds(z[:8], torch.arange(8)), z[:8])


def test_buckets_without_samples_have_no_weight() -> None:
    fds = FeatureDistributionSmoothing(1, low=0.0, high=3.0, num_buckets=3, ks=3)
    features, labels = torch.tensor([[9.0], [11.0], [9.0], [11.0]]), torch.tensor([0.5, 0.5, 2.5, 2.5])
    fds.observe(features, labels)
    fds.end_epoch()
    torch.testing.assert_close(fds(features, labels), features)


@pytest.mark.parametrize(("spread", "changes"), [(2e-6, False), (2e-5, True)])
def test_all_but_constant_buckets_stay_as_they_are(spread: float, changes: bool) -> None:
    fds = FeatureDistributionSmoothing(2, 0, 2, 2).double()
    z = torch.tensor([[0, 0], [spread, spread], [3, 3], [5, 5]]).double()  # variances sum to spread²
    fds.observe(z, torch.tensor([0, 0, 1, 1]))
    fds.end_epoch()
    assert torch.equal(fds(z[:2], torch.tensor([0, 0])), z[:2]) != changes


def test_batches_of_any_size_give_the_same_statistics() -> None:
    z, labels = torch.randn(40, 3) + 1000, torch.randint(0, 4, (40,))
    whole, parts = (FeatureDistributionSmoothing(3, 0, 4, 4) for _ in range(2))
    whole.observe(z, labels)
    for rows in torch.arange(40).split(7):
        parts.observe(z[rows], labels[rows])
    whole.end_epoch()
    parts.end_epoch()
    torch.testing.assert_close(whole.var, parts.var, rtol=1e-3, atol=1e-3)
    expected = torch.stack([z.double()[labels == b].var(dim=0) for b in range(4)])
    torch.testing.assert_close(whole.var.double(), expected, rtol=1e-3, atol=1e-3)  # no cancellation at 1000 ± 1


def test_gradient(fds: FeatureDistributionSmoothing) -> None:
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: fds.double()(z, torch.arange(6)), z)
    assert not list(fds.parameters())


def test_state_continues_after_an_epoch(fds: FeatureDistributionSmoothing) -> None:
    more, labels = torch.randn(8, 4), torch.randint(0, 5, (8,))
    other = FeatureDistributionSmoothing(4, 0, 5, 5)
    other.load_state_dict(fds.state_dict())
    z = torch.randn(5, 4)
    assert torch.equal(fds(z, torch.arange(5)), other(z, torch.arange(5)))
    for module in (fds, other):
        module.observe(more, labels)
        module.end_epoch()
    assert torch.equal(fds(z, torch.arange(5)), other(z, torch.arange(5)))


def test_dtype_and_device_are_kept(fds: FeatureDistributionSmoothing, dtype: torch.dtype, device: str) -> None:
    z, labels = torch.randn(5, 4).to(device, dtype), torch.arange(5.0, device=device)
    fds.to(device).observe(z, labels)
    fds.end_epoch()
    smoothed = fds(z, labels)
    assert (smoothed.dtype, smoothed.device) == (z.dtype, z.device)


def test_nan_is_seen_and_does_no_damage(fds: FeatureDistributionSmoothing) -> None:
    z = torch.randn(3, 4)
    z[1, 2] = math.nan
    assert fds(z, torch.arange(3)).isnan().nonzero().tolist() == [[1, 2]]
    before = {name: value.clone() for name, value in fds.state_dict().items()}
    with pytest.raises(ValueError, match="NaN or infinity"):
        fds.observe(z, torch.arange(3))
    with pytest.raises(RuntimeError, match="no features"):
        fds.end_epoch()
    assert all(torch.equal(value, before[name]) for name, value in fds.state_dict().items())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: FeatureDistributionSmoothing(0, 0, 1, 1), ValueError, "num_features >= 1"),
        (lambda f: FeatureDistributionSmoothing(2, 1, 1, 1), ValueError, "low < high"),
        (lambda f: FeatureDistributionSmoothing(2, 0, 1, 1, ks=4), ValueError, "ks must be odd"),
        (lambda f: FeatureDistributionSmoothing(2, 0, 1, 1, momentum=2), ValueError, "between 0 and 1, got 2"),
        (lambda f: FeatureDistributionSmoothing(2, 0, 1, 1, clip=(0, 1)), ValueError, "0 < low <= high"),
        (lambda f: f(torch.ones(2, 3), torch.ones(2)), ValueError, r"\[n, 4\].*\[2, 3\]"),
        (lambda f: f.observe(torch.ones(2, 4), torch.ones(2, 1)), ValueError, r"labels \[n\].*\[2, 1\]"),
        (lambda f: f(torch.ones(1, 4), torch.tensor([math.nan])), ValueError, "labels hold NaN"),
        (lambda f: f.end_epoch(), RuntimeError, "call observe"),
    ],
)
def test_errors_say_what_is_expected(
    fds: FeatureDistributionSmoothing,
    call: Callable[[FeatureDistributionSmoothing], object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(fds)
