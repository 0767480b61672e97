"""The simulator, compiled for the flavour of this process."""

import gc
import os
from collections.abc import Iterator
from types import ModuleType

import hypothesis
import pytest
from simulator import build
from simulator.helpers import FLAVOUR
from simulator.host import Host

if "DADL_REMOVED_BARRIER" in os.environ:  # of tools/mutate.py, which wants a failure and not the smallest one
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutant", hypothesis.settings.get_profile("dadl"), phases=phases, report_multiple_bugs=False
    )
    hypothesis.settings.load_profile("mutant")


@pytest.fixture(scope="session")
def simulator() -> ModuleType:
    return build.load(FLAVOUR)


@pytest.fixture(scope="session")
def library() -> Host:
    return Host()


@pytest.fixture
def host(library: Host) -> Iterator[Host]:
    """As after its start, and a test must leave nothing behind."""
    gc.collect()
    library.reset()
    library.complaints()
    held = library.allocated()
    yield library
    library.assert_clean(held)
    library.reset()  # for tests that take the library itself
