"""Fixtures for every test file."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# A graph cached by an earlier build would hide what this one does.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# lightning_fabric imports torchmetrics to ask for its version, and that imports transformers: four seconds for each
# process that a test starts.
HIDDEN = str(Path(__file__).with_name("support") / "hidden")
sys.path.insert(0, HIDDEN)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HIDDEN, os.environ.get("PYTHONPATH")]))

import hypothesis
import pytest
import torch
from support.devices import DEVICES, DTYPES
from support.folders import class_idx_folder

# Compiled kernels answer in microseconds, but the first example may compile or load.
examples = int(os.environ.get("DADL_EXAMPLES", "40"))
hypothesis.settings.register_profile("dadl", deadline=None, max_examples=examples, derandomize=True)
hypothesis.settings.load_profile("dadl")

# A shell lets what runs in its background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def unhidden() -> Iterator[None]:
    """torchmetrics, if it is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [folder for folder in sys.path if folder != HIDDEN])
        yield


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> None:
    """Whatever is imported stays: a test that collects garbage need not look through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """Warnings are errors, and PyTorch gives those of its C++ side too that it gives once in a process."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """240 training and 60 test images of three classes, in idx files."""
    return class_idx_folder(tmp_path / "data")
