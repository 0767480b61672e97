"""The sources and the compiler flags. setup.py builds with them, and the tests compile with them."""

from pathlib import Path

CSRC = Path(__file__).parent
# The slowest to compile come first, so that no core waits for a long one at the end.
CPU_SOURCES = [
    "cpu/dropout.cpp",
    "cpu/disagreement.cpp",
    "cpu/ranksim.cpp",
    "cpu/rank_n_contrast.cpp",
    "cpu/ranking.cpp",
    "cpu/contrast.cpp",
    "ops.cpp",
    "scale_gradient.cpp",
]
CUDA_SOURCES = [
    "cuda/contrast.cu",
    "cuda/disagreement.cu",
    "cuda/dropout.cu",
    "cuda/rank_n_contrast.cu",
    "cuda/ranking.cu",
    "cuda/ranksim.cu",
]

# The stable ABI of torch 2.11: one binary works with every later release.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]

# No fused multiply-adds, here and in nvcc: results have the same bits on every instruction set and device. No
# -ffast-math: NaN and ties are part of the semantics.
CXX_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags may include -g, which would take most of the compile time and of the wheel
    "-std=c++20",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    *STABLE_ABI,
]
# Beyond vectorisation, -O3 doubles the compile time of this file and does not speed up its code.
SOURCE_FLAGS = {"cpu/disagreement.cpp": ["-O2", "-fvect-cost-model=dynamic"]}
NVCC_FLAGS = [
    "-O3",
    "-std=c++20",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
    "-DUSE_CUDA",
    *STABLE_ABI,
]
# The runtime that PyTorch has loaded: a second one would have errors and a current device of its own.
NVCC_LINK_FLAGS = ["-shared", "-cudart", "shared", "-Xlinker", "--no-as-needed", "-lc10", "-ltorch_cpu", "-ltorch"]

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
