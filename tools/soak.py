"""Long trainings of every recipe: memory, open files and threads stay as they are, and what is killed ends the same.

    python tools/soak.py [--steps 10000] [--kills 3] [--only PART] [--folder build/soak]     (make soak)

Each training is the command ``dadl train`` on tiny data made on the spot. It runs twice: undisturbed, and killed at
random moments and resumed. Of the undisturbed process, /proc tells the resident memory, the open file descriptors and
the threads, each with the step that its log.csv had reached; the first third is warm-up. A number grows if it does so
in both halves of what is left: if Theil and Sen's slope over the epochs' medians, at the lower end of its 99 %
interval, comes in each to more than 1 MiB, or to half a file or thread. A jump, such as an allocator's, is in one half
alone. Both runs must leave the same files, bit for bit. The exit status is 1 if something grows, differs or fails.
"""

import argparse
import csv
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scipy.stats import theilslopes

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.runs import assert_same_run  # noqa: E402

from tools.soak_trainings import BATCH, Training, make_data, trainings  # noqa: E402

CONFIDENCE = 0.99
MOST = {"MiB": 2.0, "files": 1.0, "threads": 1.0}
"""Steady growth over the steps measured that is no leak yet."""
WARM_UP = 1 / 3
FEWEST = 10  # epochs measured, for a slope
PAGE = os.sysconf("SC_PAGE_SIZE")


def command(training: Training, data: Path, output: Path, epochs: int, every: int) -> list[str]:
    options = ["--data", str(data / training.data), "--output", str(output), "--device", "cpu", "--resume"]
    options += ["--epochs", str(epochs), "--batch-size", str(BATCH), "--checkpoint-every", str(every)]
    return [sys.executable, "-m", "dadl", "train", training.recipe, *options, *training.options]


def reached(output: Path) -> int:
    """The steps in the log of a run, which is whole at any moment."""
    try:
        rows = list(csv.DictReader((output / "log.csv").read_text().splitlines()))
    except FileNotFoundError:
        return 0
    return int(float(rows[-1]["step"])) if rows else 0


def used(process: int) -> dict[str, float]:
    """What /proc says of a process."""
    place = Path(f"/proc/{process}")
    resident = int((place / "statm").read_text().split()[1]) * PAGE
    return {
        "MiB": resident / 2**20,
        "files": len(os.listdir(place / "fd")),
        "threads": len(os.listdir(place / "task")),
    }


@dataclass
class Growth:
    """Of a number over the steps after warm-up: by the slope, with its interval."""

    start: float
    change: float
    low: float
    high: float
    steady: float
    """That of the half in which it is less, at its lower end, for both."""


def growth(samples: dict[int, list[float]]) -> Growth:
    """Of the samples at each step; the last step's are those of the test."""
    steps = sorted(samples)[:-1]
    measured = [step for step in steps if step >= steps[0] + WARM_UP * (steps[-1] - steps[0])] if steps else []
    if len(measured) < FEWEST:
        raise ValueError(f"{len(measured)} epochs were measured after warm-up, and a slope needs {FEWEST}: more steps")
    medians = [statistics.median(samples[step]) for step in measured]
    slope, _, low, high = theilslopes(medians, measured, CONFIDENCE)
    length, halves = measured[-1] - measured[0], (slice(len(measured) // 2), slice(len(measured) // 2, None))
    least = min(theilslopes(medians[half], measured[half], CONFIDENCE).low_slope for half in halves)
    return Growth(medians[0], slope * length, low * length, high * length, least * length)


@dataclass
class Outcome:
    training: Training
    steps: int = 0
    seconds: float = 0.0
    growths: dict[str, Growth] = field(default_factory=dict)
    kills: int = 0
    problems: list[str] = field(default_factory=list)


def undisturbed(words: list[str], output: Path, log: Path, outcome: Outcome) -> bool:
    """Run it to its end and watch it; whether it came there."""
    samples: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in MOST}
    start = time.monotonic()
    with log.open("w") as stream, subprocess.Popen(words, stdout=stream, stderr=stream) as process:
        while process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if step := reached(output):
                    for name, number in used(process.pid).items():
                        samples[name][step].append(number)
            time.sleep(0.02)
    outcome.seconds, outcome.steps = time.monotonic() - start, reached(output)
    if process.returncode:
        outcome.problems.append(f"ended with {process.returncode}, see {log}")
        return False
    try:
        outcome.growths = {name: growth(of_name) for name, of_name in samples.items()}
    except ValueError as error:
        outcome.problems.append(str(error))
    for name, found in outcome.growths.items():
        if found.steady > MOST[name]:
            outcome.problems.append(f"{name} grow by {found.low:.1f} to {found.high:.1f}")
    return True


def killed(words: list[str], log: Path, outcome: Outcome, kills: int, draw: random.Random) -> bool:
    """Kill it at random moments, then let it come to its end; whether it did."""
    for left in range(kills, -1, -1):
        with log.open("a") as stream, subprocess.Popen(words, stdout=stream, stderr=stream) as process:
            if left:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(draw.uniform(0, outcome.seconds))
                outcome.kills += process.poll() is None
                process.kill()
    if process.returncode:
        outcome.problems.append(f"ended with {process.returncode} when it was resumed, see {log}")
    return process.returncode == 0


def soak(training: Training, folder: Path, steps: int, kills: int, seed: int) -> Outcome:
    outcome, epoch = Outcome(training), epoch_steps(steps)
    place = folder / training.name.replace(" ", "_")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = [
        command(training, folder / "data", place / name, math.ceil(steps / epoch), max(2, epoch // 3))
        for name in ("whole", "killed")
    ]
    draw = random.Random(f"{seed} {training.name}")
    done = undisturbed(words[0], place / "whole", place / "whole.log", outcome)
    if done and killed(words[1], place / "killed.log", outcome, kills, draw):
        try:
            assert_same_run(place / "whole", place / "killed")
        except AssertionError as error:
            outcome.problems.append(f"the killed run differs: {str(error).splitlines()[0][:80]}")
    return outcome


def epoch_steps(steps: int) -> int:
    """Of an epoch: a hundred epochs, each of which is at least ten steps."""
    return max(10, steps // 100)


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| training | steps | s | MiB | grows by MiB | files | threads | kills | |",
        "|---|" + "---:|" * 7 + "---|",
    ]
    for outcome in outcomes:
        cells = [outcome.training.name, str(outcome.steps), f"{outcome.seconds:.0f}"]
        if memory := outcome.growths.get("MiB"):
            cells += [f"{memory.start:.0f}", f"{memory.change:.2f} ({memory.low:.2f} to {memory.high:.2f})"]
            cells += [f"{outcome.growths[name].change:+.1f}" for name in ("files", "threads")]
        else:
            cells += ["–"] * 4
        lines.append(
            "| " + " | ".join([*cells, str(outcome.kills), "; ".join(outcome.problems) or "as it should"]) + " |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of each training")
    parser.add_argument("--kills", type=int, default=3, help="of each training")
    parser.add_argument("--only", default="", help="trainings whose names contain this alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "soak", help="for data and runs")
    options = parser.parse_args()
    chosen = [training for training in trainings() if options.only in training.name]
    if not chosen:
        parser.error(f"no training is called like {options.only!r}: {', '.join(t.name for t in trainings())}")
    folder = options.folder.resolve()
    make_data(folder / "data", epoch_steps(options.steps))
    outcomes = []
    for training in chosen:
        outcomes.append(soak(training, folder, options.steps, options.kills, options.seed))
        print(f"{training.name}: {'; '.join(outcomes[-1].problems) or 'as it should'}", flush=True)
    print(f"\n{table(outcomes)}")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
