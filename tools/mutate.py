"""Breaks the code on purpose, one fault at a time, and runs the tests that must notice.

    python tools/mutate.py [--only PART] [--jobs N] [--resume]     (make mutate)

The faults are in tools/mutants/*.yaml: for a file, the text that is there exactly once, what takes its place, and the
tests. In the CUDA kernels each barrier is removed in turn as well. A fault that no test need notice says why, as
``survives``. Everything happens in copies of the working tree in build/mutate, each with its own builds, where results
are kept as JSON lines. The exit status is 1 if a fault survives without a reason, if one with a reason is noticed, or
if the text of one is not there.
"""

import argparse
import hashlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
LISTS = Path(__file__).with_name("mutants")
WORK = ROOT / "build" / "mutate"
BARRIER = re.compile(r"^[^/]*\b(__syncthreads|__syncwarp)\(")
SECONDS = 600  # for a fault's tests, which take seconds: one that never ends is noticed


@dataclass(frozen=True)
class Mutant:
    file: str
    fault: str
    old: str  # nothing for a barrier, which the simulator leaves out
    new: str
    tests: str
    survives: str = ""
    barrier: str = ""

    @property
    def name(self) -> str:
        return f"{self.file}: {self.fault}"

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:16]

    @property
    def compiled(self) -> bool:
        """Whether the CPU library must be built; the simulator's tests build what they need."""
        return self.file.startswith("csrc/") and not self.file.startswith("csrc/cuda/")


def mutants() -> list[Mutant]:
    """Those of the lists, then the barriers."""
    found = [mutant for path in sorted(LISTS.glob("*.yaml")) if path.stem != "barriers" for mutant in listed(path)]
    return [*found, *barriers()]


def listed(path: Path) -> Iterator[Mutant]:
    for file, group in yaml.safe_load(path.read_text()).items():
        for entry in group["mutants"]:
            yield Mutant(file, **{"tests": group["tests"], **entry})


def barriers() -> Iterator[Mutant]:
    """Each barrier of the CUDA kernels: named by its function, and by which of the function's barriers it is."""
    known = yaml.safe_load((LISTS / "barriers.yaml").read_text())
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cuh")):
        numbers: Counter[str] = Counter()
        families = known["tests"].get(path.stem.split("_")[0], known["tests"]["every"])
        tests = " ".join(f"tests/simulator/test_{family}.py" for family in families.split())
        text, start = path.read_text(), 0
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if BARRIER.match(line):
                before = re.sub(r"__launch_bounds__\([^)]*\)|//.*", "", text[:start])
                function = re.findall(r"(?:__global__|__device__)[^;{}]*?\b(\w+)\(", before)[-1]
                numbers[function] += 1
                fault = f"without barrier {numbers[function]} of {function}"
                reason = known["survives"].get(f"{path.name} {function} {numbers[function]}", "")
                yield Mutant(f"csrc/cuda/{path.name}", fault, "", "", tests, reason, f"{path.name}:{number}")
            start += len(line)


def misplaced(mutant: Mutant) -> str:
    """What is wrong with a mutant's text, or nothing."""
    if mutant.barrier:
        return ""
    path = ROOT / mutant.file
    count = path.read_text().count(mutant.old) if path.exists() else 0
    return "" if count == 1 and mutant.old != mutant.new else f"the text is there {count} times"


class Copy:
    """A copy of the working tree that keeps its builds from run to run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: Path | None = None  # the file that holds a fault
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, names.stdout.split("\0")):
            source, target = ROOT / name, folder / name
            if source.is_file() and not (target.exists() and target.read_bytes() == source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def write(self, mutant: Mutant | None) -> None:
        """Put the fault in, and take out the one before."""
        if self.broken is not None:
            shutil.copyfile(ROOT / self.broken, self.folder / self.broken)
        self.broken = Path(mutant.file) if mutant is not None and mutant.old else None
        if mutant is not None and self.broken is not None:
            text = (ROOT / self.broken).read_text()
            (self.folder / self.broken).write_text(text.replace(mutant.old, mutant.new))

    def build(self) -> bool:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=self.folder, env={**os.environ, "DADL_CUDA": "0"}, capture_output=True)
        return done.returncode == 0

    def test(self, tests: str, barrier: str = "") -> str:
        """By what the tests notice something, or nothing."""
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder / 'python'}{os.pathsep}{self.folder}",
            "PYTHONDONTWRITEBYTECODE": "1",  # a stale file would hide a fault of the same size and second
            "OMP_WAIT_POLICY": "PASSIVE",
            "DADL_EXAMPLES": "10",
        }
        if barrier:
            environment |= {"DADL_SIMULATOR": "race", "DADL_REMOVED_BARRIER": barrier}
        command = [sys.executable, "-m", "pytest", "-x", "--tb=short", "-p", "no:cacheprovider"]
        command += shlex.split(tests)
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return f"no end within {SECONDS} s"
        if process.returncode == 0:
            return ""
        errors = re.findall(r"^E\s+(\S.*)", output, re.MULTILINE)
        reasons = [error for error in errors if "race:" in error] or errors
        return reasons[0] if reasons else f"exit status {process.returncode}: {output[-300:]}"


def try_out(copy: Copy, mutant: Mutant) -> dict[str, str]:
    copy.write(mutant)
    if mutant.compiled and not copy.build():
        return {"outcome": "invalid", "by": "it does not compile"}
    by = copy.test(mutant.tests, mutant.barrier)
    return {"outcome": "killed" if by else "survived", "by": by}


def is_as_expected(mutant: Mutant, outcome: str) -> bool:
    return outcome == ("survived" if mutant.survives else "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose file and name contain this alone")
    parser.add_argument("--jobs", type=int, default=1, help="copies at work side by side")
    parser.add_argument("--resume", action="store_true", help="keep the results of a run that was stopped")
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.only in mutant.name]
    lost = [f"{mutant.name}: {problem}" for mutant in chosen if (problem := misplaced(mutant))]
    if lost:
        raise SystemExit("\n".join(lost))

    WORK.mkdir(parents=True, exist_ok=True)
    results = WORK / "results.jsonl"
    if not options.resume:
        results.unlink(missing_ok=True)
    known = {line["key"]: line for line in map(json.loads, results.open())} if results.exists() else {}
    left = [mutant for mutant in chosen if mutant.key not in known]
    copies: queue.Queue[Copy] = queue.Queue()

    def prepare(number: int) -> None:
        copy = Copy(WORK / f"copy-{number}")
        if not copy.build():
            raise SystemExit(f"{copy.folder} does not build")
        copies.put(copy)

    def unbroken(tests: str) -> str:
        copy = copies.get()
        try:
            return copy.test(tests)
        finally:
            copies.put(copy)

    def run(mutant: Mutant) -> None:
        copy, began = copies.get(), time.monotonic()
        try:
            result = {"key": mutant.key, "name": mutant.name, **try_out(copy, mutant)}
        finally:
            copy.write(None)
            copies.put(copy)
        known[mutant.key] = result
        with results.open("a") as lines:
            lines.write(json.dumps({**result, "seconds": round(time.monotonic() - began)}) + "\n")
        mark = "" if is_as_expected(mutant, result["outcome"]) else "WRONG "
        print(f"{mark}{result['outcome']}: {mutant.name} ({result['by'] or mutant.survives})", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(prepare, range(options.jobs)))
        selections = sorted({mutant.tests for mutant in left if not mutant.barrier})
        failing = [(tests, by) for tests, by in zip(selections, pool.map(unbroken, selections), strict=True) if by]
        if failing:
            raise SystemExit("\n".join(f"fails without a fault: {tests}: {by}" for tests, by in failing))
        list(pool.map(run, left))
    return report(chosen, known)


def report(chosen: list[Mutant], known: dict[str, dict[str, str]]) -> int:
    outcomes = {mutant: known[mutant.key]["outcome"] for mutant in chosen}
    print("\n| file | killed | survived |\n| --- | --- | --- |")
    for file in dict.fromkeys(mutant.file for mutant in chosen):
        counts = Counter(outcome for mutant, outcome in outcomes.items() if mutant.file == file)
        print(f"| {file} | {counts['killed']} | {counts['survived']} |")
    wrong = [mutant for mutant, outcome in outcomes.items() if not is_as_expected(mutant, outcome)]
    killed = Counter(outcomes.values())["killed"]
    print(f"\n{killed} of {len(chosen)} killed; not as expected: {len(wrong)}")
    for mutant in wrong:
        print(f"WRONG {outcomes[mutant]}: {mutant.name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
