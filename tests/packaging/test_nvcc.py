"""The CUDA sources compile for every default architecture, no kernel leaves its registers, and the library links."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda/bin")

sys.path.insert(0, str(ROOT / "csrc"))
import flags  # noqa: E402


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """The objects, and what ptxas says of each kernel."""
    directory = tmp_path_factory.mktemp("nvcc")
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    architectures = flags.gencode(flags.DEFAULT_ARCHITECTURES)

    def compile_one(source: str) -> tuple[Path, str]:
        target = directory / Path(source).with_suffix(".o").name
        command = [NVCC, *flags.NVCC_FLAGS, "-Xptxas", "-v", *architectures, *includes]
        return target, run(*command, "-c", str(flags.CSRC / source), "-o", str(target))

    with ThreadPoolExecutor() as pool:
        objects, reports = zip(*pool.map(compile_one, flags.CUDA_SOURCES), strict=True)
    return [*objects], "".join(reports)


def allowed(kernel: str) -> int:
    """Bytes of the stack. The calls of logarithms and roots in double precision leave this one kernel few registers."""
    return 56 if "rank_n_contrast_anchor_kernel" in kernel else 0


def test_kernels_stay_in_registers(compiled: tuple[list[Path], str]) -> None:
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+a?)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        re.DOTALL,
    )
    kernels = pattern.findall(compiled[1])
    assert {architecture for _, architecture, *_ in kernels} == {"sm_80", "sm_90a", "sm_100", "sm_120"}
    assert len(kernels) == compiled[1].count("Compiling entry function")
    spilled = [kernel for kernel in kernels if max(map(int, kernel[2:])) > allowed(kernel[0])]
    assert not spilled, f"stack frame, spill stores and spill loads in bytes: {spilled}"


def test_the_library_links(compiled: tuple[list[Path], str]) -> None:
    library = compiled[0][0].with_name("_C_cuda.so")
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    run(NVCC, *map(str, compiled[0]), *paths, *flags.NVCC_LINK_FLAGS, "-o", str(library))
    # What only a CUDA build of torch has stays undefined here; everything else is found.
    undefined = re.findall(r" U (\S+)", run("nm", "-D", "--undefined-only", str(library)))
    assert "aoti_torch_get_current_cuda_stream" in undefined
    assert not [symbol for symbol in undefined if symbol.startswith("_ZN4dadl")]
