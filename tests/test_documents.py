"""What the readers of JSON and YAML refuse, and how they say so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dadl.documents import MOST_LEVELS, read_json, read_yaml
from dadl.errors import SettingsError


def nested(levels: int) -> str:
    """A mapping that holds lists, of so many levels in all."""
    return "a: " + "[" * (levels - 2) + "3" + "]" * (levels - 2)


YAML = [
    (nested(MOST_LEVELS + 1), f"line 1: more than {MOST_LEVELS} levels"),
    ("[" * 20_000, f"line 1: more than {MOST_LEVELS} levels"),
    ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
    ("a: &x 1\nb: *x\n", "line 2: an alias; write the value itself"),
    ("a: !!python/name:os.system\n", "could not determine a constructor"),
    ("a: 0x" + "f" * 17, "a number of 68 bits"),
    ("3: a\n", "3 is no name"),
    ("- 1\n", "expected lines such as 'epochs: 30', got a list"),
]
JSON = [
    ("[" * 100_000, "it is nested too deeply"),
    ('{"a": 1, "a": 2}', "'a' is given twice"),
    ("[NaN]", "NaN is not JSON"),
    ("[1e400]", "1e400 is too large"),
    (f"[{2**64}]", "a number of 65 bits"),
    ("{", "Expecting property name"),
]


@pytest.mark.parametrize(
    ("read", "text", "reason"), [*((read_yaml, *case) for case in YAML), *((read_json, *case) for case in JSON)]
)
def test_what_is_refused(read: Callable[[Path], Any], text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: cannot be read (")
    assert reason in str(error.value)


def test_yaml_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{nested(MOST_LEVELS)}\nb: 1e-3\nc: {{d: [x, {2**63}]}}\n")
    settings = read_yaml(path)
    assert settings.keys() == {"a", "b", "c"}
    assert settings["b"] == 0.001
    assert settings["c"] == {"d": ["x", 2**63]}
    path.write_text("")
    assert read_yaml(path) == {}
