"""Fixtures for every test file: the devices and dtypes that all operators serve."""

import os

# A graph cached by an earlier build would hide what this one does.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import hypothesis
import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Compiled kernels answer in microseconds, but the first example may compile or load.
hypothesis.settings.register_profile("dadl", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("dadl")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
