"""The arms of a comparison: ways to train, each a name and overrides of a recipe's settings."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from ..checks import LARGEST, short_repr
from ..data.text import did_you_mean
from ..errors import SettingsError
from ..networks.user_code import refuse_code, user_code
from ..runs.recipe import Recipe
from ..runs.settings import typed_settings

OWN = ("data", "seed", "split_seed", "criterion", "retrain_from")
"""Settings that the comparison sets itself, the same for all arms."""
THEN = "then "
MOST_NAME = 60
RELATIVE = re.compile(r"\d+\.?\d*([eE][-+]?\d+)?x", re.ASCII)

Scales = Mapping[str, Mapping[str, float]]
"""``scales[setting]["0.1x"]`` is the value that such a text stands for, see :meth:`.Recipe.relative_values`."""


@dataclass(frozen=True)
class Tuned:
    """Values of a setting to choose among: a list of them, or a range on a logarithmic scale.

    A text such as ``0.1x`` is relative to what the recipe says of the setting for these data.
    """

    choices: tuple[Any, ...] = ()
    low: Any = 0.0
    high: Any = 0.0

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or the ends of the range."""
        return self.choices or (self.low, self.high)

    @property
    def factors(self) -> dict[str, float]:
        """The relative values, and of how many times something they speak."""
        return {value: float(value[:-1]) for value in self.ends if _is_relative(value)}

    def scaled(self, scale: Mapping[str, float]) -> "Tuned":
        """With values in place of what is relative."""
        scaled = lambda value: scale.get(value, value) if _is_relative(value) else value
        return Tuned(tuple(map(scaled, self.choices)), scaled(self.low), scaled(self.high))

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.choices:
            return self.choices[int(place * len(self.choices))]
        value = float(f"{self.low * (self.high / self.low) ** place:.4g}")
        return round(value) if isinstance(self.low, int) else value

    def plain(self) -> Any:
        return list(self.choices) if self.choices else {"from": self.low, "to": self.high}


@dataclass(frozen=True)
class Stage:
    """One training of an arm: settings, and those that are tuned."""

    settings: Mapping[str, Any]
    tune: Mapping[str, Tuned]

    def plain(self) -> dict[str, Any]:
        tune = {"tune": {name: tuned.plain() for name, tuned in self.tune.items()}} if self.tune else {}
        return {**self.settings, **tune}


@dataclass(frozen=True)
class Arm:
    """A way to train, in one stage or in two, the second of which has the first one's folder as ``retrain_from``."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.casefold()).split())

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides, those of a second stage under ``then``."""
        first, *others = (dict(stage.settings) for stage in self.stages)
        return first | ({"then": others[0]} if others else {})

    @property
    def space(self) -> dict[str, Tuned]:
        """What is tuned; the names of a second stage begin with ``then``."""
        prefixes = ("", THEN)
        return {
            prefix + name: tuned
            for prefix, stage in zip(prefixes, self.stages, strict=False)
            for name, tuned in stage.tune.items()
        }

    def last_settings(self, base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the last stage as plain values, where ``base`` are those of all arms."""
        stage, prefix = self.stages[-1], THEN if len(self.stages) > 1 else ""
        chosen = {name: values[prefix + name] for name in stage.tune if prefix + name in values}
        return {**base, **stage.settings, **chosen}

    def trials(self, number: int, split: int, scales: Scales) -> list[dict[str, Any]]:
        """Values of the tuned settings for each trial: a Latin hypercube over the space.

        A setting has the same places in all arms, so that no arm is luckier than another with, say, its learning rates.
        """

        def places(name: str) -> Any:
            draw = np.random.default_rng([zlib.crc32(name.encode()), split])
            return (draw.permutation(number) + draw.random(number)) / number

        space = {name: tuned.scaled(scales.get(name.removeprefix(THEN), {})) for name, tuned in self.space.items()}
        columns = {name: [tuned.at(place) for place in places(name)] for name, tuned in space.items()}
        return [{name: values[i] for name, values in columns.items()} for i in range(number if columns else 0)]

    def recipes(
        self, base: Recipe, values: Mapping[str, Any], folder: Path, *, split: int, seed: int
    ) -> list[tuple[Recipe, Path]]:
        """The recipe and the folder of each stage; raises a :class:`.SettingsError` that names the arm."""
        folders = [folder / "first", folder][-len(self.stages) :]
        found = []
        try:
            for number, (stage, place) in enumerate(zip(self.stages, folders, strict=True)):
                prefix = THEN if number else ""
                chosen = {name: values[prefix + name] for name in stage.tune if prefix + name in values}
                settings = typed_settings(type(base), {**stage.settings, **chosen})
                if number:
                    settings["retrain_from"] = folders[0]
                found.append((replace(base, **settings, split_seed=split, seed=seed), place))
        except SettingsError as error:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            raise SettingsError(f"arm {self.name}{f' with {shown}' if shown else ''}: {error}") from None
        return found


def read_arms(
    plain: Mapping[str, Any], kind: type[Recipe] | None = None, given: Sequence[str] = ()
) -> tuple[list[Arm], str]:
    """The arms of a mapping as in ``arms.yaml``, and the name of the reference.

    What is tuned in all arms is not tuned where it is ``given``, as a setting of all or of an arm. Names of settings
    are checked if the ``kind`` of recipe is known. Raises a :class:`.SettingsError` that names arm and setting.
    """
    if unknown := [key for key in plain if key not in ("reference", "tune", "arms")]:
        raise SettingsError(
            f"{short_repr(unknown[0])} is none of reference, tune and arms"
            f"{did_you_mean(str(unknown[0]), ('reference', 'tune', 'arms'))}"
        )
    listed = plain.get("arms")
    if not isinstance(listed, Mapping) or len(listed) < 2:
        raise SettingsError("arms must name at least two ways to train, such as 'plain: {}'")
    shared = _tuned(plain.get("tune"), kind, "tune")
    shared = {name: tuned for name, tuned in shared.items() if name not in given}
    arms = [_arm(name, settings, kind, shared) for name, settings in listed.items()]
    folders: dict[str, str] = {}
    for arm in arms:
        if not arm.folder:
            raise SettingsError(f"arm {arm.name!r} needs a name with letters or digits")
        if arm.folder in folders:
            raise SettingsError(f"arms {folders[arm.folder]!r} and {arm.name!r} would share the folder {arm.folder}")
        folders[arm.folder] = arm.name
    reference = plain.get("reference", arms[0].name)
    if reference not in [arm.name for arm in arms]:
        raise SettingsError(f"the reference {short_repr(reference)} is none of the arms: {', '.join(listed)}")
    return arms, reference


def plain_arms(arms: Sequence[Arm]) -> dict[str, Any]:
    """The ``arms`` of an ``arms.yaml`` with everything that is tuned in each arm."""
    return {
        arm.name: arm.stages[0].plain() | ({"then": arm.stages[1].plain()} if len(arm.stages) > 1 else {})
        for arm in arms
    }


def check_arms(arms: Sequence[Arm], base: Recipe, *, trust_code: bool) -> None:
    """Make a recipe with each value that is tuned; raises a :class:`.SettingsError` that names arm and setting."""
    for arm in arms:
        for stage in () if trust_code else arm.stages:
            tuned = ({name: value} for name, tuned in stage.tune.items() for value in tuned.ends)
            for settings in (stage.settings, *tuned):
                refuse_code(user_code(settings), f"arm {arm.name}")
        if len(arm.stages) > 1 and "retrain_from" not in base.__dataclass_fields__:
            raise SettingsError(f"arm {arm.name}: {base.name} has no second stage; leave out then")
        known = [(name, v) for name, tuned in arm.space.items() for v in tuned.ends if not _is_relative(v)]
        for values in ({}, *({name: value} for name, value in known)):
            arm.recipes(base, values, Path(arm.folder), split=0, seed=0)


def factors_of(arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """For each setting the relative values in any arm."""
    found: dict[str, dict[str, float]] = {}
    for arm in arms:
        for name, tuned in arm.space.items():
            if tuned.factors:
                found.setdefault(name.removeprefix(THEN), {}).update(tuned.factors)
    return found


def _arm(name: Any, plain: Any, kind: type[Recipe] | None, shared: Mapping[str, Tuned]) -> Arm:
    if not isinstance(name, str) or len(name) > MOST_NAME:
        raise SettingsError(f"arm {short_repr(name)} needs a text of at most {MOST_NAME} characters as its name")
    where = f"arm {name}"
    settings = _mapping(plain, where)
    stages = [_stage({key: value for key, value in settings.items() if key != "then"}, kind, shared, where)]
    if "then" in settings:
        stages.append(_stage(_mapping(settings["then"], f"{where}, then"), kind, shared, f"{where}, then"))
    return Arm(name, tuple(stages))


def _stage(plain: Mapping[str, Any], kind: type[Recipe] | None, shared: Mapping[str, Tuned], where: str) -> Stage:
    settings = {key: value for key, value in plain.items() if key != "tune"}
    own = _tuned(plain.get("tune"), kind, f"{where}, tune")
    for key in settings:
        _check_name(key, kind, where)
        if key in own:
            raise SettingsError(f"{where}: {key} is set and tuned; leave out one of the two")
    return Stage(settings, {name: tuned for name, tuned in {**shared, **own}.items() if name not in settings})


def _tuned(plain: Any, kind: type[Recipe] | None, where: str) -> dict[str, Tuned]:
    found = {}
    for name, values in _mapping(plain, where).items():
        _check_name(name, kind, where)
        if isinstance(values, list) and values:
            found[name] = Tuned(choices=tuple(values))
        elif isinstance(values, Mapping) and values.keys() == {"from", "to"}:
            found[name] = _range(values["from"], values["to"], name, kind, where)
        else:
            raise SettingsError(
                f"{where}: {name} is {short_repr(values)}; expected a list of values, or for numbers a range such as "
                "{from: 0.001, to: 0.1}"
            )
    return found


def _range(low: Any, high: Any, name: str, kind: type[Recipe] | None, where: str) -> Tuned:
    if (relative := Tuned(low=low, high=high)).factors:
        low_x, *high_x = relative.factors.values()
        if not high_x or not 0 < low_x < high_x[0]:
            raise SettingsError(f"{where}: {name} is from {low} to {high}; expected both relative, and 0 < from < to")
        return relative
    if not (_is_positive(low) and _is_positive(high) and low < high):
        raise SettingsError(f"{where}: {name} is from {short_repr(low)} to {short_repr(high)}; expected 0 < from < to")
    types = {int, float} if kind is None else {int, float} & set(_types(get_type_hints(kind)[name]))
    if not types:
        raise SettingsError(f"{where}: {name} is no number; expected a list of values")
    if types == {float}:
        return Tuned(low=float(low), high=float(high))
    if types == {int} and not (isinstance(low, int) and isinstance(high, int)):
        raise SettingsError(f"{where}: {name} is a whole number; expected from and to without fractions")
    return Tuned(low=low, high=high)


def _check_name(name: Any, kind: type[Recipe] | None, where: str) -> None:
    if name in OWN:
        raise SettingsError(f"{where}: {name} is the same for all arms; leave it out")
    try:
        if kind is not None:
            typed_settings(kind, {name: None})
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def _mapping(plain: Any, where: str) -> Mapping[str, Any]:
    if plain is None:
        return {}
    if not isinstance(plain, Mapping):
        raise SettingsError(f"{where} is {short_repr(plain)}; expected settings such as 'lr: 0.01'")
    return plain


def _types(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _types(argument)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _is_relative(value: Any) -> bool:
    return isinstance(value, str) and RELATIVE.fullmatch(value) is not None
