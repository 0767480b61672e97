"""Finds and loads the compiled libraries, and reports what it found."""

import ctypes
import functools
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

_FOLDER = Path(__file__).parent
_CPU_LIBRARY = _FOLDER / "_C.so"
_CUDA_LIBRARY = _FOLDER / "_C_cuda.so"
_ARCHITECTURES = _FOLDER / "_C_cuda.architectures"


class BuildInfo(TypedDict):
    """The result of :func:`build_info`."""

    dadl: str
    torch: str
    torch_cuda: str | None
    python: str
    cpu_library: str
    cpu_capability: str
    cuda_library: str | None
    cuda_architectures: list[str]
    cuda_available: bool
    cuda_absent_because: str | None


def _load_cpu_library() -> None:
    if not _CPU_LIBRARY.exists():
        raise ImportError(
            f"dadl_ext is not compiled: {_CPU_LIBRARY.name} is missing from {_FOLDER}. "
            "Install it with `pip install --no-build-isolation .` from the source folder."
        )
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        raise ImportError(f"dadl_ext needs torch >= 2.11, found {torch.__version__}; install torch>=2.11")
    torch.ops.load_library(_CPU_LIBRARY)


def _load_cuda_library() -> str | None:
    """Load the CUDA operators. Return why they are absent, or None if they are present."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if not _CUDA_LIBRARY.exists():
        return (
            "dadl was built without CUDA; reinstall it where nvcc is available with "
            "`DADL_CUDA=1 pip install --no-build-isolation .`"
        )
    try:
        torch.ops.load_library(_CUDA_LIBRARY)
    except OSError as error:
        return f"{_CUDA_LIBRARY.name} did not load: {error}"
    return None


def _last_torch_error() -> str:
    """Of this thread's calls of PyTorch's C functions; nothing before torch 2.13, which does not tell."""
    libraries = Path(torch.__file__).parent / "lib"
    library = ctypes.CDLL(str(libraries / "libtorch_cpu.so"))
    if not hasattr(library, "torch_exception_get_what_without_backtrace"):
        return ""
    library.torch_exception_get_what_without_backtrace.restype = ctypes.c_char_p
    return (library.torch_exception_get_what_without_backtrace() or b"").decode(errors="replace")


def raise_out_of_memory(operators: list[Any]) -> None:
    """Make operators raise ``torch.OutOfMemoryError`` where no memory was left.

    Their library calls PyTorch by its stable C functions, which tell no reason: every error that passes them comes out
    as a ``RuntimeError`` that names the function.
    """

    def translating(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def translated(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except RuntimeError as error:
                if "API call failed" not in str(error):
                    raise
                cause = _last_torch_error()
                if "out of memory" not in cause and "aoti_torch_empty_strided" not in str(error):
                    raise
                raise torch.OutOfMemoryError(cause or "CUDA out of memory.") from error

        return translated

    for operator in operators:
        for callee in (operator, operator.default):
            callee._op = translating(callee._op)


_load_cpu_library()
_cuda_absent_because = _load_cuda_library()
if _cuda_absent_because is None:
    _names = (name.removeprefix("dadl::") for name in torch._C._dispatch_get_all_op_names())
    raise_out_of_memory([getattr(torch.ops.dadl, name) for name in _names if hasattr(torch.ops.dadl, name)])


def require_device(tensor: torch.Tensor) -> None:
    """Raise an error if there is no kernel for the tensor's device, and say why."""
    if tensor.is_cpu or tensor.is_meta:
        return
    device = tensor.device
    if device.type != "cuda":
        raise ValueError(f"dadl_ext has CPU and CUDA kernels, got tensors on {device}; move them with .to('cpu')")
    if _cuda_absent_because is not None:
        raise RuntimeError(f"dadl_ext has no CUDA kernels here: {_cuda_absent_because}")


def _version() -> str:
    try:
        return importlib.metadata.version("dadl")
    except importlib.metadata.PackageNotFoundError:
        return "built in place, not installed"


def build_info() -> BuildInfo:
    """Versions, libraries, architectures and CPU capability of this installation, and the reason if CUDA is absent.

    Returns:
        A dictionary of plain values, ready for a bug report or ``json.dumps``.
    """
    architectures = _ARCHITECTURES.read_text().split() if _CUDA_LIBRARY.exists() and _ARCHITECTURES.exists() else []
    reason = _cuda_absent_because
    if reason is None and not torch.cuda.is_available():
        reason = "the CUDA operators are loaded, but torch sees no GPU"
    return {
        "dadl": _version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu_library": str(_CPU_LIBRARY),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_library": str(_CUDA_LIBRARY) if _CUDA_LIBRARY.exists() else None,
        "cuda_architectures": architectures,
        "cuda_available": _cuda_absent_because is None and torch.cuda.is_available(),
        "cuda_absent_because": reason,
    }
