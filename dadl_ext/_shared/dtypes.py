"""The dtypes that the functions take, and those that they compute in."""

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGER = (
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)  # what int64 holds


def arithmetic_dtype(value: Tensor) -> torch.dtype:
    """The dtype of the arithmetic on this input."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32
