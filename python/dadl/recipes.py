"""The one list of methods: their recipes, and the commands of ``dadl train``."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from cyclopts import App, Parameter

from .checks import short_repr
from .chi_model.settings import ChiModelSettings
from .cmw_net.settings import CMWNetSettings
from .errors import SettingsError
from .ranksim.settings import RankSimSettings
from .runs.settings import RunOptions, Settings
from .self_tuning.settings import SelfTuningSettings

# PyTorch and all that the recipes import load in functions alone: the help of the commands needs only settings.
if TYPE_CHECKING:
    from .runs.recipe import Recipe

RECIPES: tuple[type[Settings], ...] = (RankSimSettings, SelfTuningSettings, ChiModelSettings, CMWNetSettings)


def make_recipe(name: str, settings: Mapping[str, Any]) -> "Recipe":
    """The recipe of that name, with settings as in ``config.yaml``; they pass the checks of the command line's."""
    kind = _settings_kind(name)
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := [key for key in settings if key not in known]:
        raise SettingsError(f"{name} has no setting {short_repr(unknown[0])}")
    required = [key for key, field in known.items() if field.default is MISSING and key not in settings]
    if required:
        raise SettingsError(f"{name} needs the setting {required[0]}")

    def value(key: str) -> Any:
        plain, types = settings[key], (hints[key], *get_args(hints[key]))
        if Path in types and isinstance(plain, str):
            return Path(plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return _recipe_kind(kind)(**{key: value(key) for key in settings})


def _settings_kind(name: str) -> type[Settings]:
    kind = next((kind for kind in RECIPES if kind.name == name), None)
    if kind is None:
        names = ", ".join(kind.name for kind in RECIPES)
        raise SettingsError(f"there is no recipe {short_repr(name)}; the recipes are {names}")
    return kind


def _recipe_kind(kind: type[Settings]) -> "type[Recipe]":
    """The recipe with these settings."""
    recipe: type[Recipe] = pkgutil.resolve_name(kind.recipe)
    return recipe


app = App(
    name="train",
    help="Train on your own data, test, and write everything to the folder of the run. Decoded images of more than 64 "
    "MiB may not fit into memory. They are kept in ~/.cache/dadl or, if XDG_CACHE_HOME is set, in its folder dadl, as "
    "files that later runs on the same images read. The files may be deleted while nothing runs.",
)


def _command(kind: type[Settings]) -> Callable[..., None]:
    """The command that trains a recipe; its options are the recipe's settings."""

    def command(settings: Settings, options: RunOptions = RunOptions()) -> None:  # noqa: B008 (frozen)
        from rich.console import Console

        from .runs.train import train_run

        given = {field.name: getattr(settings, field.name) for field in fields(settings)}
        train_run(_recipe_kind(kind)(**given), options, Console())

    command.__annotations__["settings"] = Annotated[kind, Parameter(name="*")]
    command.__annotations__["options"] = Annotated[RunOptions, Parameter(name="*")]
    command.__doc__ = kind.__doc__
    return command


for kind in RECIPES:
    app.command(_command(kind), name=kind.name)
