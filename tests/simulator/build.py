"""Compiles the simulator of the CUDA kernels, and the operators on it: once for each state of the sources."""

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
from flags import CUDA_SOURCES, STABLE_ABI  # noqa: E402

COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# A gradient is written over the similarities that it was computed from, which are of another type.
FLAGS += ["-fno-strict-aliasing"]
FLAVOURS = {
    "plain": ["-O2"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "race": ["-O1", "-g", "-fsanitize=thread", "-DDADL_RACES"],
}


def once(name: str, own: list[str], of_csrc: list[str], commands: Callable[[Path, Path], list[list[str]]]) -> Path:
    """The library that the commands make in a directory of their own, unless the sources are as they were."""
    sources = [HERE / file for file in own] + [file for pattern in of_csrc for file in (ROOT / "csrc").glob(pattern)]
    content = hashlib.sha256(repr(commands(Path("directory"), Path("target"))).encode())
    for source in sorted(sources):
        content.update(source.read_bytes())
    target = ROOT / "build" / "simulator" / f"{name}-{content.hexdigest()[:16]}" / "dadl_simulator.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else wants it waits
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as directory, ThreadPoolExecutor(os.cpu_count()) as pool:
            unfinished = Path(directory) / target.name
            *compiling, linking = commands(Path(directory), unfinished)
            list(pool.map(lambda command: subprocess.run(command, check=True), compiling))
            subprocess.run(linking, check=True)
            unfinished.replace(target)  # whole or not at all
    return target


def build(flavour: str) -> Path:
    """The extension module of one of FLAVOURS."""
    includes = [f"-I{HERE}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    simulator = [COMPILER, *FLAGS, *FLAVOURS[flavour], *includes, str(HERE / "simulator.cpp")]

    def commands(directory: Path, target: Path) -> list[list[str]]:
        if flavour != "race":
            return [[*simulator, "-shared", "-o", str(target)]]
        # The race detector itself is not instrumented, and stands in for the sanitizer's library.
        detector = [COMPILER, *FLAGS, "-O2", "-g", "-DDADL_RACES", str(HERE / "races.cpp")]
        parts = [str(directory / "simulator.o"), str(directory / "races.o")]
        compiling = [[*command, "-c", "-o", part] for command, part in zip((simulator, detector), parts, strict=True)]
        return [*compiling, [COMPILER, "-shared", *parts, "-o", str(target)]]

    own = ["simulator.cpp", "cuda_sim.h", "memory.h", "races.h", *(["races.cpp"] if flavour == "race" else [])]
    return once(flavour, own, ["cuda/*.cuh", "core/*.h"], commands)


def build_host() -> Path:
    """The library of the CUDA operators' own host code, which launches into the simulator."""
    include = [f"-I{HERE}", *(f"-I{path}" for path in cpp_extension.include_paths())]
    library = "-DDADL_CUDA_LIBRARY(m)=STABLE_TORCH_LIBRARY_IMPL(dadl_simulated, CPU, m)"
    flags = [*FLAGS, "-O1", "-DUSE_CUDA", *STABLE_ABI, library, *include]
    sources = [*(ROOT / "csrc" / source for source in CUDA_SOURCES), HERE / "host.cpp"]

    def commands(directory: Path, target: Path) -> list[list[str]]:
        parts = [str(directory / f"{source.stem}.o") for source in sources]
        compiling = [
            [COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", part]
            for source, part in zip(sources, parts, strict=True)
        ]
        paths = [f"-L{path}" for path in cpp_extension.library_paths()]
        # Its own definitions of PyTorch's functions are for its own calls.
        linked = ["-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined"]
        return [*compiling, [COMPILER, *linked, *parts, *paths, "-ltorch_cpu", "-lc10", "-ldl", "-o", str(target)]]

    own = ["host.cpp", "cuda_runtime.h", "cuda_sim.h", "memory.h", "races.h"]
    return once("host", own, ["cuda/*", "core/*.h", "*.h"], commands)


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
        found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    # libstdc++ too, or the sanitizer finds no exceptions to intercept; leaks are those of the interpreter.
    preload = f"{library('libasan.so')} {library('libstdc++.so')}"
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
