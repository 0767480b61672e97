"""Packages whose names are imported when they are first used."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package whose names are imported when they are first used.

    The names and their modules are the imports in the ``__init__.pyi`` beside the package's ``__init__.py``. So
    ``import dadl`` and the help of the command take no time for PyTorch.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    modules = {
        alias.name: f".{node.module}" for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return sorted(modules), get, lambda: sorted({*vars(sys.modules[package]), *modules})
