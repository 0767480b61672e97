"""A comparison, as its folder holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.recipe import Scores


@dataclass(frozen=True, order=True)
class Unit:
    """A split and a seed for which every arm has a tested run."""

    split: int
    seed: int


@dataclass(frozen=True)
class Trial:
    settings: Mapping[str, Any]
    score: float


@dataclass(frozen=True)
class ArmRuns:
    """One arm."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    tuned: Sequence[str]
    chosen: Mapping[int, Mapping[str, Any]]
    trials: Mapping[int, Sequence[Trial]]
    runs: Mapping[Unit, Path]
    scores: Mapping[Unit, Scores]


@dataclass(frozen=True)
class Comparison:
    folder: Path
    recipe: str
    reference: str
    criterion: str
    arms: Sequence[ArmRuns]
    sizes: Mapping[str, int]
    test_share: float
    failures: Sequence[str] = ()
