"""The two compiled libraries: sources, compiler flags, linking. setup.py builds them, and so do the tests."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from graph import Library, Object, compiler

CSRC = Path(__file__).parent
# The slowest to compile come first, so that no core waits for a long one at the end.
CPU_SOURCES = [
    "cpu/contrast.cpp",
    "cpu/ranksim_kernels.cpp",
    "cpu/disagreement.cpp",
    "cpu/rank_n_contrast.cpp",
    "cpu/ranksim.cpp",
    "cpu/dropout_linear.cpp",
    "cpu/dropout_disagreement.cpp",
    "cpu/ranking.cpp",
    "cpu/disagreement_measures.cpp",
    "ops.cpp",
    "scale_gradient.cpp",
    "glibc.cpp",
]
CUDA_SOURCES = [
    "cuda/contrast.cu",
    "cuda/disagreement.cu",
    "cuda/dropout.cu",
    "cuda/rank_n_contrast.cu",
    "cuda/ranking.cu",
    "cuda/ranksim.cu",
    "glibc.cpp",
]

# The stable ABI of torch 2.11: one binary works with every later release.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]

# No fused multiply-adds, here and in nvcc: results have the same bits on every instruction set and device. No
# -ffast-math: NaN and ties are part of the semantics.
CXX_FLAGS = [
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-std=c++20",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    *STABLE_ABI,
]
LINK_FLAGS = ["-shared", "-Wl,--no-as-needed"]
TORCH = ["-lc10", "-ltorch_cpu", "-ltorch"]
# Beyond vectorisation, -O3 doubles the compile time of these files and does not speed up their code.
DISAGREEMENT = ["-O2", "-fvect-cost-model=dynamic"]
SOURCE_FLAGS = {"cpu/disagreement.cpp": DISAGREEMENT, "cpu/disagreement_measures.cpp": DISAGREEMENT}
NVCC_FLAGS = [
    "-O3",
    "-std=c++20",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
    "-DUSE_CUDA",
    "-Xptxas",
    "-v",  # registers and spills of each kernel, for the log
    *STABLE_ABI,
]
# The runtime that PyTorch has loaded: a second one would have errors and a current device of its own.
NVCC_LINK_FLAGS = ["-shared", "-cudart", "shared", "-Xlinker", "--no-as-needed"]

# 8.0 serves 8.6 and 8.9 too, and the PTX of 10.0 serves 11.0. Before 8.0 there are no asynchronous copies and no tensor
# cores for bfloat16.
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX;12.0+PTX"
MINIMUM_NVCC = (12, 8)  # the first with 10.0 and 12.0


def gencode(architectures: str) -> list[str]:
    """Return the ``-gencode`` flags for a list of architectures in PyTorch's notation, such as ``"8.0;9.0+PTX"``.

    9.0 is compiled as 9.0a, which has the products of warp groups; the host code learns that it may call them.
    """
    flags = []
    for architecture in architectures.replace(" ", ";").split(";"):
        number = architecture.removesuffix("+PTX").replace(".", "").removesuffix("a")
        if not architecture:
            continue
        own = "90a" if number == "90" else number
        flags += ["-gencode", f"arch=compute_{own},code=sm_{own}"]
        if own == "90a":
            flags += ["-DDADL_SM90A"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def placeless(include_paths: Sequence[str]) -> list[str]:
    """Flags by which no path of this machine gets into a library: sources are named from the repository's root on."""
    return [f"-ffile-prefix-map={CSRC.parent}/=", *(f"-ffile-prefix-map={path}/=" for path in include_paths)]


def cpu_library(include_paths: Sequence[str], library_paths: Sequence[str], *flags: str) -> Library:
    """The schemas and the CPU operators; ``flags`` are for the compiler and the linker, such as a sanitizer's."""
    given = shlex.split(os.environ.get("CXXFLAGS", ""))
    places = [*(f"-I{path}" for path in include_paths), *placeless(include_paths)]
    command = [*compiler(), *CXX_FLAGS, *places, *given, *flags]
    objects = [Object(CSRC / source, [*command, *SOURCE_FLAGS.get(source, [])]) for source in CPU_SOURCES]
    link = [*compiler(), *LINK_FLAGS, *(f"-L{path}" for path in library_paths), *flags]
    return Library("_C.so", objects, [*link, *shlex.split(os.environ.get("LDFLAGS", ""))], TORCH)


def cuda_library(nvcc: str, architectures: str, include_paths: Sequence[str], library_paths: Sequence[str]) -> Library:
    """The CUDA operators. nvcc's own variable is in the command, so that its change compiles again."""
    appended = f"NVCC_APPEND_FLAGS={os.environ.get('NVCC_APPEND_FLAGS', '')}"
    places = [f"-I{path}" for path in include_paths]
    places += [word for flag in placeless(include_paths) for word in ("-Xcompiler", flag)]
    command = ["env", appended, nvcc, *NVCC_FLAGS, *gencode(architectures), *places]
    objects = [Object(CSRC / source, command) for source in CUDA_SOURCES]
    link = [nvcc, *NVCC_LINK_FLAGS, *(f"-L{path}" for path in library_paths)]
    return Library("_C_cuda.so", objects, link, TORCH)
