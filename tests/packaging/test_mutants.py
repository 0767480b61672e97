"""The list of faults that `make mutate` tries: each is still possible, and each that may survive says why."""

from collections import Counter

import pytest

from tools.mutate import Mutant, misplaced, mutants

MUTANTS = mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_has_its_place_and_its_tests(mutant: Mutant) -> None:
    assert not misplaced(mutant)
    assert mutant.tests


def test_the_list_is_long_and_few_survive() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert sum(bool(mutant.survives) for mutant in MUTANTS) <= 0.05 * len(MUTANTS)
