"""Builds _C.so (schemas and CPU operators) and, if requested, _C_cuda.so (CUDA operators).

Environment:
    DADL_CUDA               auto (default): with CUDA if torch is a CUDA build and nvcc is found; 0: without CUDA;
                            1: with CUDA, or stop. nvcc is searched in $CUDA_HOME, on PATH and in /usr/local/cuda.
    TORCH_CUDA_ARCH_LIST    as in PyTorch, for example "9.0"; the default covers 8.0 and everything newer
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
import libraries  # noqa: E402


def stop(sentence: str) -> NoReturn:
    raise SystemExit(f"\ndadl cannot be built: {sentence}\n")


def require_torch():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        stop(
            "torch is not installed here; run `pip install 'torch>=2.11' setuptools ninja` first, then "
            "`pip install --no-build-isolation .`"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        stop(f"it needs torch >= 2.11, found {torch.__version__}; run `pip install 'torch>=2.11'`")
    return torch, cpp_extension


def require_tools() -> None:
    compiler, *_ = graph.compiler()
    if shutil.which(compiler) is None:
        stop(f"no C++ compiler ({compiler}); install one (`apt-get install g++`) or set CXX to one")
    if graph.ninja() is None:
        stop("ninja is not installed here; run `pip install ninja` first")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for path in map(shutil.which, candidates) if path), None)


@functools.cache
def wanted_nvcc() -> tuple[str, int] | None:
    """The nvcc to build with and its major version, or None for a build without CUDA."""
    torch, _ = require_torch()
    mode = os.environ.get("DADL_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        stop(f"DADL_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0" or (mode == "auto" and torch.version.cuda is None):
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        if mode == "1":
            stop("DADL_CUDA=1, but nvcc is neither in $CUDA_HOME/bin, nor on PATH, nor in /usr/local/cuda/bin")
        print("dadl: torch is a CUDA build, but no nvcc was found: building without CUDA", file=sys.stderr)
        return None
    try:
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        stop(f"{nvcc} does not run ({error}); set CUDA_HOME to a working toolkit, or DADL_CUDA=0")
    match = re.search(r"release (\d+)\.(\d+)", output)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    found = ".".join(map(str, version))
    if version < libraries.MINIMUM_NVCC:
        needed = ".".join(map(str, libraries.MINIMUM_NVCC))
        stop(f"{nvcc} is version {found}, {needed} is needed; set CUDA_HOME to a newer toolkit, or DADL_CUDA=0")
    if torch.version.cuda is not None and int(torch.version.cuda.split(".")[0]) != version[0]:
        stop(
            f"{nvcc} is version {found}, but torch was built with CUDA {torch.version.cuda}; set CUDA_HOME to a "
            "toolkit of that major version, or DADL_CUDA=0"
        )
    return nvcc, version[0]


class BuildLibraries(build_ext):
    """Builds both libraries, which are loaded by PyTorch and use nothing of Python, with ninja."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extensions(self) -> None:
        _, cpp_extension = require_torch()
        require_tools()
        cuda_build = wanted_nvcc()
        paths = cpp_extension.include_paths(), cpp_extension.library_paths()
        target = Path(self.get_ext_fullpath("dadl_ext._C"))
        self.install(libraries.cpu_library(*paths), target)

        cuda, architectures = target.with_name("_C_cuda.so"), target.with_name("_C_cuda.architectures")
        cuda.unlink(missing_ok=True)
        architectures.unlink(missing_ok=True)
        if cuda_build:
            wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or libraries.DEFAULT_ARCHITECTURES
            self.install(libraries.cuda_library(cuda_build[0], wanted, *paths), cuda)
            architectures.write_text(" ".join(wanted.replace(";", " ").split()) + "\n")

    def install(self, library: graph.Library, target: Path) -> None:
        """Build a library and copy it to its place."""
        folder = ROOT / "build" / sysconfig.get_platform() / library.name.removesuffix(".so")
        try:
            built = graph.build(library, folder)
        except subprocess.CalledProcessError as error:
            advice = "; DADL_CUDA=0 builds without CUDA" if target.name == "_C_cuda.so" else ""
            stop(f"{error.stdout}\n{' '.join(library.command)} failed (messages above){advice}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be loaded
        shutil.copy(built, target)


class AnyPython(bdist_wheel):
    """A wheel for every Python 3, but for one platform.

    One with CUDA says so in its build number, by which installers prefer it to that without: it serves a PyTorch of
    either kind.
    """

    def run(self) -> None:
        if cuda_build := wanted_nvcc():
            self.build_number = f"1cu{cuda_build[1]}"
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("dadl_ext._C", [])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPython},
)
