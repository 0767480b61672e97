"""The folder of a run: its files, its settings and its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..checks import check
from ..data.fingerprint import fingerprint
from ..documents import read_json, read_yaml
from ..errors import SettingsError
from ..options import Count
from ..training.checkpoints import CheckpointError, read_checkpoint
from ..training.loop import BEST, LAST

CONFIG, RUN, RESULTS, TABLE, PREDICTIONS = "config.yaml", "run.json", "results.json", "table.md", "predictions.csv"

JOURNAL = "search.journal"

PATHS = ("data", "retrain_from", "word_vectors")
"""Settings that may change after a run: data may be moved."""


class _Beginning(TypedDict):
    recipe: str
    facts: Mapping[str, Any]
    samples: Mapping[str, Count]
    fingerprints: Mapping[str, str]


class Beginning(_Beginning, total=False):
    """What ``run.json`` records as a run begins; runs of version 0.1.0 lack the digest, see :func:`digest`."""

    digest: str


def read_beginning(folder: Path) -> dict[str, Any]:
    """The contents of ``run.json``; raises a :class:`.SettingsError` if there is none, or it cannot be read."""
    try:
        beginning: dict[str, Any] = read_json(folder / RUN)
    except FileNotFoundError:
        raise SettingsError(f"{folder} is not the folder of a run: it has no {RUN}") from None
    check(beginning, Beginning, str(folder / RUN))
    return beginning


def read_run(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of a run's recipe, its settings, and the facts of its training data.

    Raises a :class:`.SettingsError` if the folder is not one of a run, or its files were changed.
    """
    beginning = read_beginning(folder)
    try:
        settings = read_yaml(folder / CONFIG)
    except FileNotFoundError:
        raise SettingsError(f"{folder} is not the folder of a run: it has no {CONFIG}") from None
    return beginning["recipe"], with_split_seed(settings), beginning["facts"]


def with_split_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run; in those of earlier versions the seed drew the split too."""
    return {"split_seed": settings.get("seed", 0), **settings}


def check_unchanged(folder: Path) -> None:
    """Raise a :class:`.SettingsError` if ``run.json`` or ``config.yaml`` is not as the run wrote it."""
    beginning = read_beginning(folder)
    if beginning.get("digest") not in (None, digest(beginning, read_yaml(folder / CONFIG))):
        raise SettingsError(
            f"{folder}: {RUN} and {CONFIG} are not as the run wrote them, so its predictions would not be its own: put "
            "them back; other data are given with --data"
        )


def digest(beginning: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Of what a run records as it begins, and of its settings except :data:`PATHS`."""
    recorded = {key: value for key, value in beginning.items() if key != "digest"}
    kept = {key: value for key, value in settings.items() if key not in PATHS}
    return fingerprint([json.dumps([recorded, kept], sort_keys=True)])


def trained_checkpoint(folder: Path) -> Path:
    """The checkpoint after a run's best epoch, or without validation after its last."""
    file = next((folder / name for name in (BEST, LAST) if (folder / name).exists()), None)
    if file is None:
        raise CheckpointError(f"{folder} has no checkpoint yet")
    return file


def trained_state(folder: Path, part: str) -> dict[str, Any]:
    """The trained state of one module of a run's method, e.g. its ``encoder``."""
    file = trained_checkpoint(folder)
    state = read_checkpoint(file).get("method")
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is no checkpoint of a method")
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they will be read from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain
