"""The simulator, compiled for the flavour of this process."""

import os
from types import ModuleType

import hypothesis
import pytest
from simulator import build
from simulator.helpers import FLAVOUR

if "DADL_REMOVED_BARRIER" in os.environ:  # of tools/mutate.py, which wants a failure and not the smallest one
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutant", hypothesis.settings.get_profile("dadl"), phases=phases)
    hypothesis.settings.load_profile("mutant")


@pytest.fixture(scope="session")
def simulator() -> ModuleType:
    return build.load(FLAVOUR)
