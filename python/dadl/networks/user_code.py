"""Callables in modules of the user's own."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import SettingsError

TIMM = "timm:"
OPTIONS = ("backbone", "augment")
"""Settings that may name such a callable."""


def find_callable(option: str, name: str) -> Callable[[], Any]:
    """The callable that an option names as ``module:callable``; raises a :class:`.SettingsError` if there is none."""
    try:
        found: Callable[[], Any] = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        raise SettingsError(
            f"{option} {name!r} cannot be used ({error}); expected module:callable, with the "
            "module's folder on PYTHONPATH"
        ) from None
    return found


def user_code(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of the settings that name code of the user's own; timm's networks are not."""
    named = {option: settings.get(option) for option in OPTIONS}
    return {option: name for option, name in named.items() if isinstance(name, str) and not name.startswith(TIMM)}


def refuse_code(named: Mapping[str, str], source: object) -> None:
    """Raise a :class:`.SettingsError` if a file or folder names code of the user's own."""
    if named:
        shown = ", ".join(f"{option} {name}" for option, name in named.items())
        raise SettingsError(
            f"{source} names code that would be executed here: {shown}. If you trust it, say --trust-code (in Python "
            "trust_code=True)"
        )
