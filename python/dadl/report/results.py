"""The results in run folders of `dadl train`. Every folder that cannot be read is reported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ..documents import read_json, read_yaml
from ..errors import SettingsError
from ..runs.folder import CONFIG, RESULTS
from ..runs.log import as_number, epoch_log, read_log
from ..training.loop import LOG, VALIDATION

KINDS = {
    "recipe": str,
    "settings": dict,
    "environment": dict,
    "dadl_ext": dict,
    "samples": dict,
    "seconds": int | float,
    "history": list,
    "test": dict,
    "best_epoch": int | NoneType,
}


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; for an unfinished run only its name, its place, the history and the settings.

    Without validation there is no best epoch.
    """

    name: str
    folder: Path
    history: list[dict[str, float]]
    finished: bool = False
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = math.nan
    best_epoch: int | None = None
    test: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read_results(folder: Path, name: str, problems: list[str]) -> Run | None:
    """The run in ``folder``; None, and a line in ``problems``, if there is nothing to read."""
    results, log = folder / RESULTS, folder / LOG
    if results.exists():
        return _read_json(results, name, problems)
    if log.exists() and len(log.read_bytes().splitlines()) > 1:
        return _read_log(log, name, problems)
    if not folder.is_dir():
        problems.append(f"{folder}: there is no such folder")
    elif log.exists() or (folder / CONFIG).exists():
        problems.append(f"{folder}: this run has not finished its first epoch; there is nothing to show yet")
    else:
        problems.append(f"{folder}: not a run of `dadl train`: it has neither results.json nor log.csv")
    return None


def _read_json(path: Path, name: str, problems: list[str]) -> Run | None:
    advice = "run the same `dadl train` again to rewrite it, or leave this run out"
    try:
        results = read_json(path)
    except SettingsError as error:
        problems.append(f"{error}; {advice}")
        return None
    if not isinstance(results, dict):
        results = {}
    wrong = [key for key, kind in KINDS.items() if key not in results or not isinstance(results[key], kind)]
    if wrong:
        problems.append(f"{path}: not the results of `dadl train`: missing or wrong {', '.join(wrong)}; {advice}")
        return None
    try:
        history = [epoch_log(values) for values in results["history"]]
        validated = any(key.startswith(VALIDATION) for epoch in history for key in epoch)
        return Run(
            name=name,
            folder=path.parent,
            history=history,
            finished=True,
            recipe=results["recipe"],
            settings=results["settings"],
            environment={**results["dadl_ext"], **results["environment"]},
            samples=results["samples"],
            seconds=results["seconds"],
            best_epoch=results["best_epoch"] if validated else None,
            test={row: {c: as_number(value) for c, value in cells.items()} for row, cells in results["test"].items()},
        )
    except (AttributeError, ValueError) as error:
        problems.append(f"{path}: history or test is not a table of numbers ({error}); {advice}")
        return None


def _read_log(path: Path, name: str, problems: list[str]) -> Run | None:
    found: list[str] = []
    history = read_log(path, found)
    problems += [problem if problem.startswith(str(path)) else f"{path.parent}/{problem}" for problem in found]
    config = path.parent / CONFIG
    settings: Mapping[str, Any] = {}
    try:
        settings = read_yaml(config) if config.exists() else {}
    except SettingsError as error:
        problems.append(str(error))
    return None if found else Run(name=name, folder=path.parent, history=history, settings=settings)
