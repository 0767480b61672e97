r"""What chance says about differences between ways to train, paired by split and seed.

Let :math:`d` be the difference of a score to that of the reference, arm minus reference.

- **One split**, J seeds, deviation s of d over the seeds: mean :math:`\bar d`, variance :math:`s^2 / J + v`, where v is
  the variance that the choice of the test samples leaves (:class:`Sampling`; 0 if it is not known). Degrees of freedom
  are J − 1, or with v those of Welch and Satterthwaite.
- **K splits**: d is averaged over the seeds of each split. Training sets of random splits overlap, so the variance is
  :math:`s^2 (1 / K + n_\text{test} / n_\text{train})`, the corrected resampled t test of Nadeau and Bengio ("Inference
  for the Generalization Error", Machine Learning 52, 2003), with K − 1 degrees of freedom.

Both variances are :math:`s^2 / N + f` for N repetitions, seeds or splits, and a floor f below which no number of them
leads. All differences of a comparison are tested together by Holm's method: if no arm differs from the reference, at
most 5 % of comparisons find a difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..metrics import higher_is_better
from .results import Unit

LEVEL = 0.05
"""How many comparisons of equal arms may find a difference."""
POWER = 0.8
"""How many trainings anew would show a difference that :func:`detectable` calls visible."""
ROUNDING = 1e-9
"""Differences that spread by less than this share of the scores spread by rounding alone."""
MOST_REPETITIONS = 10_000

Values = Mapping[str, Mapping[Unit, float]]
"""``values[arm][unit]``: one score, such as the MAE of the few-shot region."""


@dataclass(frozen=True)
class Sampling:
    """What the choice of test samples leaves to chance: the ``variance`` of the mean difference over ``samples``."""

    variance: float
    samples: int

    @classmethod
    def of(cls, errors: npt.ArrayLike, reference: npt.ArrayLike) -> "Sampling":
        """From errors of single samples whose mean is the score.

        Args:
            errors: of an arm, ``[seeds, samples]``.
            reference: of the reference, with the same seeds and samples.

        Raises:
            ValueError: shapes that differ, or are not matrices.
        """
        ours, theirs = np.asarray(errors, dtype=np.float64), np.asarray(reference, dtype=np.float64)
        if ours.ndim != 2 or ours.shape != theirs.shape:
            raise ValueError(
                f"expected two matrices [seeds, samples] of one shape, got {ours.shape} and {theirs.shape}"
            )
        paired = (ours - theirs).mean(axis=0)
        samples = len(paired)
        return cls(float(paired.var(ddof=1)) / samples if samples > 1 else math.nan, samples)


@dataclass(frozen=True)
class Difference:
    """An arm's difference to the reference in one score, ``scores[row][column]``.

    ``mean``: arm minus reference. ``error``: its standard error. ``low``, ``high``: the interval, at 1 − ``level``.
    ``p``: of the two-sided t test with ``freedom`` degrees of freedom. ``found``: whether Holm's method finds it, which
    is exactly if the interval excludes 0. All of these but ``mean`` are NaN if there is nothing to tell chance by.
    ``same``: the scores are equal in all units. ``units``: pairs that went in; ``left_out``: pairs without a number.
    ``repeated``: what was repeated ``count`` times, with deviation ``spread``; ``floor``: the part of the variance that
    more repetitions do not lessen, of ``samples`` test samples if it stems from them. ``typical``: the mean size of the
    reference's score.
    """

    arm: str
    row: str
    column: str
    mean: float
    units: int
    left_out: int
    repeated: Literal["seeds", "splits"]
    count: int
    spread: float
    typical: float
    floor: float = 0.0
    samples: int | None = None
    same: bool = False
    error: float = math.nan
    freedom: float = math.nan
    p: float = math.nan
    level: float = math.nan
    low: float = math.nan
    high: float = math.nan
    found: bool = False

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.error)

    @property
    def better(self) -> bool:
        """Whether the mean is on the better side of the reference."""
        return self.mean != 0 and (self.mean > 0) == higher_is_better(self.column)


def differences(
    scores: Mapping[str, Values],
    reference: str,
    column: str,
    *,
    test_share: float = 0.0,
    sampling: Mapping[tuple[str, str], Sampling] | None = None,
) -> list[Difference]:
    """The difference of every arm to the reference in every row of a column, tested together.

    A row counts the units for which every arm has a finite number. A row without any, such as an empty region, has no
    differences.

    Args:
        scores: ``scores[row][arm][unit]``, with the same arms in every row.
        reference: the arm that the others are compared with.
        column: what the scores are, such as ``"MAE"``; it decides whether higher is better.
        test_share: test samples over training samples, :math:`n_\\text{test} / n_\\text{train}`.
        sampling: of arms and rows, ``sampling[arm, row]``; it is used where there is one split.

    Returns:
        Arm by arm, row by row, in their given order.

    Raises:
        ValueError: a reference that is not among the arms, or a ``test_share`` that is negative or not finite.
    """
    if not 0 <= test_share < math.inf:
        raise ValueError(f"test_share must be a finite number from 0 on, got {test_share}")
    missing = [row for row, of_arms in scores.items() if reference not in of_arms]
    if missing:
        raise ValueError(f"the reference {reference!r} has no scores in {missing[0]!r}: name one of the arms")
    names = dict.fromkeys(arm for of_arms in scores.values() for arm in of_arms if arm != reference)
    shared = {row: shared_units(of_arms) for row, of_arms in scores.items()}
    measured = [
        _with_error(
            _difference(arm, row, column, of_arms, reference, *shared[row]),
            test_share,
            (sampling or {}).get((arm, row)),
        )
        for arm in names
        for row, of_arms in scores.items()
        if shared[row][0]
    ]
    return _tested(measured)


def detectable(difference: Difference, count: int | None = None) -> float:
    """The smallest true difference that so many seeds or splits show with a power of 80 %; NaN without an interval.

    ``count``: repetitions. [default: those of the difference] The deviation and the level of the test are taken to be
    the same then. The power is that of the noncentral t distribution.
    """
    from scipy import optimize, stats

    if not difference.error > 0:
        return math.nan
    error, freedom = _error(difference, count or difference.count)
    if not freedom > 0:
        return math.nan
    critical = float(stats.t.isf(difference.level / 2, freedom))
    lacking = lambda shift: float(stats.nct.sf(critical, freedom, shift)) - POWER
    # A little above the shift of a t statistic whose scale is at its 80 % quantile.
    most = critical * math.sqrt(float(stats.chi2.ppf(0.99, freedom)) / freedom) + 5
    return error * float(optimize.brentq(lacking, 0.0, most))


def repetitions(difference: Difference, size: float) -> int | None:
    """How many seeds or splits show a difference of that ``size`` with a power of 80 %.

    None if no number does, or only more than 10,000.
    """
    from scipy import stats

    if not difference.error > 0 or size <= 0:
        return None
    if size <= math.sqrt(difference.floor) * float(stats.norm.isf(difference.level / 2) + stats.norm.ppf(POWER)):
        return None
    shows = lambda count: detectable(difference, count) <= size
    low, high = 1, 2
    while not shows(high):
        low, high = high, 2 * high
        if high > MOST_REPETITIONS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def shared_units(values: Values) -> tuple[list[Unit], int]:
    """The units for which every arm has a finite number, and how many other units there are."""
    every = sorted({unit for of_arm in values.values() for unit in of_arm}, key=lambda unit: (unit.split, unit.seed))
    shared = [unit for unit in every if all(math.isfinite(of_arm.get(unit, math.nan)) for of_arm in values.values())]
    return shared, len(every) - len(shared)


def _difference(
    arm: str, row: str, column: str, values: Values, reference: str, units: Sequence[Unit], left_out: int
) -> Difference:
    """The mean and the spread, without a test."""
    of_split: dict[int, list[float]] = {}
    for unit in units:
        of_split.setdefault(unit.split, []).append(values[arm][unit] - values[reference][unit])
    several = len(of_split) > 1
    (of_seeds, *_) = of_split.values()
    repeated = np.array([np.mean(of_one) for of_one in of_split.values()] if several else of_seeds)
    size = max(abs(values[name][unit]) for name in (arm, reference) for unit in units)
    spread = float(repeated.std(ddof=1)) if len(repeated) > 1 else math.nan
    return Difference(
        arm=arm,
        row=row,
        column=column,
        mean=float(repeated.mean()),
        units=len(units),
        left_out=left_out,
        repeated="splits" if several else "seeds",
        count=len(repeated),
        spread=0.0 if spread <= ROUNDING * size else spread,
        typical=abs(float(np.mean([values[reference][unit] for unit in units]))),
        same=all(values[arm][unit] == values[reference][unit] for unit in units),
    )


def _with_error(difference: Difference, test_share: float, sampling: Sampling | None) -> Difference:
    """With standard error and degrees of freedom, where the repetitions say something about chance."""
    if difference.same:
        return replace(difference, error=0.0)
    if difference.repeated == "splits":
        difference = replace(difference, floor=test_share * difference.spread**2)
    elif sampling is not None and math.isfinite(sampling.variance):
        difference = replace(difference, floor=sampling.variance, samples=sampling.samples)
    if math.isnan(difference.spread) or difference.spread == difference.floor == 0:
        return difference  # one training each, or repetitions that change nothing
    error, freedom = _error(difference, difference.count)
    return replace(difference, error=error, freedom=freedom)


def _error(difference: Difference, count: int) -> tuple[float, float]:
    """The standard error with that many repetitions, and its degrees of freedom."""
    repeated, floor = difference.spread**2 / count, difference.floor
    if difference.samples is None:
        return math.sqrt(repeated + floor), count - 1.0
    parts = repeated**2 / (count - 1) if count > 1 else math.inf
    return math.sqrt(repeated + floor), (repeated + floor) ** 2 / (parts + floor**2 / (difference.samples - 1))


def _tested(measured: Sequence[Difference]) -> list[Difference]:
    """With p, what Holm's method finds, and each interval at the level of its step."""
    from scipy import stats

    chance = [i for i, difference in enumerate(measured) if difference.error > 0]
    mean, error, freedom = (
        np.array([getattr(measured[i], key) for i in chance]) for key in ("mean", "error", "freedom")
    )
    p = 2 * stats.t.sf(np.abs(mean) / error, freedom)
    steps = _holm([*p.tolist(), *(1.0 for difference in measured if difference.same)])
    reach = error * stats.t.isf(np.array([steps[value][0] for value in p]) / 2, freedom)
    tested = list(measured)
    for i, value, length in zip(chance, p.tolist(), reach.tolist(), strict=True):
        level, found = steps[value]
        low, high = tested[i].mean - length, tested[i].mean + length
        tested[i] = replace(tested[i], p=value, level=level, low=low, high=high, found=found)
    return [replace(d, p=1.0, level=steps[1.0][0], low=0.0, high=0.0) if d.same else d for d in tested]


def _holm(ps: Sequence[float]) -> dict[float, tuple[float, bool]]:
    """For each p the level that Holm's step-down method compares it with, and whether it is found.

    Equal p share the strictest level.
    """
    steps: dict[float, tuple[float, bool]] = {}
    level, going_on = LEVEL, True
    for step, p in enumerate(sorted(ps)):
        if p not in steps:
            level = LEVEL / (len(ps) - step) if going_on else level
            going_on = going_on and p <= level
            steps[p] = (level, going_on)
    return steps
