"""Shared libraries as a graph for ninja, by which setup.py, the simulator and the tests build.

After a change, what it touches is compiled again and nothing else. ``MAX_JOBS`` limits the compilers that run at once;
``CXX`` may be several words, such as ``ccache g++``.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RULES = """\
rule compile
  command = $tool -MMD -MF $out.d -MT $out -c $in -o $out > $out.log 2>&1 || { cat $out.log; exit 1; }
  depfile = $out.d
  deps = gcc
  description = $in
rule link
  command = $tool $in $libraries -o $out
  description = $out
"""


@dataclass(frozen=True)
class Object:
    """A source, and the compiler with its flags; what the compiler says is kept in ``name.o.log``."""

    source: Path
    command: Sequence[str]


@dataclass(frozen=True)
class Library:
    """A shared library: its name, its objects, the linker with its flags, and the libraries to link with."""

    name: str
    objects: Sequence[Object]
    command: Sequence[str]
    libraries: Sequence[str] = ()


def compiler() -> list[str]:
    """The C++ compiler."""
    return shlex.split(os.environ.get("CXX", "g++"))


def ninja() -> str | None:
    """The ninja of this Python's environment, or else that on the path."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("ninja", path=os.pathsep.join(places))


def build(library: Library, folder: Path) -> Path:
    """Bring the library in ``folder`` up to date and return its path; raises a ``CalledProcessError`` with the output.

    Whoever else wants to build there waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(_graph(library))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        command = [ninja() or "ninja", "-C", str(folder), "-j", jobs, library.name]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return folder / library.name


def object_of(compiled: Object) -> str:
    """The object's file, in the folder of its library."""
    return f"{compiled.source.stem}.o"


def _graph(library: Library) -> str:
    lines = [RULES]
    for compiled in library.objects:
        lines += [f"build {object_of(compiled)}: compile {_path(compiled.source)}"]
        lines += [f"  tool = {_words(compiled.command)}"]
    objects = " ".join(object_of(compiled) for compiled in library.objects)
    lines += [f"build {library.name}: link {objects}"]
    lines += [f"  tool = {_words(library.command)}", f"  libraries = {_words(library.libraries)}"]
    return "\n".join(lines) + "\n"


def _words(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
