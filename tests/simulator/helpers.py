"""What the test files of the simulator share."""

import os

import numpy as np
import torch
from torch import Tensor

FLAVOUR = os.environ.get("DADL_SIMULATOR", "plain")
EXAMPLES = 150 if FLAVOUR == "plain" else 25
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array).view(dtype) if array.dtype == np.uint16 else torch.from_numpy(array)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_both_orders(function, *arguments):
    forward, reverse = function(*arguments, False), function(*arguments, True)
    if isinstance(forward, dict):
        assert forward.keys() == reverse.keys()
        pairs = [(forward[key], reverse[key]) for key in forward]
    else:
        pairs = zip(forward, reverse, strict=True) if isinstance(forward, tuple) else [(forward, reverse)]
    for one, other in pairs:
        assert one.tobytes() == other.tobytes(), "the result depends on the order of the threads"
    return forward
