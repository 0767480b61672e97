"""How the package starts: without the files of the current folder, without PyTorch, and with threads that sleep.

``python -m dadl`` imports nothing of the folder it is started in, where files of others may lie. Python puts that
folder first on ``sys.path`` before it imports this package, and after that PyTorch and all the rest.
"""

import ast
import os
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Lets OpenMP's threads sleep while they wait, so that several trainings share the cores."""


def leave_current_folder_out() -> None:
    """Take the current folder from the path if Python itself has put it there for ``-m dadl``."""
    started = sys.argv[:1] == ["-m"] and any(
        option == "-m" and module.split(".")[0] == "dadl" for option, module in pairwise(sys.orig_argv)
    )
    if started and not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]


def wait_passively() -> None:
    """Set :data:`PASSIVE_WAITING`, unless the user has set one of its variables; in time only before PyTorch loads."""
    if not PASSIVE_WAITING.keys() & os.environ.keys():
        os.environ.update(PASSIVE_WAITING)


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


leave_current_folder_out()
