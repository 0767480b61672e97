"""Reports on the compiled libraries, and gives their errors the right kind."""

import ctypes
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

from . import _operators
from ._operators import ops


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


if _operators.CUDA_ABSENT_BECAUSE is None:
    _names = (name.removeprefix(f"{ops.name}::") for name in torch._C._dispatch_get_all_op_names())
    raise_out_of_memory([getattr(ops, name) for name in _names if hasattr(ops, name)])


def require_device(tensor: torch.Tensor) -> None:
    """Raise an error if there is no kernel for the tensor's device, and say why."""
    if tensor.is_cpu or tensor.is_meta:
        return
    device = tensor.device
    if device.type != "cuda":
        raise ValueError(f"dadl_ext has CPU and CUDA kernels, got tensors on {device}; move them with .to('cpu')")
    if _operators.CUDA_ABSENT_BECAUSE is not None:
        raise RuntimeError(f"dadl_ext has no CUDA kernels here: {_operators.CUDA_ABSENT_BECAUSE}")


def build_info() -> BuildInfo:
    """Versions, libraries, architectures and CPU capability of this installation, and the reason if CUDA is absent.

    Returns:
        A dictionary of plain values, ready for a bug report or ``json.dumps``.
    """
    reason = _operators.CUDA_ABSENT_BECAUSE
    if reason is None and not torch.cuda.is_available():
        reason = "the CUDA operators are loaded, but torch sees no GPU"
    return {
        "dadl": _operators.VERSION,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu_library": str(_operators.CPU_LIBRARY),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_library": str(_operators.CUDA_LIBRARY) if _operators.CUDA_LIBRARY else None,
        "cuda_architectures": _operators.CUDA_ARCHITECTURES,
        "cuda_available": _operators.CUDA_ABSENT_BECAUSE is None and torch.cuda.is_available(),
        "cuda_absent_because": reason,
    }
