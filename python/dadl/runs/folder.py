"""The folder of a run: its files, its settings and its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingsError
from ..training.checkpoints import CheckpointError, read_checkpoint
from ..training.loop import BEST, LAST

CONFIG, RUN, RESULTS, TABLE, PREDICTIONS = "config.yaml", "run.json", "results.json", "table.md", "predictions.csv"

JOURNAL = "search.journal"


def read_run(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The name of a run's recipe, its settings, and the facts of its training data."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        return run["recipe"], settings, run["facts"]
    except FileNotFoundError as error:
        raise SettingsError(f"{folder} is not the folder of a run: it has no {Path(error.filename).name}") from None
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SettingsError(f"{folder} is a run that cannot be read: {error}") from None


def trained_checkpoint(folder: Path) -> Path:
    """The checkpoint after a run's best epoch, or without validation after its last."""
    file = next((folder / name for name in (BEST, LAST) if (folder / name).exists()), None)
    if file is None:
        raise CheckpointError(f"{folder} has no checkpoint yet")
    return file


def trained_state(folder: Path, part: str) -> dict[str, Any]:
    """The trained state of one module of a run's method, e.g. its ``encoder``."""
    state = read_checkpoint(trained_checkpoint(folder))["method"]
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they will be read from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain
