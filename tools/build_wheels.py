"""Builds what a release consists of: the source, and wheels for every Linux with glibc 2.28 or newer.

    python tools/build_wheels.py dist [--without-cuda]

The wheels are built from the source distribution, in an environment that has the packages of ``dadl[package]``; where
nvcc is, there is one with CUDA too. A wheel above 40 MB is refused: machine code for another architecture or another
type of a kernel shows there first. auditwheel refuses a library that needs more than manylinux 2.28 has, and names the
wheel for it. PyTorch's libraries and its CUDA runtime are the user's. The libraries use nothing of Python, so there
is no stable ABI of Python to audit.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_BYTES = 40 * 10**6  # of a wheel
PLATFORM = f"manylinux_2_28_{platform.machine()}"
OTHERS = ("libc10.so", "libc10_cuda.so", "libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libcudart.so.*")


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, **environment})


def last_commit() -> str:
    """The time of the last commit, in seconds, or of this file where there is no repository."""
    command = ["git", "log", "-1", "--format=%ct"]
    told = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) if shutil.which("git") else None
    )
    return (told.stdout.strip() if told else "") or str(int(Path(__file__).stat().st_mtime))


def refuse_heavy(wheel: Path) -> None:
    """Stop if a wheel weighs too much, with what weighs in it."""
    size = wheel.stat().st_size
    if size <= MOST_BYTES:
        return
    with zipfile.ZipFile(wheel) as archive:
        parts = sorted(archive.infolist(), key=lambda part: -part.compress_size)[:5]
    listed = ", ".join(f"{part.filename} {part.compress_size / 1e6:.1f} MB" for part in parts)
    raise SystemExit(
        f"{wheel.name} has {size / 1e6:.1f} MB, {MOST_BYTES / 1e6:.0f} MB at most are wanted: {listed}. Leave out an "
        "architecture (TORCH_CUDA_ARCH_LIST) or raise MOST_BYTES in tools/build_wheels.py"
    )


def build(folder: Path, with_cuda: bool) -> None:
    """Everything into ``folder``."""
    frontend = [sys.executable, "-m", "build", "--no-isolation"]
    repair = [sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM, "--wheel-dir", folder]
    repair += [word for name in OTHERS for word in ("--exclude", name)]
    when = os.environ.get("SOURCE_DATE_EPOCH") or last_commit()  # of the files in the wheels
    with tempfile.TemporaryDirectory() as place:
        run(*frontend, "--sdist", "--outdir", place, ROOT)
        (source,) = Path(place).glob("*.tar.gz")
        for cuda in ("0", "1") if with_cuda else ("0",):
            wheels = Path(place) / cuda
            run(*frontend, "--wheel", "--outdir", wheels, source, DADL_CUDA=cuda, SOURCE_DATE_EPOCH=when)
            (wheel,) = wheels.iterdir()
            refuse_heavy(wheel)
            run(*repair, wheel, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        shutil.copy(source, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-cuda", action="store_true")
    given = parser.parse_args()
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = any(map(shutil.which, [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]))
    build(given.folder, nvcc and not given.without_cuda)


if __name__ == "__main__":
    main()
