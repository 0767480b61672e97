"""Tries every function under every transform of PyTorch and writes what came out to benchmarks/results/transforms.md.

python tools/transform_table.py && python tools/insert_measured.py
"""

import functools
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.devices import DEVICES, DTYPES  # noqa: E402
from support.transforms import EAGER, outcome, table  # noqa: E402


@functools.cache
def found(name: str, transform: str) -> str:
    dtypes = DTYPES if transform in EAGER else [torch.float32]
    (same,) = {outcome(name, transform, device, dtype) for device in DEVICES for dtype in dtypes}
    return same


(ROOT / "benchmarks" / "results" / "transforms.md").write_text(table(found), encoding="utf-8")
