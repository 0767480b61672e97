"""Compiles the simulator of the CUDA kernels: once for each state of its sources, under build/."""

import hashlib
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FLAGS = ["-std=c++20", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
# A gradient is written over the similarities that it was computed from, which are of another type.
FLAGS += ["-fno-strict-aliasing"]
FLAVOURS = {
    "plain": ["-O2"],
    "address": ["-O1", "-g", "-fsanitize=address"],
    "undefined": ["-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
}


def build(flavour: str) -> Path:
    """The extension module of one of FLAVOURS."""
    sources = [*HERE.glob("*.h"), *HERE.glob("*.cpp"), *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
    compiler = os.environ.get("CXX", "g++")
    includes = [f"-I{HERE}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command = [compiler, *FLAGS, *FLAVOURS[flavour], *includes, str(HERE / "simulator.cpp")]
    content = hashlib.sha256(" ".join(command).encode())
    for source in sorted(sources):
        content.update(source.read_bytes())
    target = ROOT / "build" / "simulator" / f"{flavour}-{content.hexdigest()[:16]}" / "dadl_simulator.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            unfinished = Path(directory) / target.name
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.replace(target)  # whole or not at all, whoever else builds it
    return target


def load(flavour: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dadl_simulator", build(flavour))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runtime(flavour: str) -> dict[str, str]:
    """Environment variables for a Python process that loads a flavour."""
    if flavour != "address":
        return {}

    def library(name: str) -> str:
        compiler = os.environ.get("CXX", "g++")
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    # libstdc++ too, or the sanitizer finds no exceptions to intercept; leaks are those of the interpreter.
    preload = f"{library('libasan.so')} {library('libstdc++.so')}"
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
