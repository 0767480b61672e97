"""The CUDA sources compile for every default architecture, no kernel leaves its registers, and the library links."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda/bin"),
]

sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
import libraries  # noqa: E402


@pytest.fixture(scope="session")
def built() -> tuple[Path, str]:
    """The library, and what ptxas says of each kernel."""
    assert NVCC is not None
    paths = cpp_extension.include_paths(), cpp_extension.library_paths()
    library = libraries.cuda_library(NVCC, libraries.DEFAULT_ARCHITECTURES, *paths)
    target = graph.build(library, ROOT / "build" / "nvcc")
    logs = [target.with_name(f"{graph.object_of(compiled)}.log") for compiled in library.objects]
    return target, "".join(log.read_text() for log in logs)


def allowed(kernel: str) -> int:
    """Bytes of the stack. The calls of logarithms and roots in double precision leave this one kernel few registers."""
    return 56 if "rank_n_contrast_anchor_kernel" in kernel else 0


def test_kernels_stay_in_registers(built: tuple[Path, str]) -> None:
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+a?)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        re.DOTALL,
    )
    kernels = pattern.findall(built[1])
    assert {architecture for _, architecture, *_ in kernels} == {"sm_80", "sm_90a", "sm_100", "sm_120"}
    assert len(kernels) == built[1].count("Compiling entry function")
    spilled = [kernel for kernel in kernels if max(map(int, kernel[2:])) > allowed(kernel[0])]
    assert not spilled, f"stack frame, spill stores and spill loads in bytes: {spilled}"


def test_the_library_links(built: tuple[Path, str]) -> None:
    # What only a CUDA build of torch has stays undefined here; everything else is found.
    command = ["nm", "-D", "--undefined-only", str(built[0])]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    undefined = re.findall(r" U (\S+)", symbols)
    assert "aoti_torch_get_current_cuda_stream" in undefined
    assert not [symbol for symbol in undefined if symbol.startswith("_ZN4dadl")]
