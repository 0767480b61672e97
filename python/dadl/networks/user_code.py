"""Callables in modules of the user's own."""

import pkgutil
from collections.abc import Callable
from typing import Any

from ..errors import SettingsError


def find_callable(option: str, name: str) -> Callable[[], Any]:
    """The callable that an option names as ``module:callable``; raises a :class:`.SettingsError` if there is none."""
    try:
        found: Callable[[], Any] = pkgutil.resolve_name(name)
    except Exception as error:  # importing a user's module may raise anything
        raise SettingsError(
            f"{option} {name!r} cannot be used ({error}); expected module:callable, with the "
            "module's folder on PYTHONPATH"
        ) from None
    return found
