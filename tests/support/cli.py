"""The ``dadl`` command in processes of its own, and what it leaves in the folder of a run."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .processes import copies


def dadl(
    *arguments: str, hide: tuple[str, ...] = (), cache: Path | None = None, seconds: int = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command, for at most so long, in a process of its own, where the packages ``hide`` cannot be imported."""
    environment = {"COLUMNS": "100"} | ({} if cache is None else {"XDG_CACHE_HOME": str(cache)})
    context = multiprocessing.get_context("spawn") if hide else copies()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "stdout", Path(folder) / "stderr"
        process = context.Process(target=_run, args=(arguments, hide, environment, files, os.getcwd()))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["dadl", *arguments], seconds)
        output, errors = (file.read_text(encoding="utf-8", errors="surrogateescape") for file in files)
    return subprocess.CompletedProcess(["dadl", *arguments], process.exitcode, output, errors)


def _run(
    arguments: Sequence[str], hide: Sequence[str], environment: Mapping[str, str], files: Sequence[Path], folder: str
) -> None:
    for stream, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(folder)
    os.environ.update(environment)
    sys.modules.update(dict.fromkeys(hide))
    sys.argv = ["dadl", *arguments]
    from dadl.cli import main

    main()


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
