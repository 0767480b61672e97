"""The simulator, compiled for the flavour of this process."""

from types import ModuleType

import pytest
from simulator import build
from simulator.helpers import FLAVOUR


@pytest.fixture(scope="session")
def simulator() -> ModuleType:
    return build.load(FLAVOUR)
