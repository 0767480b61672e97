"""Values from files and from Python code pass the checks that the command line makes of its options."""

import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from cyclopts import Parameter, validators

from .errors import SettingsError

LARGEST = sys.float_info.max

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60

_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}


def short_repr(value: Any) -> str:
    """A short representation of any value."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a huge number"


def check(value: Any, hint: Any, name: str) -> None:
    """Raise a :class:`.SettingsError` if ``value`` is not of the type ``hint`` or a validator of it objects.

    Types are those of settings and of facts about data: numbers, text, paths, ``Literal``, optional values, tuples,
    lists (which JSON also has in place of tuples), mappings and ``TypedDict``; numbers must be finite. Validators are
    those of ``cyclopts.Parameter``, except whether a path exists, which may change.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check(value, arguments[0], name)
        try:
            for validator in _validators(arguments[1:]):
                validator(arguments[0], value)
        except ValueError as error:
            raise SettingsError(f"{name} is {short_repr(value)}. {error}") from None
    elif origin in (Union, types.UnionType):
        if value is not None or type(None) not in arguments:
            (kind,) = (argument for argument in arguments if argument is not type(None))
            check(value, kind, name)
    elif origin is Literal:
        _expect(isinstance(value, str) and value in arguments, value, name, f"one of {', '.join(arguments)}")
    elif is_typeddict(hint):
        _expect(isinstance(value, Mapping), value, name, "a mapping")
        hints = get_type_hints(hint, include_extras=True)
        if missing := sorted(hint.__required_keys__ - value.keys()):
            raise SettingsError(f"{name} has no {missing[0]}")
        for key in hints.keys() & value.keys():
            check(value[key], hints[key], f"{name}, {key}")
    elif origin in (tuple, list):
        _expect(isinstance(value, tuple | list), value, name, "a list")
        kinds = arguments * len(value) if origin is list else arguments
        if origin is tuple and arguments[-1] is Ellipsis:
            kinds = arguments[:1] * len(value)
        _expect(len(kinds) == len(value), value, name, f"{len(kinds)} values")
        for part, kind in zip(value, kinds, strict=True):
            check(part, kind, name)
    elif origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, Mapping), value, name, "a mapping")
        for key, part in value.items():
            _expect(isinstance(key, str), key, name, "names")
            check(part, arguments[1], f"{name}, {short_repr(key)}")
    elif hint in (int, float):
        right = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        _expect(right and abs(value) < LARGEST, value, name, _NAMES[hint])
    elif hint in _NAMES:
        _expect(isinstance(value, hint), value, name, _NAMES[hint])
        if isinstance(value, Path):
            _expect("\0" not in str(value), value, name, "a path without a zero byte")


def check_fields(settings: Any) -> None:
    """:func:`check` every field of a dataclass object."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        check(getattr(settings, field.name), hints[field.name], field.name.replace("_", "-"))


def _expect(right: bool, value: Any, name: str, expected: str) -> None:
    if not right:
        raise SettingsError(f"{name} is {short_repr(value)}; expected {expected}")


def _validators(metadata: Sequence[Any]) -> Iterable[Callable[[Any, Any], Any]]:
    for parameter in metadata:
        if isinstance(parameter, Parameter):
            given = parameter.validator
            for validator in given if isinstance(given, tuple | list) else (given,):
                if validator is not None and not isinstance(validator, validators.Path):
                    yield validator
