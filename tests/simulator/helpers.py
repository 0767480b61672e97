"""What the test files of the simulator share."""

import os
import subprocess
import sys

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from . import build

FLAVOUR = os.environ.get("DADL_SIMULATOR", "plain")
EXAMPLES = settings().max_examples
if FLAVOUR != "plain":  # which takes many times as long
    EXAMPLES = min(EXAMPLES, 12)
# Where the ways of ranking hand over to each other: each way for every length, and the thresholds that CUDA uses.
PATHS = {"warp": (1024, 8192, 1 << 22), "block": (0, 8192, 1 << 22), "sort": (0, 0, 200)}
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

around_powers_of_two = st.integers(0, 8).flatmap(lambda k: st.integers(max(0, 2**k - 1), 2**k + 1))


def to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array).view(dtype) if array.dtype == np.uint16 else torch.from_numpy(array)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def limits(simulator, path: str):
    return simulator.RankLimits(*PATHS[path])


def schedules() -> list:
    """Ways to run a kernel: an order of threads and blocks, and by how many elements inputs are misaligned."""
    simulator = build.load(FLAVOUR)
    order = simulator.Order
    if FLAVOUR == "race":
        return [simulator.Schedule(order.RANDOM, offset) for offset in (0, 1)]
    ahead = [simulator.Schedule(order.AHEAD, 0)] if FLAVOUR == "plain" else []
    return [simulator.Schedule(order.FORWARD, 0), simulator.Schedule(order.REVERSE, 1), *ahead]


def in_every_order(function, *arguments):
    """The result, which must have the same bits with every schedule."""
    first, *others = (function(*arguments, schedule) for schedule in schedules())

    def values(result):
        return result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]

    for other in others:
        for one, another in zip(values(first), values(other), strict=True):
            assert one.tobytes() == another.tobytes(), "the result depends on the order of the threads"
    return first


def close(actual: Tensor, expected: Tensor, tolerance: float, least: float = 1e-30) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * max(scale, least))


def run_process(flavour: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the simulator built in another flavour."""
    build.build(flavour)
    paths = os.pathsep.join([str(build.HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **build.runtime(flavour), "DADL_SIMULATOR": flavour, "PYTHONPATH": paths}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=build.ROOT)
