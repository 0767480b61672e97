"""Loads the compiled operators. This is the one module that knows their namespace.

The package for the Hugging Face Hub has another in its place, in packaging/hub/torch-ext.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
_ARCHITECTURES = _FOLDER / "_C_cuda.architectures"
CPU_LIBRARY = _FOLDER / "_C.so"
CUDA_LIBRARY = _FOLDER / "_C_cuda.so" if (_FOLDER / "_C_cuda.so").exists() else None
CUDA_ARCHITECTURES = _ARCHITECTURES.read_text().split() if CUDA_LIBRARY and _ARCHITECTURES.exists() else []


def _load_cpu_library() -> None:
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"dadl_ext is not compiled: {CPU_LIBRARY.name} is missing from {_FOLDER}. "
            "Install it with `pip install --no-build-isolation .` from the source folder."
        )
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        raise ImportError(f"dadl_ext needs torch >= 2.11, found {torch.__version__}; install torch>=2.11")
    torch.ops.load_library(CPU_LIBRARY)


def _load_cuda_library() -> str | None:
    """Load the CUDA operators. Return why they are absent, or None if they are present."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if CUDA_LIBRARY is None:
        return (
            "dadl was built without CUDA; reinstall it where nvcc is available with "
            "`DADL_CUDA=1 pip install --no-build-isolation .`"
        )
    try:
        torch.ops.load_library(CUDA_LIBRARY)
    except OSError as error:
        return f"{CUDA_LIBRARY.name} did not load: {error}"
    return None


def _version() -> str:
    try:
        return importlib.metadata.version("dadl")
    except importlib.metadata.PackageNotFoundError:
        return "built in place, not installed"


_load_cpu_library()
CUDA_ABSENT_BECAUSE = _load_cuda_library()
VERSION = _version()
ops: Any = torch.ops.dadl


def add_op_namespace_prefix(name: str) -> str:
    """An operator's name with its namespace. kernel-builder names the function, and looks for its calls."""
    return f"{ops.name}::{name}"
