"""The sentences of a verdict, every form of them."""

import math
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs pip install 'dadl[train]'")

from dadl.comparison.numbers import rounded, span, with_error
from dadl.comparison.results import Unit
from dadl.comparison.statistics import Difference, Sampling, Values, detectable, differences, repetitions
from dadl.comparison.verdict import Verdict, verdict

PLAIN = (10.0, 12.0, 11.0, 13.0)
LOWER = (2.1, 4.0, 2.9, 5.2)
SLIGHTLY_HIGHER = (10.9, 13.1, 12.0, 14.2)
AS_GOOD = (9.0, 13.0, 12.5, 11.5)


def values(splits: int = 1, **arms: tuple[float, ...]) -> Values:
    units = lambda count: [Unit(i % splits, i // splits) for i in range(count)]
    return {name: dict(zip(units(len(of_arm)), of_arm, strict=True)) for name, of_arm in arms.items()}


def told(scores: dict[str, Values], column: str = "MAE", row: str = "all", **options: Any) -> Verdict:
    samples = options.pop("samples", None)
    found = differences(scores, "plain", column, **options)
    return verdict(found, reference="plain", row=row, rows=list(scores), samples=samples)


def test_what_is_better_comes_before_what_is_worse() -> None:
    found = told(
        {"many": values(plain=PLAIN, LDS=SLIGHTLY_HIGHER), "few": values(plain=PLAIN, LDS=LOWER)},
        row="few",
    )
    assert found.sentences == {"LDS": "LDS lowers few-shot MAE by 7.95 ± 0.06 and raises many-shot by 1.05 ± 0.06."}


def test_several_rows_on_each_side() -> None:
    more = tuple(x + 1 for x in SLIGHTLY_HIGHER)
    found = told(
        {
            "all": values(plain=PLAIN, LDS=LOWER),
            "many": values(plain=PLAIN, LDS=SLIGHTLY_HIGHER),
            "medium": values(plain=PLAIN, LDS=more),
            "few": values(plain=PLAIN, LDS=LOWER),
        }
    )
    assert found.sentences["LDS"] == (
        "LDS lowers overall MAE by 7.95 ± 0.06 and few-shot by 7.95 ± 0.06, and raises medium-shot by 2.05 ± 0.06 and "
        "many-shot by 1.05 ± 0.06."
    )


def test_the_only_row_needs_no_name_and_higher_may_be_better() -> None:
    found = told({"all": values(plain=PLAIN, CE=SLIGHTLY_HIGHER)}, "accuracy %")
    assert found.sentences["CE"] == "CE raises accuracy % by 1.05 ± 0.06."


def test_the_most_certain_arm_comes_first() -> None:
    found = told({"all": values(plain=PLAIN, weak=AS_GOOD, clear=LOWER, same=PLAIN)})
    assert list(found.sentences) == ["clear", "weak", "same"]


def test_no_difference_and_what_would_show_one() -> None:
    scores = {"all": values(plain=PLAIN, RankSim=AS_GOOD)}
    (difference,) = differences(scores, "plain", "MAE")
    size = detectable(difference)
    count = repetitions(difference, size / 2)
    assert count is not None
    assert told(scores).sentences["RankSim"] == (
        f"RankSim: no difference seen; one of {size:.1f} in MAE would have been, with a power of 80%; "
        f"{count - 4} more seeds would show one of {size / 2:.1f}."
    )


def test_of_two_splits_the_verdict_says_that_they_show_nothing() -> None:
    scores = {"all": values(splits=2, plain=PLAIN[:2], RankSim=AS_GOOD[:2])}
    (difference,) = differences(scores, "plain", "MAE")
    assert detectable(difference) > difference.typical == pytest.approx(sum(PLAIN[:2]) / 2)
    count = repetitions(difference, difference.typical / 10)
    assert count is not None
    assert told(scores).sentences["RankSim"] == (
        "RankSim: no difference seen; not even one of the whole MAE of plain would have been, with a power of 80%; "
        f"{count - 2} more splits would show a tenth of it, {difference.typical / 10:.2g}."
    )


def test_no_number_of_splits_or_seeds_suffices() -> None:
    for share, shown in ((1.0, "one of"), (9.0, "a tenth of it")):
        splits = told({"all": values(splits=4, plain=PLAIN, RankSim=AS_GOOD)}, test_share=share)
        assert f"no number of splits would show {shown}" in splits.sentences["RankSim"]
        assert splits.sentences["RankSim"].endswith(": that takes more data.")
    seeds = told(
        {"all": values(plain=PLAIN, RankSim=AS_GOOD)}, sampling={("RankSim", "all"): Sampling(4.0, 12)}
    ).sentences["RankSim"]
    assert "no number of seeds would show one of" in seeds
    assert seeds.endswith(": that takes more test samples.")


def test_equal_scores_are_the_same() -> None:
    found = told({"all": values(plain=PLAIN, RankSim=PLAIN), "few": values(plain=LOWER, RankSim=LOWER)})
    assert found.sentences == {"RankSim": "RankSim: the same as plain, number by number."}


def test_a_row_that_is_the_same_beside_one_that_is_not() -> None:
    found = told({"all": values(plain=PLAIN, LDS=PLAIN), "few": values(plain=PLAIN, LDS=AS_GOOD)})
    assert found.sentences["LDS"].startswith("LDS: no difference seen; one of ")
    assert "in few-shot MAE" in found.sentences["LDS"]


def test_one_training_each_says_nothing() -> None:
    found = told({"all": values(plain=(10.0,), LDS=(9.25,))})
    assert found.sentences == {
        "LDS": "LDS: MAE is 0.750 lower than with plain, but one training each says nothing about chance."
    }
    assert "chance of training anew" not in " ".join(found.notes)


def test_seeds_that_change_nothing_say_nothing() -> None:
    found = told({"all": values(plain=(10.0, 11.0), LDS=(12.0, 13.0))})
    assert found.sentences == {
        "LDS": "LDS: MAE is 2.00 higher than with plain, but the seeds change nothing, which says nothing about chance."
    }


def test_nothing_to_compare_yet() -> None:
    found = told({"all": {"plain": {Unit(0, 1): 1.0}, "LDS": {}}})
    assert found.sentences == {
        "plain": "Nothing can be compared with plain yet: no pair of split and seed has a test of every arm."
    }
    assert found.notes == []


def test_what_one_split_holds_for() -> None:
    scores = {"all": values(plain=PLAIN, LDS=LOWER)}
    only = "This holds for one split into training and test samples; another one may say otherwise."
    assert told(scores).notes == [
        f"{only} The chance of training anew is counted, that of drawing these test samples is not."
    ]
    with_samples = told(scores, sampling={("LDS", "all"): Sampling(0.01, 30)}, samples={"all": (30, 30)})
    assert with_samples.notes == [
        f"{only} The chance of drawing these test samples is counted in.",
        "Test samples: 30.",
    ]
    assert "to which that over the test samples is added" in with_samples.method


def test_several_splits_name_their_correction_and_sizes() -> None:
    scores = {"all": values(4, plain=PLAIN, LDS=LOWER), "few": values(4, plain=PLAIN, LDS=LOWER)}
    found = told(scores, test_share=0.1, samples={"all": (500, 500), "few": (38, 45)})
    assert found.notes == ["Test samples: 500 overall, 38 to 45 few-shot."]
    assert "Nadeau and Bengio (2003)" in found.method
    assert found.method.count(". ") == 1  # two sentences


def test_what_is_left_out_is_said() -> None:
    nan = math.nan
    scores = {
        "all": values(plain=PLAIN, LDS=LOWER),
        "few": values(plain=(nan,) * 4, LDS=(nan,) * 4),
        "medium": values(plain=PLAIN, LDS=(*LOWER[:3], nan)),
    }
    notes = told(scores, samples={"all": (9, 9), "few": (0, 0), "medium": (4, 4)}).notes
    assert notes[1:] == [
        "Test samples: 9 overall, 4 medium-shot.",
        "Left out, with no test samples: few-shot.",
        "1 of 4 pairs of split and seed are left out in some rows, for all arms: one arm has no number there.",
    ]
    assert "Left out, with no numbers that could be compared: few-shot." in told(scores).notes


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (7.6543, 1.2987, "7.7 ± 1.3"),
        (1.62, 0.1, "1.62 ± 0.10"),
        (3.42, 0.87, "3.4 ± 0.9"),
        (3.42, 0.098, "3.42 ± 0.10"),
        (-3.42, 0.996, "−3.4 ± 1.0"),
        (1234.4, 56.0, "1230 ± 60"),
        (0.0, 0.2, "0.00 ± 0.20"),
        (-0.001, 0.2, "0.00 ± 0.20"),
        (1.5e-9, 2.2e-10, "(1.50 ± 0.22)e-9"),
        (2.5e9, 4e8, "(2.5 ± 0.4)e9"),
        (0.12345, math.nan, "0.123"),
        (math.nan, 1.0, "–"),
        (7.0, 0.0, "7.00"),
    ],
)
def test_numbers_have_the_digits_of_their_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_numbers_without_an_error() -> None:
    assert [rounded(x) for x in (1234.5, 12.345, 0.012345, 0.0, -2.0)] == ["1234", "12.3", "0.0123", "0", "−2.00"]
    assert [span(3, 3), span(3, 1200)] == ["3", "3 to 1,200"]


def test_a_difference_knows_its_units() -> None:
    found: list[Difference] = differences({"all": values(plain=PLAIN, LDS=LOWER)}, "plain", "MAE")
    assert [(d.units, d.left_out, d.count) for d in found] == [(4, 0, 4)]
