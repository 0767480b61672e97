"""JSON and YAML files that people or accidents may have changed: read strictly, or refused with a sentence."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import SettingsError

MOST_BYTES = 64 << 20
MOST_LEVELS = 50  # of YAML, whose scanner takes quadratic time for deep ones


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises a :class:`.SettingsError` if it cannot be read, is not JSON (which has neither NaN nor infinity), is nested
    too deeply, names a key twice, or holds a number that is too large for 64 bits.
    """
    return _parsed(path, _load_json)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises a :class:`.SettingsError` if it cannot be read, is not YAML, holds something else than a mapping, names a key
    twice, or has tags, aliases or more than 50 levels, which settings do not need.
    """
    settings: dict[Any, Any] = _parsed(path, parse_yaml)
    return settings


def parse_yaml(text: str) -> dict[Any, Any]:
    """The mapping in YAML text; raises a ``ValueError`` where :func:`read_yaml` raises a :class:`.SettingsError`."""
    value = _load_yaml(text)
    if not isinstance(value, dict | None):
        raise ValueError(f"expected lines such as 'epochs: 30', got a {type(value).__name__}")
    return value or {}


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        return parse(content.decode("utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise SettingsError(f"{path}: cannot be read (it is nested too deeply)") from None
    except ValueError as error:
        raise SettingsError(f"{path}: cannot be read ({str(error)[:300]})") from None


def _load_json(text: str) -> Any:
    return json.loads(
        text, object_pairs_hook=_mapping, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
    )


def _load_yaml(text: str) -> Any:
    import yaml  # only commands that read settings need it

    class Loader(yaml.SafeLoader):
        level = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"line {self.line + 1}: an alias; write the value itself")
            if self.level == MOST_LEVELS:
                raise yaml.YAMLError(f"line {self.line + 1}: more than {MOST_LEVELS} levels")
            self.level += 1
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            return _mapping([tuple(self.construct_object(part, True) for part in pair) for pair in node.value])

        def construct_yaml_int(self, node: Any) -> int:
            return _of_64_bits(super().construct_yaml_int(node))

    # As in YAML 1.2, 1e-3 is a number too, and not a text.
    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _mapping(pairs: list[Any]) -> dict[Any, Any]:
    for key, _ in pairs:
        if not isinstance(key, str):
            raise ValueError(f"{key!r:.40} is no name")
    repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r:.80} is given twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.40} is too large")
    return number


def _integer(text: str) -> int:
    return _of_64_bits(int(text))


def _of_64_bits(number: int) -> int:
    if number.bit_length() > 64:
        raise ValueError(f"a number of {number.bit_length()} bits")
    return number
