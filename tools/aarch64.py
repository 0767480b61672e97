"""The wheel for aarch64: compiled here and tested in an emulator, where the library's vectors are NEON's.

    python tools/aarch64.py [ARGUMENTS OF PYTEST]     (make aarch64)

It leaves the wheel in build/aarch64/dist and needs Debian's packages g++-aarch64-linux-gnu, mmdebstrap and qemu-user,
and 5 GB in build/aarch64 for Debian's Python and PyTorch's wheel for aarch64, which comes with libraries of CUDA. Tests
that start processes are left out: the kernel cannot run programs of aarch64 by itself.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flavours import build  # noqa: E402

from tools.build_wheels import FRONTEND, build_source, last_commit, run  # noqa: E402

COMPILER, PYTHON, RELEASE = "aarch64-linux-gnu-g++", "3.11", "bookworm"
PROCESSOR = "cortex-a76"
NEEDED = {COMPILER: "g++-aarch64-linux-gnu", "mmdebstrap": "mmdebstrap", "qemu-aarch64": "qemu-user"}
TORCH = importlib.metadata.version("torch").split("+")[0]
FOLDER = ROOT / "build" / "aarch64"
MOST_GLIBC = 28  # 2.28, of the wheel's tag
SYSTEM, SITE = FOLDER / "system", FOLDER / f"torch-{TORCH}"
# PyTorch's libraries ask the kernel which processor this is, and crash if it is another's.
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUINFO = {"Features": FEATURES, "CPU implementer": "0x41", "CPU architecture": "8", "CPU variant": "0x3"}
CPUINFO |= {"CPU part": "0xd0b", "CPU revision": "1"}
MIDR = "0x00000000413fd0b1"


def once(target: Path, make: Callable[[Path], object]) -> None:
    """Make a folder that is there whole or not at all."""
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        make(part)
        part.rename(target)


def make_system(folder: Path) -> None:
    packages = "--include=python3,libstdc++6,libgomp1"
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", packages, RELEASE, str(folder)]
    subprocess.run(command, check=True)
    (folder / "proc").mkdir(exist_ok=True)
    processors = range(os.cpu_count() or 1)
    lines = (f"{name}\t: {text}\n" for number in processors for name, text in [("processor", number), *CPUINFO.items()])
    (folder / "proc" / "cpuinfo").write_text("".join(lines))
    for number in processors:
        place = folder / "sys" / "devices" / "system" / "cpu" / f"cpu{number}" / "regs" / "identification"
        place.mkdir(parents=True)
        (place / "midr_el1").write_text(f"{MIDR}\n")


def make_site(folder: Path) -> None:
    """PyTorch in the version of this environment, and what the tests import."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, MOST_GLIBC + 1))]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--python-version={PYTHON}", "--only-binary=:all:"]
    subprocess.run([*command, f"torch=={TORCH}", "numpy", "pytest", "hypothesis"], check=True)


def make_wheel(folder: Path) -> Path:
    """Compile it; stop if it needs more of glibc than its tag says."""
    shutil.rmtree(folder, ignore_errors=True)
    cross = {"CXX": COMPILER, "LDFLAGS": f"-L{SITE / 'torch' / 'lib'}", "DADL_CUDA": "0"}
    platform = f"-C--build-option=--plat-name=manylinux_2_{MOST_GLIBC}_aarch64"
    with tempfile.TemporaryDirectory() as place:
        source = build_source(Path(place), last_commit())
        run(*FRONTEND, "--wheel", "--outdir", folder, platform, source, **cross)
    (wheel,) = folder.iterdir()
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = re.search(r'"manylinux_2_(\d+)_aarch64"', " ".join(shown.split()))
    if needed is None or int(needed[1]) > MOST_GLIBC:
        raise SystemExit(f"{wheel.name} needs more than glibc 2.{MOST_GLIBC}:\n{shown}")
    return wheel


def main() -> int:
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"not installed here: {' '.join(missing)}; run `apt-get install {' '.join(missing)}`")
    FOLDER.mkdir(parents=True, exist_ok=True)
    once(SYSTEM, make_system)
    once(SITE, make_site)
    wheel, packages = make_wheel(FOLDER / "dist"), FOLDER / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    python = ["qemu-aarch64", "-cpu", PROCESSOR, "-L", str(SYSTEM), str(SYSTEM / "usr" / "bin" / f"python{PYTHON}")]
    tests = [*build.pytest_arguments(packages), "-m", "not slow", *sys.argv[1:]]
    environment = {"PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1", "DADL_EXAMPLES": "5"}
    return subprocess.run([*python, "-m", "pytest", *tests], cwd=ROOT, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main())
