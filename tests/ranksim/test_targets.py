"""Skewed targets: bins by ratio and by quantile, transforms and their inverse, and a warning that names rows."""

import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl.ranksim.labels.bins import BINS, LabelBins, skew_warning
from dadl.ranksim.labels.transform import (
    LogTransform,
    QuantileTransform,
    fitted_transform,
    known_transform,
    transform_facts,
)
from hypothesis import given
from hypothesis import strategies as st

PRICES = torch.tensor([90.0, 95.0, 100.0, 105.0, 110.0] * 40 + [1e12], dtype=torch.float64)
TARGETS = st.lists(st.floats(1e-20, 1e20), min_size=2, max_size=60, unique=True)


def test_bins_of_equal_ratio() -> None:
    bins = LabelBins.logarithmic(torch.tensor([1.0, 2.0**BINS], dtype=torch.float64))
    assert bins.edges == pytest.approx([2.0**i for i in range(1, BINS)])
    labels = torch.tensor([0.5, 1, 1.5, 3, 5, 2.0**BINS, 2.0**60], dtype=torch.float64)
    assert bins.numbers(labels).tolist() == [0, 0, 0, 1, 2, BINS - 1, BINS - 1]
    assert bins.bounds(1) == pytest.approx((2, 4))


def test_bins_of_equally_many_samples() -> None:
    labels = torch.arange(1000.0, dtype=torch.float64).square()
    bins = LabelBins.quantiles(labels)
    assert bins.counts(bins.numbers(labels)).tolist() == [1000 // BINS] * BINS
    assert bins.numbers(labels.float()).tolist() == bins.numbers(labels).tolist()  # edges stay edges
    bins = LabelBins.quantiles(PRICES)
    assert bins.counts(bins.numbers(PRICES)).tolist() == [40, 40, 40, 40, 41]


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize(
    "bins", [LabelBins(0, 100, 10), LabelBins.quantiles(torch.arange(100.0))], ids=["equal", "edges"]
)
def test_a_column_of_labels_has_bins(bins: LabelBins) -> None:
    columns = torch.arange(100.0).view(50, 2)
    assert torch.equal(bins.numbers(columns[:, 1]), bins.numbers(columns[:, 1].contiguous()))


@given(TARGETS)
def test_every_bin_of_quantiles_has_samples_and_equal_labels_share_one(values: list[float]) -> None:
    labels = torch.tensor(values + values[:3], dtype=torch.float64)
    bins = LabelBins.quantiles(labels)
    numbers = bins.numbers(labels)
    assert numbers[: len(values)][:3].tolist() == numbers[len(values) :].tolist()
    assert bool((bins.counts(numbers) > 0).all())
    order = labels.argsort()
    assert bool((numbers[order].diff() >= 0).all())


@given(TARGETS, st.sampled_from(["log", "quantile"]))
def test_a_transform_is_increasing_and_inverted(values: list[float], kind: str) -> None:
    target = torch.tensor(values, dtype=torch.float64).sort().values
    transform = fitted_transform(kind, target)  # type: ignore[arg-type]
    assert transform is not None
    again = known_transform(transform_facts(transform))
    assert again is not None
    assert torch.equal(again(target), transform(target))
    assert bool((transform(target).diff() >= 0).all())
    torch.testing.assert_close(again.inverse(transform(target)), target, rtol=1e-9, atol=0)


def test_quantiles_by_hand() -> None:
    transform = QuantileTransform.fitted(torch.tensor([1.0, 2.0, 2.0, 10.0]))
    assert transform(torch.tensor([0.0, 1.0, 1.5, 2.0, 6.0, 10.0, 99.0])).tolist() == [
        *[0.125, 0.125, 0.3125, 0.5, 0.6875, 0.875, 0.875]
    ]
    assert transform.inverse(torch.tensor([-1.0, 0.125, 0.5, 0.6875, 2.0])).tolist() == [1, 1, 2, 6, 10]
    many = torch.randn(5000, dtype=torch.float64)
    assert len(QuantileTransform.fitted(many).values) == 1000
    ranks = many.argsort().argsort()
    assert (QuantileTransform.fitted(many)(many) - (ranks + 0.5) / 5000).abs().max() < 1e-3


def test_a_logarithm_never_overflows() -> None:
    predicted = LogTransform().inverse(torch.tensor([-1e30, 0.0, 1e30])).float()
    assert predicted.isfinite().all()
    assert predicted[1] == 1


def test_the_largest_bin_and_the_outliers_are_named() -> None:
    bins = LabelBins.covering(90, 1e12, (1e12 - 90) / BINS)
    names = [f"t.csv:{i + 2}" for i in range(len(PRICES))]
    text = skew_warning(bins, bins.counts(bins.numbers(PRICES)), [(names, PRICES)])
    assert text is not None
    assert "99.5 % of the training samples are in one of 50 label bins, from 90 to 2e+10" in text
    assert "far from the other targets, half of which are between 95 and 105: t.csv:202 (1e+12)" in text
    assert "--bins-by and --target-transform" in text


def test_outliers_of_other_splits_are_named_and_ordinary_targets_are_not() -> None:
    usual = PRICES[:-1]
    bins = LabelBins.covering(90, 110, 0.4)
    counts = bins.counts(bins.numbers(usual))
    assert skew_warning(bins, counts, [([""] * 200, usual)]) is None
    far = torch.cat([usual[:3], -PRICES[-1:].repeat(7)])
    text = skew_warning(bins, counts, [([""] * 200, usual), ([f"v{i}" for i in range(10)], far)])
    assert text is not None
    assert text.startswith("far from the other targets")
    assert "v3 (-1e+12), v4 (-1e+12), v5 (-1e+12), v6 (-1e+12), v7 (-1e+12) and 2 more; see" in text
    exponential = -torch.linspace(0.001, 0.999, 999, dtype=torch.float64).log()
    bins = LabelBins.covering(0, 7, 7 / BINS)
    assert skew_warning(bins, bins.counts(bins.numbers(exponential)), [([""] * 999, exponential)]) is None
