"""What a release consists of loads on every Linux that runs PyTorch, and is complete."""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

import dadl_ext
from tools.build_wheels import MOST_BYTES, refuse_heavy
from tools.check_wheel import use, wheel_in

ROOT = Path(__file__).parents[2]
LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
# Of manylinux 2.28.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}


def too_new(library: Path) -> list[str]:
    """The versions of symbols that a library needs and manylinux 2.28 lacks."""
    with library.open("rb") as file:
        sections = [part for part in ELFFile(file).iter_sections() if isinstance(part, GNUVerNeedSection)]
        names = [version.name for part in sections for _, versions in part.iter_versions() for version in versions]
    assert names
    parted = [(name, *name.split("_")) for name in names if re.fullmatch(r"[A-Z]+_[\d.]+", name)]
    return [name for name, kind, number in parted if tuple(map(int, number.split("."))) > NEWEST[kind]]


def test_no_symbol_is_too_new() -> None:
    assert too_new(Path(dadl_ext.build_info()["cpu_library"])) == []


def test_a_symbol_that_is_too_new_is_found(tmp_path: Path) -> None:
    library = tmp_path / "new.so"
    source = "#include <cmath>\ndouble call(double x) { return std::exp(x); }\n"
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)
    assert too_new(library) == ["GLIBC_2.29"]


def test_no_path_of_this_machine_is_in_the_library() -> None:
    content = Path(dadl_ext.build_info()["cpu_library"]).read_bytes()
    assert b"csrc/cpu/ranksim.cpp" in content  # in messages, from the repository's root on
    for place in (ROOT, sys.prefix, Path.home(), Path(torch.__file__).parent):
        assert f"{place}/".encode() not in content, place


def test_a_heavy_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "dadl.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("dadl_ext/_C_cuda.so", bytes(MOST_BYTES - 1000))
    refuse_heavy(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("dadl_ext/_C.so", bytes(2000))
    with pytest.raises(SystemExit, match=r"40\.0 MB, 40 MB at most are wanted: dadl_ext/_C_cuda\.so 40\.0 MB"):
        refuse_heavy(wheel)


def test_the_version_is_in_one_place() -> None:
    import dadl

    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert dadl.__version__ == dadl_ext.__version__ == version[1]


@pytest.mark.slow
def test_what_is_done_with_an_installed_wheel_can_be_done(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    use(Path(sys.executable), Path(dadl_ext.__file__).parents[1], tmp_path)
    with pytest.raises(subprocess.CalledProcessError):  # imported from elsewhere
        use(Path(sys.executable), tmp_path, tmp_path)


def test_the_wheel_without_cuda_is_chosen(tmp_path: Path) -> None:
    machine = platform.machine()
    for name in (f"1.0-py3-none-linux_{machine}", f"1.0-1cu13-py3-none-linux_{machine}", "1.0-py3-none-linux_other"):
        (tmp_path / f"dadl-{name}.whl").touch()
    assert wheel_in(tmp_path).name == f"dadl-1.0-py3-none-linux_{machine}.whl"
    wheel_in(tmp_path).unlink()
    with pytest.raises(
        SystemExit, match=r"must hold one wheel for .* without CUDA, and holds dadl-1\.0-1cu13-.*: make wheel"
    ):
        wheel_in(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no repository to copy")
def test_the_source_distribution_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        copy = tmp_path / name
        listed = subprocess.run([*LISTED, "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
            "\0"
        )
        for file in filter(None, listed):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, copy / file)  # with a time of its own
        command = "import build_wheels; print(build_wheels.build_source(build_wheels.ROOT / 'dist', '1000000000'))"
        done = subprocess.run(
            [sys.executable, "-c", command], cwd=copy / "tools", check=True, capture_output=True, text=True
        )
        made.append(Path(done.stdout.splitlines()[-1]).read_bytes())
        time.sleep(1.1)  # gzip and tar count seconds
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_release(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "build_wheels.py"), str(tmp_path), "--without-cuda"]
    subprocess.run(command, check=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert re.fullmatch(r"dadl-[\d.]+-py3-none-manylinux_2_28_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if ".so" in name] == ["dadl_ext/_C.so"]
        archive.extract("dadl_ext/_C.so", tmp_path)
    assert too_new(tmp_path / "dadl_ext" / "_C.so") == []
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no repository to compare the source distribution with")
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    listed = subprocess.run(LISTED, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if not name.startswith("dadl.egg-info/")} - made == set(listed) - {""}
