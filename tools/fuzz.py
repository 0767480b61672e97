"""Every function under every transform with random sizes, against the reference, for as long as you like.

    python tools/fuzz.py --seconds 60
    python tools/fuzz.py --case 'rank; `vmap`; float16; 0; 1234'      # repeats one

A case is a function, a transform, a dtype, a batch size and a seed. Those that fail are printed, and the exit status is
then 1. What has failed once stays in tests/ext/fuzz_cases.txt, which the tests repeat.
"""

import argparse
import random
import sys
import time
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.devices import DTYPES  # noqa: E402
from support.fuzz import repeat  # noqa: E402
from support.losses import LOSSES  # noqa: E402
from support.transforms import EAGER  # noqa: E402

SIZES = [0, 1, 2, 3, 5, 8, 13, 17, 33, 64, 65, 80]


def main() -> int:
    parser = argparse.ArgumentParser(description="Try random cases against the reference.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="repeat one case")
    options = parser.parse_args()
    if options.case:
        repeat(options.case)
        return 0
    draw, end, cases, failed = random.Random(options.seed), time.monotonic() + options.seconds, 0, 0
    names, transforms = list(LOSSES), list(EAGER)
    while time.monotonic() < end:
        name, transform = draw.choice(names), draw.choice(transforms)
        # A Jacobian has as many rows as there are results.
        n = draw.choice(SIZES[:8] if transform == "`jacrev`" or draw.random() < 0.9 else SIZES)
        dtype = str(draw.choice(DTYPES)).removeprefix("torch.")
        case = f"{name}; {transform}; {dtype}; {n}; {draw.randrange(2**31)}"
        cases += 1
        try:
            repeat(case)
        except Exception:
            failed += 1
            print(f"{case}\n{traceback.format_exc(limit=-3)}", flush=True)
    print(f"{cases} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
