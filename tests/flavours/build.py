"""The CPU library built in ways that show faults, each in a copy of the package ``dadl_ext``, and the tests for it."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
import libraries  # noqa: E402

SANITIZED = ["-O1", "-g", "-DDADL_CLONES=", "-fno-omit-frame-pointer"]
FLAVOURS = {
    "address": [*SANITIZED, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": [*SANITIZED, "-fsanitize=thread"],
    "tiles": ["-include", str(HERE / "plain_tiles.h")],
}


OPERATORS = ("ranking", "ranksim", "rank_n_contrast", "contrast", "disagreement", "dropout")
# Memory is another's, times are long, what PyTorch compiles is not ours, and other instruction sets start processes.
LEFT_OUT = "not compile and not memory and not holds_no_masks and not every_instruction_set and not every_processor"


def build(flavour: str) -> Path:
    """The folder that holds the package with the library of one of FLAVOURS."""
    paths = cpp_extension.include_paths(), cpp_extension.library_paths()
    library = libraries.cpu_library(*paths, *FLAVOURS[flavour])
    if flavour == "thread":
        command = [*graph.compiler(), *libraries.CXX_FLAGS, *(f"-I{path}" for path in paths[0]), *FLAVOURS[flavour]]
        objects = [*library.objects, graph.Object(HERE / "threads.cpp", command)]
        library = replace(library, objects=objects, command=[*library.command, "-Wl,-Bsymbolic"])
    folder = ROOT / "build" / "flavours" / flavour
    built = graph.build(library, folder)
    package = folder / "packages" / "dadl_ext"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for part in (ROOT / "dadl_ext").iterdir():
        if part.suffix != ".so":
            (package / part.name).symlink_to(part)
    (package / built.name).symlink_to(built)
    return package.parent


def pytest_arguments(packages: Path, families: Sequence[str] = OPERATORS) -> list[str]:
    """To run the families' tests with the package in a folder in place of the installed one."""
    files = [str(ROOT / "tests" / "ext" / f"test_{family}.py") for family in families]
    places = f"pythonpath={packages} . tests"
    return ["-x", "--tb=short", "-p", "no:cacheprovider", "-o", places, "-k", LEFT_OUT, *files]
