"""The ``dadl`` command in fresh processes, as a user runs it, and what it leaves in the folder of a run."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def dadl(
    *arguments: str, hide: tuple[str, ...] = (), cache: Path | None = None, seconds: int = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command, for at most so long, in a process where the packages ``hide`` cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hide!r})); "
        "sys.argv[0] = 'dadl'; from dadl.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "100"}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def train(folder: Path, output: Path, *options: str, recipe: str = "self-tuning") -> subprocess.CompletedProcess[str]:
    small = ["--image-size", "32", "--epochs", "1", "--batch-size", "4", "--labels", "30"]
    if recipe == "self-tuning":
        small += ["--projection-size", "8", "--slots", "4"]
    paths = ("--data", str(folder), "--output", str(output), "--device", "cpu")
    return dadl("train", recipe, *paths, *small, *options)


def results_of(output: Path) -> Any:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def predictions_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))
