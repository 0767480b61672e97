"""Lays out the folder from which kernel-builder makes the kernels for the Hugging Face Hub.

    python packaging/hub/layout.py FOLDER

The folder must not exist. Beside the files here, it holds csrc, the Python package, and in build.toml the sections that
csrc/libraries.py tells.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import libraries  # noqa: E402

HEADERS = {".h", ".inc", ".cuh"}


def sections() -> dict[str, dict[str, Any]]:
    """A kernel for each backend. That of CUDA has the CPU operators too: a build is one library."""
    files = sorted(path.relative_to(ROOT / "csrc") for path in (ROOT / "csrc").rglob("*") if path.suffix in HEADERS)
    headers = [file.as_posix() for file in files]
    architectures = libraries.DEFAULT_ARCHITECTURES.split(";")
    definitions = [flag for flag in libraries.gencode(libraries.DEFAULT_ARCHITECTURES) if flag.startswith("-D")]

    def section(backend: str, sources: list[str], **more: Any) -> dict[str, Any]:
        return {
            "backend": backend,
            "depends": ["torch"],
            "src": [f"csrc/{source}" for source in dict.fromkeys(sources)],
            # The format has no place for SOURCE_FLAGS, which only save time in compiling.
            "cxx-flags": _own(libraries.CXX_FLAGS),
            **more,
        }

    cuda = {
        "cuda-flags": _own([*libraries.NVCC_FLAGS, *definitions]),
        "cuda-capabilities": ["9.0a" if architecture == "9.0" else architecture for architecture in architectures],
    }
    host = [header for header in headers if not header.startswith("cuda/")]
    return {
        "dadl_cpu": section("cpu", [*host, *libraries.CPU_SOURCES]),
        "dadl_cuda": section("cuda", [*headers, *libraries.CPU_SOURCES, *libraries.CUDA_SOURCES], **cuda),
    }


def _own(flags: list[str]) -> list[str]:
    """Without those by which kernel-builder asks for the stable ABI itself."""
    return [flag for flag in flags if flag not in libraries.STABLE_ABI]


def lay_out(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "_C*", "py.typed", "layout.py")
    shutil.copytree(ROOT / "dadl_ext", folder / "torch-ext" / "dadl", ignore=ignored)
    shutil.copytree(HERE, folder, ignore=ignored, dirs_exist_ok=True)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, folder)
    kernels = sections()
    for source in {source for kernel in kernels.values() for source in kernel["src"]}:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / source, folder / source)
    with (folder / "build.toml").open("a") as file:
        for name, kernel in kernels.items():
            # Strings and lists of strings are written alike in JSON and in TOML.
            lines = (f"{key} = {json.dumps(value, indent=2)}" for key, value in kernel.items())
            file.write("\n".join(["", f"[kernel.{name}]", *lines, ""]))


if __name__ == "__main__":
    (target,) = sys.argv[1:]
    lay_out(Path(target))
