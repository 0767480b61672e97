"""Fixtures for every test file: the devices and dtypes that all operators serve."""

import os

# A graph cached by an earlier build would hide what this one does.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import hypothesis
import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Of ATEN_CPU_CAPABILITY, those that this processor has: PyTorch believes it and would stop at an unknown instruction.
_CAPABILITIES = ["default", "avx2", "avx512"]
_widest = torch.backends.cpu.get_cpu_capability().lower()  # on other processors, a name of theirs
CAPABILITIES = _CAPABILITIES[: _CAPABILITIES.index(_widest) + 1] if _widest in _CAPABILITIES else ["default"]
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
