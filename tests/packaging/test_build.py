"""The build stops with one sentence where it cannot work, and makes one wheel for every Python."""

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what the build reads, so that the working tree keeps its libraries."""
    target = tmp_path / "source"
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, target)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.architectures")
    for name in ("csrc", "dadl_ext", "python"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    return target


def build(source: Path, **environment: str) -> str:
    """The message of a build that must fail."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert not list((source / "dadl_ext").glob("*.so"))
    return result.stderr


def fake_nvcc(folder: Path, release: str) -> str:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return str(folder)


def test_without_a_compiler(source: Path) -> None:
    assert "no C++ compiler (no-such-compiler); install one" in build(source, CXX="no-such-compiler")


def test_without_ninja(source: Path) -> None:
    (source / "csrc" / "graph.py").write_text(
        (source / "csrc" / "graph.py").read_text().replace('"ninja"', '"no-ninja"')
    )
    assert "ninja is not installed here; run `pip install ninja` first" in build(source)


def test_without_torch(source: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')\n")
    message = build(source, PYTHONPATH=str(tmp_path))
    assert "torch is not installed here" in message
    assert "pip install --no-build-isolation ." in message


def test_with_an_old_torch(source: Path, tmp_path: Path) -> None:
    package = tmp_path / "old" / "torch" / "utils"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("__version__ = '2.4.1'\n")
    (package / "__init__.py").write_text("")
    (package / "cpp_extension.py").write_text("")
    assert "needs torch >= 2.11, found 2.4.1" in build(source, PYTHONPATH=str(tmp_path / "old"))


def test_without_the_wanted_nvcc(source: Path, tmp_path: Path) -> None:
    message = build(source, DADL_CUDA="1", CUDA_HOME=str(tmp_path / "nowhere"))
    assert "DADL_CUDA=1, but nvcc is neither" in message


def test_with_an_old_nvcc(source: Path, tmp_path: Path) -> None:
    message = build(source, DADL_CUDA="1", CUDA_HOME=fake_nvcc(tmp_path / "cuda", "11.4"))
    assert "is version 11.4, 12.8 is needed" in message
    assert "DADL_CUDA=0" in message


def test_with_an_unknown_mode(source: Path) -> None:
    assert "DADL_CUDA must be auto, 0 or 1, got 'yes'" in build(source, DADL_CUDA="yes")


@pytest.mark.slow
def test_one_wheel_for_every_python(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir"]
    environment = {**os.environ, "DADL_CUDA": "0"}
    subprocess.run([*command, str(tmp_path / "dist"), str(source)], check=True, env=environment)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith("dadl-")
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "dadl_ext/_C.so",
        "dadl_ext/py.typed",
        "dadl/py.typed",
        "dadl_ext/reference/ranksim.py",
        "dadl/benchmarks/run.py",
        "dadl/report/page.html",
        "dadl/report/page.css",
    ):
        assert name in names

    # Installed elsewhere, it imports and computes.
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    code = "import dadl_ext, torch; print(dadl_ext.__file__, dadl_ext.functional.rank(torch.tensor([3., 1.])).tolist())"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == f"{target}/dadl_ext/__init__.py [1.0, 2.0]", run.stderr


def test_build_info_tells_everything() -> None:
    import dadl_ext

    info = dadl_ext.build_info()
    assert Path(info["cpu_library"]).exists()
    assert info["cpu_capability"]
    assert info["cuda_available"] == (info["cuda_absent_because"] is None)
