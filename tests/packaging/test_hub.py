"""The kernels for the Hugging Face Hub: kernel-builder's folder is complete, its package loads beside dadl_ext.

kernel-builder itself needs Nix and has not run. A stand-in writes what it would, and the project's own graph compiles.
"""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import losses
from support.transforms import plain_gradients
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode

import dadl_ext

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
import libraries  # noqa: E402

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

NAMESPACE = "_dadl_test"
# Of the format, the keys that are used here; kernel-builder refuses what it does not know.
KEYS = {
    "general": {"name", "version", "edition", "license", "backends", "cuda"},
    "torch": {"src", "stable-abi"},
    "cpu": {"backend", "depends", "src", "cxx-flags"},
    "cuda": {"backend", "depends", "src", "cxx-flags", "cuda-flags", "cuda-capabilities"},
}
# kernel-builder writes the one, and the tests' simulator has the other.
NOT_LISTED = {"registration.h", "cuda_sim.h"}
# What kernel-builder adds to the folder.
REGISTRATION = """\
#include <Python.h>
#define WITH_PREFIX(prefix, name) prefix##name
#define INITIALIZER(name) WITH_PREFIX(PyInit_, name)
#define REGISTER_EXTENSION(name)                                                         \\
  PyMODINIT_FUNC INITIALIZER(name)() {                                                   \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "kernel", nullptr, 0, nullptr};  \\
    return PyModule_Create(&module);                                                     \\
  }
"""
OPS = f"""\
import torch
from . import {NAMESPACE}
ops = torch.ops.{NAMESPACE}
def add_op_namespace_prefix(op_name):
    return "{NAMESPACE}::" + op_name
"""


def lay_out(folder: Path) -> dict[str, Any]:
    """The folder's build.toml."""
    subprocess.run([sys.executable, str(ROOT / "packaging" / "hub" / "layout.py"), str(folder)], check=True)
    return tomllib.loads((folder / "build.toml").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub") / "dadl"


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    return lay_out(folder)


def sources_of(told: dict[str, Any], name: str) -> list[str]:
    return [*told["torch"]["src"], *told["kernel"][name]["src"]]


def test_it_says_what_the_project_says(told: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["general"]["name"] == project["name"]
    assert told["general"]["license"] == project["license"]
    assert told["general"]["cuda"] == {"minver": ".".join(map(str, libraries.MINIMUM_NVCC))}
    kernels = {kernel["backend"]: kernel for kernel in told["kernel"].values()}
    assert set(told["general"]["backends"]) == set(told["torch"]["stable-abi"]) == set(kernels)
    for version in told["torch"]["stable-abi"].values():
        assert f"torch>={version}" in project["dependencies"]
        major, minor = map(int, version.split("."))
        assert [f"-DTORCH_TARGET_VERSION={major << 56 | minor << 48:#018x}"] == libraries.STABLE_ABI
    for kernel in kernels.values():
        assert [*kernel["cxx-flags"], *libraries.STABLE_ABI] == libraries.CXX_FLAGS
    assert set(libraries.NVCC_FLAGS) - set(kernels["cuda"]["cuda-flags"]) == set(libraries.STABLE_ABI)
    wanted = {flag for flag in libraries.gencode(libraries.DEFAULT_ARCHITECTURES) if "sm_" in flag}
    numbers = [word.removesuffix("+PTX").replace(".", "") for word in kernels["cuda"]["cuda-capabilities"]]
    assert {f"arch=compute_{number},code=sm_{number}" for number in numbers} == wanted


def test_every_key_is_of_the_format(told: dict[str, Any]) -> None:
    assert set(told) == {"general", "torch", "kernel"}
    assert set(told["general"]) <= KEYS["general"]
    assert set(told["torch"]) <= KEYS["torch"]
    for kernel in told["kernel"].values():
        assert set(kernel) <= KEYS[kernel["backend"]]


@pytest.mark.parametrize(
    ("name", "compiled"),
    [("dadl_cpu", libraries.CPU_SOURCES), ("dadl_cuda", [*libraries.CPU_SOURCES, *libraries.CUDA_SOURCES])],
)
def test_every_source_is_listed_and_there(told: dict[str, Any], folder: Path, name: str, compiled: list[str]) -> None:
    """What is not listed is not there when kernel-builder compiles."""
    listed = sources_of(told, name)
    assert len(listed) == len(set(listed))
    assert {f"csrc/{source}" for source in compiled} <= set(listed)
    for source in listed:
        assert (folder / source).is_file(), source
        for included in re.findall(r'^ *#include "([^"]+)"', (folder / source).read_text(), re.MULTILINE):
            place = (folder / source).parent / included
            if included not in NOT_LISTED:
                assert place.resolve().relative_to(folder.resolve()).as_posix() in listed, f"{source}: {included}"


def test_the_package_imports_nothing_but_itself_and_torch(folder: Path, told: dict[str, Any]) -> None:
    package = folder / "torch-ext" / told["general"]["name"]
    assert (package / "__init__.py").exists()
    for file in package.rglob("*.py"):
        text = file.read_text()
        assert "dadl::" not in text
        assert "ops.dadl" not in text
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch"}, file
            # kernel-builder stops at a decorator that names an operator otherwise.
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if "register_" in (written := ast.unparse(decorator)):
                    assert re.match(r"torch\.library\.register_fake\(add_op_namespace_prefix\(", written), file


@pytest.mark.parametrize("source", ["ops.cpp", "cpu/ranking.cpp", "cuda/ranking.cu"])
def test_operators_are_registered_in_the_namespace_of_the_build(source: str) -> None:
    includes = [f"-I{path}" for path in (ROOT / "tests" / "simulator", *cpp_extension.include_paths())]
    command = [*graph.compiler(), "-E", "-P", "-x", "c++", "-std=c++20", "-DUSE_CUDA", *libraries.STABLE_ABI, *includes]

    def namespaces(*flags: str) -> set[str]:
        read = subprocess.run([*command, *flags, str(ROOT / "csrc" / source)], capture_output=True, text=True)
        assert read.returncode == 0, read.stderr
        return set(re.findall(r"Kind::(?:DEF|IMPL),\s*&\w+,\s*\"(\w+)\"", read.stdout))

    assert namespaces() == {"dadl"}
    assert namespaces(f"-DTORCH_EXTENSION_NAME={NAMESPACE}") == {NAMESPACE}


def test_every_source_registers_by_the_macro() -> None:
    for file in (file for file in (ROOT / "csrc").rglob("*") if file.suffix in {".cpp", ".cu", ".h", ".cuh", ".inc"}):
        assert ("STABLE_TORCH_LIBRARY" in file.read_text()) == (file.name == "signatures.h"), file


class Namespaces(TorchDispatchMode):
    """Of the operators that are called, other than PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims"):
            self.seen.add(func.namespace)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """The package with the CPU operators in NAMESPACE, loaded as the Hub's client does: by its path."""
    place = ROOT / "build" / "hub-test"  # a second run compiles what has changed
    shutil.rmtree(place / "source", ignore_errors=True)
    told = lay_out(place / "source")
    (place / "source" / "torch-ext" / "registration.h").write_text(REGISTRATION)
    package = place / "source" / "torch-ext" / "dadl"
    (package / "_ops.py").write_text(OPS)
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = [*told["kernel"]["dadl_cpu"]["cxx-flags"], *libraries.STABLE_ABI, f"-DTORCH_EXTENSION_NAME={NAMESPACE}"]
    command = [*graph.compiler(), *flags, *(f"-I{path}" for path in includes)]
    sources = [place / "source" / name for name in sources_of(told, "dadl_cpu") if name.endswith(".cpp")]
    link = [*graph.compiler(), *libraries.LINK_FLAGS, *(f"-L{path}" for path in cpp_extension.library_paths())]
    objects = [graph.Object(source, command) for source in sources]
    built = graph.build(graph.Library(f"{NAMESPACE}.abi3.so", objects, link, libraries.TORCH), place)
    shutil.copy(built, package)
    spec = importlib.util.spec_from_file_location("of_the_hub", package / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["of_the_hub"] = module
    spec.loader.exec_module(module)
    return module


def results(name: str) -> tuple[torch.Tensor, ...]:
    call = losses.make(name, n=40)
    return call.of_inputs(*call.inputs), *plain_gradients(call.of_inputs, call.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_build_of_the_hub_gives_the_same_bits(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with Namespaces() as ordinary:
        expected = results(name)
    assert kernel.functional is not dadl_ext.functional
    monkeypatch.setattr(losses, "functional", kernel.functional)
    with Namespaces() as hubs:
        actual = results(name)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    if name != "reverse_gradient":  # which has no operator
        assert (ordinary.seen, hubs.seen) == ({"dadl"}, {NAMESPACE})


@pytest.mark.slow
def test_a_build_of_the_hub_compiles_and_refuses_like_the_ordinary_one(kernel: ModuleType) -> None:
    x = torch.randn(12, 5)
    compiled = torch.compile(kernel.functional.rank, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), dadl_ext.functional.rank(x))
    rank = getattr(torch.ops, NAMESPACE).rank
    torch.library.opcheck(rank.default, (x, 2.0))
    assert rank.overloads() == torch.ops.dadl.rank.overloads()
    with pytest.raises(RuntimeError, match=f"{NAMESPACE}::rank cannot be differentiated"):
        rank(x.requires_grad_(), 2.0).sum().backward()


@pytest.mark.slow
def test_a_build_of_the_hub_tells_which_it_is(kernel: ModuleType) -> None:
    info = kernel.build_info()
    assert info["dadl"] == kernel.__version__ == NAMESPACE
    assert Path(info["cpu_library"]).name == f"{NAMESPACE}.abi3.so"
    assert info["cuda_library"] is None
    assert info["cuda_absent_because"] == f"{NAMESPACE} was built without CUDA"
