"""What users bring along in modules of their own."""

import pkgutil
from collections.abc import Callable
from typing import Any

from ..errors import SettingsError


def find_callable(option: str, name: str) -> Callable[[], Any]:
    """What the option's ``module:callable`` names; raises a :class:`.SettingsError` if there is no such thing."""
    try:
        found: Callable[[], Any] = pkgutil.resolve_name(name)
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise SettingsError(
            f"{option} {name!r} cannot be used ({error}); expected module:callable, where PYTHONPATH has "
            "the module's folder"
        ) from None
    return found
