"""Proves and measures the CUDA operators on a machine with a GPU: tests, sanitizers, benchmarks, in one call.

    python tools/gpu_check.py dist/dadl-*-linux_*.whl [--output benchmarks/results/DEVICE] [--seconds 540]

Takes a wheel from ``make gpu-wheel`` and whatever PyTorch (2.11 or newer, for CUDA) the machine has; downloads and
builds nothing. Besides PyTorch it needs pytest and hypothesis; compute-sanitizer to check memory, and the packages of
``dadl[bench]`` for ``dadl bench``: what is missing is named and left out. Failures are listed last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float
    """Share of the whole time after which it is stopped."""
    environment: dict[str, str] | None = None


@dataclass(frozen=True)
class Outcome:
    step: str
    passed: bool
    seconds: float
    end: str
    """Of its output."""


def run(step: Step, place: Path, logs: Path, seconds: float) -> Outcome:
    log = (logs / re.sub(r"\W+", "-", step.name)).with_suffix(".log")
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                step.command,
                cwd=place,
                env={**os.environ, **(step.environment or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=step.limit * seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            file.write(f"stopped after {step.limit * seconds:.0f} s\n")
            code = -1
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    outcome = Outcome(step.name, code == 0, time.monotonic() - start, "\n".join(lines[-25:]))
    print(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.seconds:6.1f} s  {step.name}", flush=True)
    return outcome


def sanitizer_steps() -> list[Step]:
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on PATH: memory, races and barriers are not checked")
        return []
    # The caching allocator would hide from them what is beyond an allocation, and what was never written.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step(
            tool,
            [
                "compute-sanitizer",
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                sys.executable,
                "tests/gpu/every_kernel.py",
                "--few-dtypes",
            ],
            0.45,
            environment,
        )
        for tool in SANITIZERS
    ]


def benchmark_steps(results: Path) -> list[Step]:
    steps = [Step("kernels", [sys.executable, "benchmarks/kernels.py", "--output", str(results)], 0.25)]
    missing = [name for name in ("cyclopts", "platformdirs", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"dadl bench is left out, for want of {', '.join(missing)}")
        return steps
    command = [sys.executable, "-m", "dadl", "bench", "--seconds", "1", "--device", "cuda", "--output", str(results)]
    return [*steps, *(Step(f"dadl bench {name}", [*command[:4], name, *command[4:]], 0.3) for name in BENCHMARKS)]


BENCHMARKS = ("ranksim", "contrast", "disagreement")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="from make gpu-wheel")
    parser.add_argument("--output", type=Path, help="folder for the measured tables; by default one for the device")
    parser.add_argument("--logs", type=Path, default=Path("build/gpu-check"), help="folder for the logs")
    parser.add_argument("--seconds", type=float, default=540, help="that it may take, about")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here: run this on a machine with one, and a PyTorch for CUDA")
    device = torch.cuda.get_device_name()
    results = options.output or ROOT / "benchmarks" / "results" / re.sub(r"\W+", "-", device.lower())
    logs = options.logs.resolve()
    for folder in (results, logs):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        site, place = Path(directory) / "site", Path(directory) / "checkout"
        install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), options.wheel]
        subprocess.run([sys.executable, *map(str, install)], check=True)
        # A copy without the packages, so that the tests import those of the wheel.
        place.mkdir()
        for name in ("tests", "benchmarks", "examples", "csrc"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        os.environ |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}
        info = "import dadl_ext, json; print(json.dumps(dadl_ext.build_info(), indent=1))"
        parallel = ["-n", "8", "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
        tests = [sys.executable, "-m", "pytest", *parallel, "-k", "cuda", "-p", "no:cacheprovider", "tests/ext"]
        outcomes = [
            run(step, place, logs, options.seconds)
            for step in (
                Step("build info", [sys.executable, "-c", info], 0.1),
                Step("every kernel", [sys.executable, "tests/gpu/every_kernel.py"], 0.2),
                *benchmark_steps(results.resolve()),
                Step("tests", tests, 0.45),
            )
        ]
        with ThreadPoolExecutor() as pool:
            outcomes += pool.map(lambda step: run(step, place, logs, options.seconds), sanitizer_steps())
    summary = {"device": device, "torch": torch.__version__, "steps": {o.step: o.passed for o in outcomes}}
    (results / "gpu-check.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(outcomes[0].end, device, sep="\n")
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"\n==== {outcome.step} failed; the end of its output ({logs}) ====\n{outcome.end}")
    names = ", ".join(outcome.step for outcome in failed) or "none"
    print(f"\n{len(outcomes) - len(failed)} steps passed, failed: {names}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
