"""Differences between arms, from simulated scores whose truth is known."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="needs pip install 'dadl[train]'")

from dadl.comparison.results import Unit
from dadl.comparison.statistics import LEVEL, POWER, Difference, Sampling, Values, detectable, differences, repetitions
from scipy import stats

ROWS = ("all", "many", "medium", "few")
ARMS = ("plain", "a", "b", "c", "d")
COMPARISONS = 1000
MOST_FOUND = float(stats.binom.ppf(0.999, COMPARISONS, LEVEL)) / COMPARISONS
"""A share of 5 % in truth exceeds this in one of 1000 simulations of that many comparisons."""

Array = npt.NDArray[np.float64]


def compare(scores: Array, splits: int = 1, column: str = "MAE", **options: object) -> list[Difference]:
    """Differences of scores ``[row, arm, unit]``, whose units are ``splits`` times as many seeds."""
    units = [Unit(split, seed) for split in range(splits) for seed in range(scores.shape[2] // splits)]
    table = {
        row: {arm: dict(zip(units, of_arm.tolist(), strict=True)) for arm, of_arm in zip(ARMS, of_row, strict=False)}
        for row, of_row in zip(ROWS, scores, strict=False)
    }
    return differences(table, "plain", column, **options)  # type: ignore[arg-type]


def test_the_paired_t_test_of_one_difference() -> None:
    plain, a = np.array([9.0, 8.0, 8.5, 9.5]), np.array([8.0, 7.5, 7.0, 9.0])
    (found,) = compare(np.stack([plain, a])[None])
    expected = stats.ttest_rel(a, plain)
    low, high = expected.confidence_interval(1 - LEVEL)
    assert (found.arm, found.row, found.column, found.units, found.count) == ("a", "all", "MAE", 4, 4)
    assert [found.mean, found.p, found.low, found.high] == pytest.approx([-0.875, expected.pvalue, low, high])
    assert found.error == pytest.approx(stats.sem(a - plain))
    assert found.found
    assert found.better
    assert found.repeated == "seeds"


def test_the_corrected_variance_over_splits() -> None:
    """By hand: two seeds each of three splits, whose means are -1, -2 and -3."""
    of_seeds = np.array([-0.5, -1.5, -2.0, -2.0, -3.5, -2.5])
    (found,) = compare(np.stack([np.zeros(6), of_seeds])[None], splits=3, test_share=0.125)
    error = math.sqrt(1 / 3 + 0.125)
    assert (found.mean, found.spread, found.count, found.repeated, found.freedom) == (-2, 1, 3, "splits", 2)
    assert found.error == pytest.approx(error)
    assert found.p == pytest.approx(2 * stats.t.sf(2 / error, 2))


def test_holm_by_hand() -> None:
    """p of .01, .04 and .03: Holm compares the first with .05 / 3, stops at .03 > .05 / 2."""
    wanted = {"a": 0.01, "b": 0.04, "c": 0.03}
    noise = np.array([-1.0, 0.0, 1.0])
    shifts = [stats.t.isf(p / 2, 2) / math.sqrt(3) for p in wanted.values()]
    found = compare(np.stack([np.zeros(3), *(shift + noise for shift in shifts)])[None])
    assert [d.p for d in found] == pytest.approx(list(wanted.values()))
    assert [d.found for d in found] == [True, False, False]
    assert [d.level for d in found] == pytest.approx([LEVEL / 3, LEVEL / 2, LEVEL / 2])


@pytest.mark.parametrize("seeds", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_equal_arms_differ_in_one_split_in_five_percent_of_comparisons(seeds: int) -> None:
    """Rows share noise, as ``all`` does with its regions; so do arms, by their common reference."""
    draw = np.random.default_rng(seeds)
    mixing = np.array([[0.6, 0.5, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    runs = (mixing @ draw.normal(size=(COMPARISONS, 4, 5 * seeds))).reshape(COMPARISONS, 4, 5, seeds)
    assert share_found(runs) <= MOST_FOUND


@pytest.mark.slow
@pytest.mark.parametrize("splits", [2, 10])
def test_equal_arms_differ_over_splits_in_five_percent_of_comparisons(splits: int) -> None:
    """Arms that predict by least squares from features of noise, in random splits of data that are drawn anew."""
    draw = np.random.default_rng(splits)
    runs = np.array([noise_regressions(draw, splits) for _ in range(COMPARISONS)])
    assert share_found(runs, splits, test_share=20 / 60) <= MOST_FOUND
    if splits == 10:  # what the correction is for
        assert share_found(runs, splits, test_share=0.0) > 2 * MOST_FOUND


def noise_regressions(draw: np.random.Generator, splits: int, train: int = 60, test: int = 20) -> Array:
    """Scores ``[4 rows, 5 arms, splits]`` of linear regressions, each arm's on features of its own."""
    target = draw.normal(size=train + test)
    features = draw.normal(size=(5, train + test, 4))
    scores = np.empty((4, 5, splits))
    for split in range(splits):
        order = draw.permutation(train + test)
        fitted, tested = order[:train], order[train:]
        x = features[:, fitted]
        weights = np.linalg.solve(x.mT @ x, (x.mT @ target[fitted])[..., None])
        errors = np.abs(target[tested] - np.squeeze(features[:, tested] @ weights, -1))
        regions = np.digitize(target[tested], [-0.5, 0.5])
        of_regions = [errors[:, regions == r] for r in range(3)]
        scores[:, :, split] = [
            of_one.mean(axis=1) if of_one.size else np.full(5, math.nan) for of_one in (errors, *of_regions)
        ]
    return scores


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "samples"), [(2, 8), (10, 10)])
def test_equal_arms_differ_in_few_samples_in_five_percent_of_comparisons(seeds: int, samples: int) -> None:
    """An arm may be better on the few samples that were drawn, in every training, and yet not in general."""
    draw = np.random.default_rng(samples)
    alone = together = 0
    for _ in range(COMPARISONS):
        of_samples = draw.normal(size=(4, 5, 1, samples))  # which samples an arm gets right, whatever its seed
        errors = of_samples + draw.normal(size=(4, 5, seeds, samples)) + 0.1 * draw.normal(size=(4, 5, seeds, 1))
        sampling = {
            (arm, row): Sampling.of(errors[r, a], errors[r, 0])
            for r, row in enumerate(ROWS)
            for a, arm in enumerate(ARMS[1:], start=1)
        }
        together += any(d.found for d in compare(errors.mean(axis=-1), sampling=sampling))
        alone += any(d.found for d in compare(errors.mean(axis=-1)))
    assert together / COMPARISONS <= MOST_FOUND
    if seeds == 10:  # what seeds alone do not know
        assert alone / COMPARISONS > 2 * MOST_FOUND


def share_found(runs: Array, splits: int = 1, **options: float) -> float:
    """How many of the comparisons ``[N, rows, arms, units]`` find anything."""
    return sum(any(d.found for d in compare(scores, splits, **options)) for scores in runs) / len(runs)


@pytest.mark.parametrize("splits", [1, 6])
def test_planted_effects_are_found_and_intervals_cover(splits: int) -> None:
    """As often as the noncentral t distribution says, at the level of Holm's first step."""
    draw, size, deviation, trials = np.random.default_rng(7), 2.0, 0.5, 300
    effect = np.zeros((4, 5, 1))
    effect[3, 2] = -size
    covered, found = [], []
    for _ in range(trials):
        tested = compare(effect + deviation * draw.normal(size=(4, 5, 6)), splits)
        truth = {(arm, row): float(effect[r, a, 0]) for r, row in enumerate(ROWS) for a, arm in enumerate(ARMS)}
        covered += [d.low <= truth[d.arm, d.row] <= d.high for d in tested]
        found += [d.found and d.mean < 0 for d in tested if (d.arm, d.row) == ("b", "few")]
    shift = size / (deviation * math.sqrt(2 / 6))
    power = stats.nct.sf(stats.t.isf(LEVEL / 16 / 2, 5), 5, shift)
    assert power > 0.8
    assert np.mean(found) >= power - 3 * math.sqrt(power * (1 - power) / trials)
    assert np.mean(covered) >= 1 - LEVEL


scores_of_two = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)


@given(st.lists(scores_of_two, min_size=2, max_size=5), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_an_interval_excludes_0_exactly_if_the_difference_is_found(
    of_arms: list[list[float]], share: float, several: bool
) -> None:
    count = min(map(len, of_arms))
    scores = np.array([of_arm[:count] for of_arm in of_arms])[None]
    tested = compare(scores, count if several else 1, test_share=share)
    for difference in tested:
        if difference.has_interval:
            assert difference.low <= difference.mean <= difference.high
            assert difference.found == (not difference.low <= 0 <= difference.high)
            assert difference.found == (difference.p <= difference.level)
            assert LEVEL / len(tested) <= difference.level <= LEVEL
        else:
            assert math.isnan(difference.p)
            assert not difference.found


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arms_and_units_changes_nothing(of_arms: list[list[int]], random: object) -> None:
    units = [Unit(split, seed) for split in (0, 1) for seed in (1, 2)]
    names = ARMS[: len(of_arms)]
    table = {
        name: dict(zip(units, map(float, of_arm), strict=True)) for name, of_arm in zip(names, of_arms, strict=True)
    }
    arms, order = list(table.items()), list(units)
    random.shuffle(arms)  # type: ignore[attr-defined]
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = {name: {unit: of_arm[unit] for unit in order} for name, of_arm in arms}
    one = {d.arm: d for d in differences({"all": table}, "plain", "MAE", test_share=0.2)}
    other = {d.arm: d for d in differences({"all": shuffled}, "plain", "MAE", test_share=0.2)}
    for name in names[1:]:
        assert repr(one[name]) == repr(other[name])


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_the_unit_and_the_origin_of_a_score_do_not_matter(scale: float, shift: float) -> None:
    scores = np.random.default_rng(3).normal(size=(2, 3, 5))
    for one, other in zip(compare(scores), compare(scale * scores + shift), strict=True):
        assert [other.mean, other.error, other.p] == pytest.approx(
            [scale * one.mean, scale * one.error, one.p], rel=1e-6
        )
        assert one.found == other.found


def test_equal_scores_are_the_same_and_no_finding() -> None:
    noise = np.random.default_rng(0).normal(size=5)
    same, other = compare(np.stack([noise, noise, noise + 1 + 0.01 * noise**2])[None])
    assert (same.same, same.found, same.mean, same.error, same.low, same.high, same.p) == (True, False, 0, 0, 0, 0, 1)
    assert (other.same, other.found) == (False, True)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_seeds_that_change_nothing_say_nothing_about_chance(size: float) -> None:
    """A training without randomness has the same difference each time, up to rounding."""
    plain = size * np.array([0.1, 0.7, 0.3])
    (found,) = compare(np.stack([plain, plain + size / 3])[None])
    assert not found.has_interval
    assert not found.found
    assert found.mean == pytest.approx(size / 3)


def test_one_unit_has_no_interval() -> None:
    (found,) = compare(np.array([[[3.0], [2.0]]]), sampling={("a", "all"): Sampling(0.1, 50)})
    assert (found.mean, found.units, found.has_interval, found.found) == (-1, 1, False, False)
    assert math.isnan(found.p)
    assert math.isnan(detectable(found))
    assert repetitions(found, 1.0) is None


def test_empty_regions_and_single_gaps_are_left_out() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 2, 4))
    scores[1] = math.nan
    scores[2, 1, 3] = math.inf
    tested = compare(scores)
    assert [(d.row, d.units, d.left_out) for d in tested] == [("all", 4, 0), ("medium", 3, 1)]
    assert {d.level for d in tested if not d.found} <= {LEVEL, LEVEL / 2}


def test_a_unit_that_one_arm_lacks_is_left_out_for_all() -> None:
    units = [Unit(0, seed) for seed in (1, 2, 3)]
    table = {
        "plain": {unit: float(unit.seed) for unit in units},
        "a": {unit: unit.seed + 1.5 * unit.seed for unit in units},
        "b": {unit: unit.seed + 0.1 * unit.seed for unit in units[1:]},
    }
    assert {(d.arm, d.units, d.left_out) for d in differences({"all": table}, "plain", "MAE")} == {
        ("a", 2, 1),
        ("b", 2, 1),
    }


def test_what_cannot_be_compared_is_refused() -> None:
    values: Values = {"a": {Unit(0, 1): 1.0}}
    with pytest.raises(ValueError, match="the reference 'plain' has no scores in 'all'"):
        differences({"all": values}, "plain", "MAE")
    for share in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="test_share must be a finite number"):
            differences({"all": values}, "a", "MAE", test_share=share)
    with pytest.raises(ValueError, match=r"two matrices \[seeds, samples\]"):
        Sampling.of(np.zeros((2, 3)), np.zeros((2, 4)))


def test_the_direction_of_a_score_decides_what_is_better() -> None:
    scores = np.stack([np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.1, 4.0])])[None]
    for column, better in (("MAE", False), ("accuracy %", True), ("Pearson", True)):
        assert [d.better for d in compare(scores, column=column)] == [better]


def test_the_variance_over_samples() -> None:
    errors = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 2.0]])
    found = Sampling.of(errors, np.ones((2, 3)))
    assert (found.variance, found.samples) == (pytest.approx(np.var([1.0, 1.0, 3.0], ddof=1) / 3), 3)
    assert math.isnan(Sampling.of(errors[:, :1], errors[:, :1]).variance)


def test_both_variances_add_up() -> None:
    plain, a = np.array([9.0, 8.0, 8.5, 9.5]), np.array([8.0, 7.5, 7.0, 9.0])
    seeds = stats.sem(a - plain) ** 2
    (found,) = compare(np.stack([plain, a])[None], sampling={("a", "all"): Sampling(0.05, 11)})
    assert found.error == pytest.approx(math.sqrt(seeds + 0.05))
    assert found.freedom == pytest.approx((seeds + 0.05) ** 2 / (seeds**2 / 3 + 0.05**2 / 10))
    assert found.samples == 11


def difference(**changes: object) -> Difference:
    (found,) = compare(np.stack([np.zeros(6), np.array([0.3, -1.0, 0.2, 1.1, -0.4, 0.1])])[None])
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 6, 20])
def test_the_detectable_difference_is_seen_in_four_of_five_trainings(count: int) -> None:
    size, spread = detectable(difference(), count), difference().spread
    draws = size + spread * np.random.default_rng(count).normal(size=(4000, count))
    # The deviation of each is estimated anew, so the test is Student's.
    seen = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue <= LEVEL)
    assert seen == pytest.approx(POWER, abs=4 * math.sqrt(0.8 * 0.2 / 4000))


def test_the_number_of_repetitions_is_the_smallest_that_shows_it() -> None:
    found = difference()
    for part in (0.9, 0.5, 0.1):
        size = part * detectable(found)
        count = repetitions(found, size)
        assert count is not None
        assert detectable(found, count) <= size < detectable(found, count - 1)


def test_no_number_of_splits_leads_below_the_floor() -> None:
    """With n_test / n_train = 1 / 8, the error never falls below s √(1 / 8)."""
    scores = np.stack([np.zeros(30), np.random.default_rng(2).normal(size=30)])[None]
    (found,) = compare(scores, splits=30, test_share=0.125)
    limit = math.sqrt(0.125) * found.spread * (stats.norm.isf(LEVEL / 2) + stats.norm.ppf(POWER))
    assert repetitions(found, 0.99 * limit) is None
    assert repetitions(found, 1.05 * limit) is not None
    assert limit < detectable(found, 10_000) < 1.01 * limit


def test_many_levels_of_freedom_have_a_detectable_difference() -> None:
    finite: Callable[[float], bool] = math.isfinite
    for level in (LEVEL, LEVEL / 16, LEVEL / 100):
        found = difference(level=level)
        sizes = [detectable(found, count) for count in (2, 3, 5, 10, 1000)]
        assert all(map(finite, sizes))
        assert sizes == sorted(sizes, reverse=True)
