"""Every function under every transform of PyTorch."""

import pytest
import torch
from support.losses import LOSSES
from support.transforms import EAGER, WHOLE, expected, outcome


@pytest.mark.parametrize("transform", EAGER)
@pytest.mark.parametrize("name", LOSSES)
def test_transform(device: str, dtype: torch.dtype, name: str, transform: str) -> None:
    assert outcome(name, transform, device, dtype) == expected(name, transform)


@pytest.mark.parametrize("transform", WHOLE)
@pytest.mark.parametrize("name", LOSSES)
def test_whole_program(device: str, name: str, transform: str) -> None:
    assert outcome(name, transform, device, torch.float32) == expected(name, transform)
