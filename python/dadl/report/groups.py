"""Runs of `dadl train` as comparisons: those of one recipe with each other, paired by split and seed."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from ..comparison.results import ArmRuns, Comparison, Unit
from ..errors import SettingsError
from ..runs.folder import read_beginning
from .results import Run

OF_CHANCE = ("seed", "split_seed")
"""Settings that differ between runs of one arm."""


def comparison_of(recipe: str, runs: Sequence[Run]) -> tuple[Comparison, Mapping[str, Mapping[Unit, Run]]]:
    """Finished runs of a recipe as a comparison, whose reference is the first of them, and its runs by arm and unit."""
    splits: dict[str, int] = {}
    arms = {}
    for label, group in _grouped(runs).items():
        arms[label] = {Unit(splits.setdefault(_split(run), len(splits)), _seed(run)): run for run in group}
    sizes = {part: count for part, count in runs[0].samples.items() if isinstance(count, int)}
    trained, tested = next(iter(sizes.values()), 0), sizes.get("test", 0)
    comparison = Comparison(
        folder=runs[0].folder,
        recipe=recipe,
        reference=next(iter(arms)),
        criterion="",
        arms=[
            ArmRuns(
                name=label,
                folder=next(iter(of_arm.values())).folder,
                settings={},
                tuned=(),
                chosen={},
                trials={},
                runs={unit: run.folder for unit, run in of_arm.items()},
                scores={unit: run.test for unit, run in of_arm.items()},
            )
            for label, of_arm in arms.items()
        ],
        settings={},
        trials=0,
        planned=sorted({unit for of_arm in arms.values() for unit in of_arm}),
        environment={},
        failures=(),
        sizes=sizes,
        test_share=tested / trained if trained else 0.0,
    )
    return comparison, arms


def _seed(run: Run) -> int:
    seed = run.settings.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _split(run: Run) -> str:
    """What tells whether runs have the same test samples: the digest of their data, or else the seed that drew them."""
    try:
        return json.dumps(read_beginning(run.folder)["fingerprints"], sort_keys=True)
    except (SettingsError, KeyError):
        return str(run.settings.get("split_seed", run.settings.get("seed", 0)))


def _grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs with equal settings except for the seeds, by a label of theirs. A repeated seed gets its own group, because
    it says nothing about the spread over seeds."""
    repetitions: Counter[str] = Counter()
    members: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        own, common = (
            json.dumps({key: value for key, value in run.settings.items() if key not in without}, sort_keys=True)
            for without in ((), OF_CHANCE)
        )
        members.setdefault((common, repetitions[own]), []).append(run)
        repetitions[own] += 1
    labels = [_label(group) for group in members.values()]
    return {
        label if labels.count(label) == 1 else ", ".join(run.name for run in group): group
        for label, group in zip(labels, members.values(), strict=True)
    }


def _label(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in equal).rstrip("0123456789-_. ")
    return f"{common or ', '.join(names)} ({len(runs)} seeds)"
