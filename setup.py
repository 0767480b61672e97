"""Builds _C.abi3.so (schemas and CPU operators) and, if requested, _C_cuda.so (CUDA operators).

Environment:
    DADL_CUDA               auto (default): with CUDA if torch is a CUDA build and nvcc is found; 0: without CUDA;
                            1: with CUDA, or stop. nvcc is searched in $CUDA_HOME, on PATH and in /usr/local/cuda.
    TORCH_CUDA_ARCH_LIST    as in PyTorch, for example "9.0"; the default covers 8.0 and everything newer
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))
import flags  # noqa: E402


def stop(sentence: str) -> NoReturn:
    raise SystemExit(f"\ndadl cannot be built: {sentence}\n")


def require_torch():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        stop(
            "torch is not installed here; run `pip install 'torch>=2.11' setuptools wheel` first, then "
            "`pip install --no-build-isolation .`"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        stop(f"it needs torch >= 2.11, found {torch.__version__}; run `pip install 'torch>=2.11'`")
    return torch, cpp_extension


def require_compiler() -> None:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        stop(f"no C++ compiler ({compiler}); install one (`apt-get install g++`) or set CXX to one")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for path in map(shutil.which, candidates) if path), None)


def wanted_nvcc(torch) -> str | None:
    """The nvcc to build with, or None for a build without CUDA."""
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
    if version < flags.MINIMUM_NVCC:
        needed = ".".join(map(str, flags.MINIMUM_NVCC))
        stop(f"{nvcc} is version {found}, {needed} is needed; set CUDA_HOME to a newer toolkit, or DADL_CUDA=0")
    if torch.version.cuda is not None and int(torch.version.cuda.split(".")[0]) != version[0]:
        stop(
            f"{nvcc} is version {found}, but torch was built with CUDA {torch.version.cuda}; set CUDA_HOME to a "
            "toolkit of that major version, or DADL_CUDA=0"
        )
    return nvcc


class BuildLibraries(build_ext):
    def build_extensions(self) -> None:
        torch, cpp_extension = require_torch()
        require_compiler()
        nvcc = wanted_nvcc(torch)
        for extension in self.extensions:
            extension.include_dirs = cpp_extension.include_paths()
            extension.library_dirs = cpp_extension.library_paths()
        compile_one_by_one = self.compiler.compile

        def compile_side_by_side(sources: list[str], *, extra_postargs: list[str], **options) -> list[str]:
            def compile_one(source: str) -> list[str]:
                own = flags.SOURCE_FLAGS.get(Path(source).relative_to("csrc").as_posix(), [])
                return compile_one_by_one([source], extra_postargs=[*extra_postargs, *own], **options)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = list(pool.map(compile_one, sources))
            return [path for paths in compiled for path in paths]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()

        target = Path(self.get_ext_fullpath("dadl_ext._C")).parent
        library, architectures = target / "_C_cuda.so", target / "_C_cuda.architectures"
        library.unlink(missing_ok=True)
        architectures.unlink(missing_ok=True)
        if nvcc:
            wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or flags.DEFAULT_ARCHITECTURES
            self.build_cuda(nvcc, wanted, library, cpp_extension)
            architectures.write_text(" ".join(wanted.replace(";", " ").split()) + "\n")

    def build_cuda(self, nvcc: str, architectures: str, library: Path, cpp_extension) -> None:
        objects = Path(self.build_temp) / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]

        def compile_one(source: str) -> str:
            target = str(objects / (Path(source).stem + ".o"))
            command = [nvcc, *flags.NVCC_FLAGS, *flags.gencode(architectures), *includes]
            subprocess.run([*command, "-c", str(flags.CSRC / source), "-o", target], check=True)
            return target

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = list(pool.map(compile_one, flags.CUDA_SOURCES))
            paths = [f"-L{path}" for path in cpp_extension.library_paths()]
            subprocess.run([nvcc, *compiled, *paths, *flags.NVCC_LINK_FLAGS, "-o", str(library)], check=True)
        except subprocess.CalledProcessError as error:
            stop(f"nvcc failed with exit code {error.returncode} (messages above); DADL_CUDA=0 builds without CUDA")


setup(
    ext_modules=[
        Extension(
            "dadl_ext._C",
            [str(Path("csrc") / source) for source in flags.CPU_SOURCES],
            depends=[str(path.relative_to(ROOT)) for kind in ("*.h", "*.inc") for path in flags.CSRC.rglob(kind)],
            extra_compile_args=flags.CXX_FLAGS,
            libraries=["c10", "torch_cpu", "torch"],
            language="c++",
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
