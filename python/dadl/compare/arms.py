"""The arms of a comparison: ways to train, each a name and overrides of a recipe's settings."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from ..checks import short_repr
from ..data.text import did_you_mean
from ..errors import SettingsError
from ..networks.user_code import refuse_code, user_code
from ..runs.recipe import Recipe, typed_settings

OWN = ("data", "seed", "split_seed", "criterion", "retrain_from")
"""Settings that the comparison sets itself, the same for all arms."""
THEN = "then "
MOST_NAME = 60


@dataclass(frozen=True)
class Tuned:
    """Values of a setting to choose among: a list of them, or a range on a logarithmic scale."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or the ends of the range."""
        return self.choices or (self.low, self.high)

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

    def trials(self, number: int, split: int) -> list[dict[str, Any]]:
        """Values of the tuned settings for each trial: a Latin hypercube over the space.

        A setting has the same places in all arms, so that no arm is luckier than another with, say, its learning rates.
        """

        def places(name: str) -> Any:
            draw = np.random.default_rng([zlib.crc32(name.encode()), split])
            return (draw.permutation(number) + draw.random(number)) / number

        columns = {name: [tuned.at(place) for place in places(name)] for name, tuned in self.space.items()}
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
    if reference not in listed:
        raise SettingsError(f"the reference {short_repr(reference)} is none of the arms: {', '.join(listed)}")
    return arms, reference


def plain_arms(arms: Sequence[Arm]) -> dict[str, Any]:
    """The ``arms`` of an ``arms.yaml`` with everything that is tuned in each arm."""
    return {
        arm.name: arm.stages[0].plain() | ({"then": arm.stages[1].plain()} if len(arm.stages) > 1 else {})
        for arm in arms
    }


def check_arms(arms: Sequence[Arm], base: Recipe, trials: int, splits: int, *, trust_code: bool) -> None:
    """Make every recipe that will be trained; raises a :class:`.SettingsError` that names arm and settings."""
    for arm in arms:
        if not trust_code:
            for stage in arm.stages:
                refuse_code(user_code(stage.settings), f"arm {arm.name}")
        if len(arm.stages) > 1 and "retrain_from" not in base.__dataclass_fields__:
            raise SettingsError(f"arm {arm.name}: {base.name} has no second stage; leave out then")
        for values in _tried(arm, trials, splits):
            arm.recipes(base, values, Path(arm.folder), split=0, seed=0)


def _tried(arm: Arm, trials: int, splits: int) -> Iterator[Mapping[str, Any]]:
    yield {}
    for name, tuned in arm.space.items():  # first each alone, as what is wrong with one names it
        yield from ({name: value} for value in tuned.ends)
    for split in range(splits):
        yield from arm.trials(trials, split)


def _arm(name: str, plain: Any, kind: type[Recipe] | None, shared: Mapping[str, Tuned]) -> Arm:
    if len(name) > MOST_NAME:
        raise SettingsError(f"arm {short_repr(name)} has a name of more than {MOST_NAME} characters")
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
    if not all(_is_number(end) for end in (low, high)) or not 0 < low < high:
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
