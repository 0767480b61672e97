"""Compiles the simulator of the CUDA kernels, and the operators on it."""

import functools
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
from graph import Library, Object, compiler  # noqa: E402
from libraries import CSRC, CUDA_SOURCES, STABLE_ABI  # noqa: E402

FOLDER = ROOT / "build" / "simulator"
FLAGS = ["-std=c++20", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# A gradient is written over the similarities that it was computed from, which are of another type.
FLAGS += ["-fno-strict-aliasing"]
FLAVOURS = {
    "plain": ["-O1"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "race": ["-O1", "-g", "-fsanitize=thread", "-DDADL_RACES"],
}


def build(flavour: str) -> Path:
    """The extension module of one of FLAVOURS."""
    includes = [f"-I{HERE}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    objects = [Object(HERE / "simulator.cpp", [*compiler(), *FLAGS, *FLAVOURS[flavour], *includes])]
    link = [*compiler(), "-shared", *FLAVOURS[flavour]]
    if flavour == "race":
        # The race detector itself is not instrumented, and stands in for the sanitizer's library.
        objects += [Object(HERE / "races.cpp", [*compiler(), *FLAGS, "-O2", "-g", "-DDADL_RACES"])]
        link = [*compiler(), "-shared"]
    return graph.build(Library("dadl_simulator.so", objects, link), FOLDER / flavour)


def build_host() -> Path:
    """The library of the CUDA operators' own host code, which launches into the simulator."""
    include = [f"-I{HERE}", *(f"-I{path}" for path in cpp_extension.include_paths())]
    library = "-DDADL_CUDA_LIBRARY(m)=STABLE_TORCH_LIBRARY_IMPL(dadl_simulated, CPU, m)"
    command = [*compiler(), *FLAGS, "-O1", "-DUSE_CUDA", "-DDADL_SM90A", *STABLE_ABI, library, *include]
    objects = [Object(CSRC / source, [*command, "-x", "c++"]) for source in CUDA_SOURCES]
    # Its own definitions of PyTorch's functions are for its own calls.
    link = [*compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined"]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10", "-ldl"]
    return graph.build(
        Library("dadl_host.so", [*objects, Object(HERE / "host.cpp", command)], link, libraries), FOLDER / "host"
    )


@functools.cache
def load(flavour: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dadl_simulator", build(flavour))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runtime(flavour: str) -> dict[str, str]:
    """Environment variables for a Python process that loads a flavour."""
    if flavour != "sanitized":
        return {}

    def library(name: str) -> str:
        found = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    # libstdc++ too, or the sanitizer finds no exceptions to intercept; leaks are those of the interpreter.
    preload = f"{library('libasan.so')} {library('libstdc++.so')}"
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
