"""Arms: what a file may say, what is refused, and which values are tried."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl.comparison.arms import check_arms, factors_of, plain_arms, read_arms
from dadl.documents import parse_yaml
from dadl.errors import SettingsError
from dadl.ranksim.recipe import RankSimRecipe
from dadl.recipes import RECIPES, default_arms, make_recipe

TWO = {"plain": {"ranksim": 0}, "LDS": {"reweighting": "inverse", "lds": True}}
BASE = RankSimRecipe(data=Path("x.csv"), target="y", features=("x",))


def checked(plain: dict[str, Any], trust_code: bool = False) -> None:
    arms, _ = read_arms(plain, RankSimRecipe)
    check_arms(arms, BASE, trust_code=trust_code)


@pytest.mark.parametrize(
    ("plain", "what"),
    [
        ({}, "arms must name at least two ways to train"),
        ({"arms": {"plain": {}}}, "arms must name at least two"),
        ({"arm": TWO}, r"'arm' is none of reference, tune and arms; did you mean arms\?"),
        ({"arms": TWO, "reference": "vanilla"}, "the reference 'vanilla' is none of the arms: plain, LDS"),
        ({"arms": {**TWO, "lds": {}}}, "arms 'LDS' and 'lds' would share the folder lds"),
        ({"arms": {**TWO, "!": {}}}, "arm '!' needs a name with letters or digits"),
        ({"arms": {**TWO, "a": [1]}}, r"arm a is \[1\]; expected settings"),
        ({"arms": {**TWO, "a": {"reweigting": 1}}}, "arm a: ranksim has no setting 'reweigting'; did you mean reweig"),
        ({"arms": {**TWO, "a": {"seed": 1}}}, "arm a: seed is the same for all arms; leave it out"),
        ({"arms": {**TWO, "a": {"then": {"data": "y"}}}}, "arm a, then: data is the same for all arms"),
        ({"arms": {**TWO, "a": {"lds": True}}}, "arm a: lds smooths the counts of a reweighting"),
        ({"arms": {**TWO, "a": {"lr": -1}}}, "arm a: lr is -1"),
        ({"arms": {**TWO, "a": {"lr": 1.0, "tune": {"lr": [1.0]}}}}, "arm a: lr is set and tuned"),
        ({"arms": {**TWO, "a": {"tune": {"lr": []}}}}, r"arm a, tune: lr is \[\]; expected a list of values"),
        ({"arms": {**TWO, "a": {"tune": {"lr": [0.1, 0]}}}}, "arm a with lr 0: lr is 0"),
        ({"arms": {**TWO, "a": {"tune": {"loss": {"from": 1, "to": 2}}}}}, "arm a, tune: loss is no number"),
        ({"arms": TWO, "tune": {"lr": {"from": 2, "to": 1}}}, "tune: lr is from 2 to 1; expected 0 < from < to"),
        ({"arms": TWO, "tune": {"lr": {"from": "0.1x", "to": 1}}}, "lr is from 0.1x to 1; expected both relative"),
        ({"arms": TWO, "tune": {"lr": {"from": "tiny", "to": 1}}}, "lr is from 'tiny' to 1"),
        ({"arms": TWO, "tune": {"hidden": {"from": 1.5, "to": 8}}}, "hidden is a whole number"),
        ({"arms": TWO, "tune": {"lr": {"low": 1, "high": 2}}}, "expected a list of values"),
        ({"arms": {**TWO, "a": {"backbone": "os:abort"}}}, "arm a names code that would be executed here"),
        ({"arms": {**TWO, "a": {"tune": {"backbone": ["os:abort"]}}}}, "arm a names code that would be executed here"),
    ],
)
def test_what_is_wrong_is_named(plain: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        checked(plain)


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["0.1x", "mse"])
)
names = st.sampled_from(
    [*"ab", "tune", "then", "arms", "reference", "lr", "loss", "lds", "hidden", "from", "to", "text"]
)
values = st.recursive(
    leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(names, part, max_size=4), max_leaves=12
)


@given(
    plain=st.fixed_dictionaries(
        {"arms": st.dictionaries(names, values, min_size=2, max_size=3)}, optional={"tune": values}
    )
)
def test_any_file_is_read_or_refused_with_a_sentence(plain: dict[str, Any]) -> None:
    try:
        checked(plain, trust_code=True)
    except SettingsError:
        return
    arms, reference = read_arms(plain, RankSimRecipe)
    assert read_arms({"arms": plain_arms(arms), "reference": reference}) == (arms, reference)
    scales = {name: {text: 1.0 + factor for text, factor in own.items()} for name, own in factors_of(arms).items()}
    for arm in arms:
        assert len(arm.trials(3, 0, scales)) == (3 if arm.space else 0)


def test_trials_are_a_latin_hypercube_with_the_same_places_in_all_arms() -> None:
    plain = {
        "tune": {"lr": {"from": 0.01, "to": 1.0}, "hidden": {"from": 1, "to": 16}},
        "arms": {"one": {}, "two": {"tune": {"ranksim": [0, 1, 2, 3]}}, "fixed": {"lr": 0.1}},
    }
    one, two, fixed = read_arms(plain, RankSimRecipe)[0]
    trials = two.trials(4, 0, {})
    assert sorted(trial["ranksim"] for trial in trials) == [0, 1, 2, 3]
    edges = [0.01 * 100 ** (i / 4) for i in range(5)]
    for low, high, lr in zip(edges, edges[1:], sorted(trial["lr"] for trial in trials), strict=False):
        assert low * 0.999 <= lr <= high * 1.001  # one in each quarter of the scale
    assert all(isinstance(trial["hidden"], int) and 1 <= trial["hidden"] <= 16 for trial in trials)
    assert [trial["lr"] for trial in one.trials(4, 0, {})] == [trial["lr"] for trial in trials]
    assert one.trials(4, 1, {}) != one.trials(4, 0, {})
    assert list(fixed.space) == ["hidden"]


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.name)
def test_the_arms_of_a_recipe_can_be_made(kind: Any) -> None:
    own = {"ranksim": {"target": "y", "features": ["x"]}, "cmw-net": {}}.get(kind.name, {"labels": 15})
    base = make_recipe(kind.name, {"data": "somewhere", **own})
    arms, reference = read_arms(parse_yaml(default_arms(kind.name)), kind)
    check_arms(arms, base, trust_code=False)
    assert reference == arms[0].name
    assert all("lr" in arm.space for arm in arms)


def test_numbers_in_yaml_have_exponents_without_a_point() -> None:
    assert parse_yaml("lr: {from: 1e-4, to: -3E2}\nname: 1e\n") == {"lr": {"from": 1e-4, "to": -300.0}, "name": "1e"}
