"""Which module may import which: no circles, no arrow upwards, methods apart from each other, light packages."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dadl
import pytest
from dadl.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SOURCES = {"dadl": ROOT / "python" / "dadl", "dadl_ext": ROOT / "dadl_ext"}
# A method is a folder with a method and a recipe.
METHODS = tuple(
    sorted(file.parent.name for file in SOURCES["dadl"].glob("*/method.py") if file.with_name("recipe.py").exists())
)
MOST_MODULES = 12  # in a folder
# From the bottom up. A package imports what stands in a row below its own, and of its own row nothing but itself.
FLOORS = (
    (
        *("errors", "checks", "documents", "options", "processes", "metrics", "lazy"),
        *("files", "output"),
    ),
    ("data", "networks"),
    ("training",),
    ("runs",),
    METHODS,
    ("comparison",),
    ("report", "demos", "benchmarks", "recipes"),
    ("api",),
    ("commands",),
    ("cli", "__init__"),
    ("__main__",),
)
HEAVY = (
    "lightning_fabric",
    "matplotlib",
    "rich",
    "cyclopts",
    "yaml",
    "PIL",
    "sklearn",
    "scipy",
    "transformers",
    "optuna",
)


def modules_of(package: str) -> dict[str, Path]:
    """Every module by its dotted name; a package is that of its ``__init__.py``."""
    found = {}
    for file in sorted(SOURCES[package].rglob("*.py")):
        parts = [package, *file.relative_to(SOURCES[package]).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = {name: file for package in SOURCES for name, file in modules_of(package).items()}


def imported_by(name: str) -> Iterator[str]:
    """The modules of ours that a module imports, also in functions and for types alone.

    A package on the way to an imported module counts too, as its ``__init__`` runs, unless the importing module is
    inside it.
    """
    file = MODULES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    stub = file.with_suffix(".pyi")  # names that are imported when they are first used
    sources = [file, *([stub] if stub.exists() else [])]
    for node in (node for source in sources for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            named = [
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            ]
        else:
            continue
        for imported in named:
            parts = imported.split(".")
            for end in range(1, len(parts) + 1):
                place = ".".join(parts[:end])
                if place in MODULES and place != name and not name.startswith(f"{place}."):
                    yield place


IMPORTS = {name: set(imported_by(name)) for name in MODULES}


def floor_of(name: str) -> tuple[int, str]:
    """The row of a module of ``dadl``, and its package or root module."""
    place = name.split(".")[1] if "." in name else "__init__"
    return next(floor for floor, places in enumerate(FLOORS) if place in places), place


def test_every_module_is_read() -> None:
    assert {"dadl.ranksim.method", "dadl.data", "dadl", "dadl_ext.functional"} <= MODULES.keys()
    assert "dadl.data.rows" in IMPORTS["dadl.ranksim.recipe"]
    assert any(name.startswith("dadl_ext") for name in IMPORTS["dadl.ranksim.method"])
    assert "dadl.runs.search" in IMPORTS["dadl.runs.train"]  # inside a function


def test_no_module_imports_itself_through_others() -> None:
    left = {name: set(imports) for name, imports in IMPORTS.items()}
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in free}
    assert not left, f"these modules are in a circle, or lead to one: {sorted(left)}"


def test_the_extension_does_not_import_the_training_layer() -> None:
    for name, imports in IMPORTS.items():
        if name.split(".")[0] == "dadl_ext":
            assert not {other for other in imports if other.split(".")[0] == "dadl"}, name


def test_imports_lead_downwards() -> None:
    for name, imports in IMPORTS.items():
        if name.split(".")[0] != "dadl":
            continue
        floor, place = floor_of(name)
        for other in imports:
            if other.split(".")[0] == "dadl":
                below, its_place = floor_of(other)
                assert below < floor or its_place == place or below == floor == 0, f"{name} imports {other}"


def test_methods_do_not_import_each_other() -> None:
    assert {"ranksim", "self_tuning", "chi_model", "cmw_net"} <= set(METHODS)
    for name, imports in IMPORTS.items():
        own = name.split(".")[1] if "." in name else ""
        if own in METHODS:
            others = {other for other in imports if "." in other and other.split(".")[1] in METHODS}
            assert not {other for other in others if other.split(".")[1] != own}, name


def test_no_test_file_imports_another() -> None:
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[-1].startswith("test_")], file


def test_folders_stay_small() -> None:
    for folder in {file.parent for file in MODULES.values()}:
        modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder.relative_to(ROOT)} holds {len(modules)} modules"


def loaded(code: str, names: tuple[str, ...]) -> str:
    """Which of these modules a fresh process has imported after the code, as a list."""
    code = f"import sys; {code}; print([name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return result.stderr.strip()


@pytest.mark.parametrize(
    ("package", "kept_out"),
    [("dadl_ext", ("dadl", *HEAVY)), ("dadl", ("dadl_ext", "torch", "numpy", *HEAVY))],
)
def test_a_package_is_light(package: str, kept_out: tuple[str, ...]) -> None:
    assert loaded(f"import {package}", kept_out) == "[]"


def test_runs_are_read_without_what_trains() -> None:
    assert loaded("import dadl.report.page, dadl.api.run", ("lightning_fabric",)) == "[]"


@pytest.mark.parametrize(
    "command", ["", "train", "report", "predict", *(f"train {kind.name}" for kind in RECIPES)], ids=str
)
def test_help_loads_nothing_heavy(command: str) -> None:
    kept_out = ("torch", "numpy", "pyarrow", *(name for name in HEAVY if name not in ("rich", "cyclopts")))
    words = [*command.split(), "--help"]
    assert loaded(f"from dadl.cli import app; app.meta({words!r}, result_action='return_none')", kept_out) == "[]"


def test_names_are_imported_when_they_are_first_used() -> None:
    assert loaded("import dadl; assert dadl.CMWNet; assert 'CMWNet' in dir(dadl)", ("torch", "yaml")) == "['torch']"
    with pytest.raises(AttributeError, match="module 'dadl' has no attribute 'Nothing'"):
        dadl.Nothing  # noqa: B018
    for package in SOURCES["dadl"].rglob("__init__.pyi"):
        name = ".".join(["dadl", *package.parent.relative_to(SOURCES["dadl"]).parts])
        module = importlib.import_module(name)
        assert module.__all__
        assert all(getattr(module, public) is not None for public in module.__all__)
