"""Shot metrics by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from dadl import ErrorMetrics, risk_coverage, shot_metrics, shot_regions

COUNTS = [500, 101, 100, 20, 19, 0]


def test_regions_at_their_borders() -> None:
    regions = shot_regions(COUNTS)
    assert regions["many"].tolist() == [True, True, False, False, False, False]
    assert regions["medium"].tolist() == [False, False, True, True, False, False]
    assert regions["few"].tolist() == [False, False, False, False, True, True]
    assert regions["all"].all()


def test_metrics_by_hand() -> None:
    bins = [0, 0, 0, 1, 4, 5]
    target = np.array([10.0, 10.0, 10.0, 11.0, 14.0, 15.0])
    prediction = target + np.array([1.0, -2.0, 3.0, -4.0, 8.0, 2.0])
    metrics = shot_metrics(prediction, target, bins, COUNTS)

    many = metrics["many"]
    assert many.samples == 4
    assert many.mae == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert many.mse == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert many.gm == pytest.approx((1 * 2 * 3 * 4) ** (1 / 4))
    assert many.bmae == pytest.approx(((1 + 2 + 3) / 3 + 4) / 2)
    few = metrics["few"]
    assert (few.samples, few.mae, few.mse, few.bmae) == (2, 5, 34, 5)
    assert few.gm == pytest.approx(4)
    assert metrics["all"].mae == pytest.approx(20 / 6)
    assert metrics["all"].bmae == pytest.approx((2 + 4 + 8 + 2) / 4)


def test_an_empty_region_is_nan_not_zero() -> None:
    medium = shot_metrics([1.0], [2.0], [0], COUNTS)["medium"]
    assert medium.samples == 0
    assert all(math.isnan(value) for value in (medium.mae, medium.mse, medium.gm, medium.bmae))
    assert math.isnan(ErrorMetrics().mae)


def test_an_exact_prediction_does_not_make_the_geometric_mean_zero() -> None:
    metrics = shot_metrics([1.0, 2.0], [1.0, 3.0], [0, 0], COUNTS)["all"]
    assert metrics.gm == pytest.approx(math.sqrt(1e-10), rel=1e-6)


@pytest.mark.parametrize("values", [4, 10_000])
def test_correlations_equal_scipy(values: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    target = rng.integers(0, values, 200).astype(float)
    prediction = np.round(target + rng.normal(0, values / 3, 200), -2 if values > 4 else 0)
    bins = rng.integers(0, len(COUNTS), 200)
    metrics = shot_metrics(prediction, target, bins, COUNTS)
    for region, mask in shot_regions(COUNTS).items():
        rows = mask.numpy()[bins]
        expected = (
            stats.pearsonr(prediction[rows], target[rows])[0],
            stats.spearmanr(prediction[rows], target[rows])[0],
        )
        assert (metrics[region].pearson, metrics[region].spearman) == pytest.approx(expected, rel=1e-12)


def test_correlations_of_constants_are_undefined() -> None:
    constant = shot_metrics([0.1] * 3, [1.0, 2.0, 3.0], [0, 0, 0], COUNTS)["all"]
    single = shot_metrics([1.0], [2.0], [0], COUNTS)["all"]
    unknown = shot_metrics([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], [0, 0, 0], COUNTS)["all"]
    for metrics in (constant, single, unknown):
        assert math.isnan(metrics.pearson)
        assert math.isnan(metrics.spearman)
    assert single.mae == 1


def test_tensors_that_require_grad_and_half_precision_are_accepted() -> None:
    prediction = torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True)
    assert shot_metrics(prediction, torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor(COUNTS))["all"].mae == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [0], COUNTS), r"shapes \[1\], \[2\] and \[1\]"),
        (([[1.0]], [[1.0]], [[0]], COUNTS), "vectors"),
        (([1.0], [1.0], [6], COUNTS), r"bins must be in \[0, 6\).*from 6 to 6"),
        (([1.0], [1.0], [-1], COUNTS), "from -1 to -1"),
        (([1.0], [1.0], [0.5], COUNTS), "bins must be integers.*bin_labels"),
        (([1.0], [1.0], [0], [[1]]), r"counts must be a vector \[num_bins\]"),
    ],
)
def test_errors_say_what_is_expected(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shot_metrics(*arguments)


def test_regions_must_not_overlap() -> None:
    with pytest.raises(ValueError, match="few=30 and many=20"):
        shot_regions(COUNTS, many=20, few=30)


def test_the_largest_coverage_within_a_risk() -> None:
    curve = risk_coverage([4, 3, 2, 1], [1, 1, 0, 0])
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert [curve.coverage_at(risk) for risk in (-1, 0, 0.3, 0.34, 0.5)] == [0, 0.5, 0.5, 0.75, 1]
