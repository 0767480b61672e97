"""Removes each barrier of the CUDA kernels in turn and runs the simulator's tests under the race detector.

    python tools/mutate_barriers.py [--only PART]     (make mutate-barriers)

Prints a table: by what each removal is caught, or that it survives. Barriers that nothing needs stand with their reason
in tools/redundant_barriers.txt; the exit status is 1 if another one survives, or if one of these is caught.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "simulator"
REDUNDANT = Path(__file__).with_name("redundant_barriers.txt")
BARRIER = re.compile(r"^[^/]*\b(__syncthreads|__syncwarp)\(")
# The tests that run a file's kernels: those of its family, and those of the families that include it.
FAMILIES = {
    "contrast": ["contrast"],
    "disagreement": ["disagreement", "dropout"],
    "dropout": ["dropout"],
    "pair": ["ranksim", "rank_n_contrast"],
    "rank": ["rank_n_contrast"],
    "ranking": ["ranking", "ranksim"],
    "ranksim": ["ranksim"],
}
EVERY_FAMILY = ["contrast", "disagreement", "dropout", "ranksim", "rank_n_contrast"]


@dataclass(frozen=True)
class Barrier:
    path: Path
    line: int
    name: str  # file, function, and which of the function's barriers

    @property
    def tests(self) -> list[Path]:
        families = FAMILIES.get(self.path.stem.split("_")[0], EVERY_FAMILY)
        return [TESTS / f"test_{family}.py" for family in families]


def barriers() -> list[Barrier]:
    found: list[Barrier] = []
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cuh")):
        text = path.read_text()
        numbers: Counter[str] = Counter()
        start = 0
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if BARRIER.match(line):
                before = re.sub(r"__launch_bounds__\([^)]*\)|//.*", "", text[:start])
                function = re.findall(r"(?:__global__|__device__)[^;{}]*?\b(\w+)\(", before)[-1]
                numbers[function] += 1
                found.append(Barrier(path, number, f"{path.name} {function} {numbers[function]}"))
            start += len(line)
    return found


def caught_by(barrier: Barrier) -> str | None:
    """What the first failing test says, or None."""
    site = f"{barrier.path.name}:{barrier.line}"
    environment = {**os.environ, "DADL_SIMULATOR": "race", "DADL_EXAMPLES": "10", "DADL_REMOVED_BARRIER": site}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=short", "-p", "no:cacheprovider", *map(str, barrier.tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 0:
        return None
    if done.returncode != 1:
        raise SystemExit(f"the tests do not run: {done.stdout}{done.stderr}")
    errors = re.findall(r"^E\s+(\S.*)", done.stdout, re.MULTILINE)
    reasons = [error for error in errors if "race:" in error] or errors
    return reasons[0].removeprefix("RuntimeError: ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="barriers whose name contains this alone")
    only = parser.parse_args().only
    lines = [line for line in REDUNDANT.read_text().splitlines() if line and not line.startswith("#")]
    redundant = dict(line.split(": ", 1) for line in lines)
    chosen = [barrier for barrier in barriers() if only in barrier.name]
    unknown = redundant.keys() - {barrier.name for barrier in barriers()}
    for name in sorted(unknown):
        print(f"{REDUNDANT.name} names a barrier that is not there: {name}")
    wrong = len(unknown)
    for barrier in chosen:
        reason = caught_by(barrier)
        expected = (reason is None) == (barrier.name in redundant)
        wrong += not expected
        verdict = f"caught: {reason}" if reason else f"survived: {redundant.get(barrier.name, 'not known why')}"
        print(f"{'' if expected else 'WRONG '}{barrier.name} (line {barrier.line}) {verdict}", flush=True)
    print(f"{len(chosen)} barriers, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
