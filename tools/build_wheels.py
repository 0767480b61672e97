"""Builds what a release consists of: the source, and wheels for every Linux with glibc 2.28 or newer.

    python tools/build_wheels.py dist [--without-cuda]

The wheels are built from the source distribution, in an environment that has the packages of ``dadl[package]``; where
nvcc is, there is one with CUDA too. A wheel above 40 MB is refused: machine code for another architecture or another
type of a kernel shows there first. auditwheel refuses a library that needs more than manylinux 2.28 has, and names the
wheel for it. PyTorch's libraries and its CUDA runtime are the user's. The libraries use nothing of Python, so there
is no stable ABI of Python to audit.
"""

import argparse
import gzip
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRONTEND = (sys.executable, "-m", "build", "--no-isolation")
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


def build_source(folder: Path, when: str) -> Path:
    """The source distribution: of the same files and time, the same bytes. setuptools packs whenever and whosever."""
    run(*FRONTEND, "--sdist", "--outdir", folder, ROOT)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        contents = {member.name: (member, file.read() if file else b"") for member, file in members}
    with (
        packed.open("wb") as stream,
        gzip.GzipFile("", "wb", mtime=int(when), fileobj=stream) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for _, (member, content) in sorted(contents.items()):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, len(content), int(when)
            plain.mode = 0o755 if member.mode & 0o100 else 0o644
            archive.addfile(plain, io.BytesIO(content))
    return packed


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
    repair = [sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM, "--wheel-dir", folder]
    repair += [word for name in OTHERS for word in ("--exclude", name)]
    when = os.environ.get("SOURCE_DATE_EPOCH") or last_commit()  # of all files
    with tempfile.TemporaryDirectory() as place:
        source = build_source(Path(place), when)
        for cuda in ("0", "1") if with_cuda else ("0",):
            wheels = Path(place) / cuda
            run(*FRONTEND, "--wheel", "--outdir", wheels, source, DADL_CUDA=cuda, SOURCE_DATE_EPOCH=when)
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
