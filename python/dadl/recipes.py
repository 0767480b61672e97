"""The one list of methods, by their settings, and how a recipe is made of them."""

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import short_repr
from .chi_model.settings import ChiModelSettings
from .cmw_net.settings import CMWNetSettings
from .errors import SettingsError
from .ranksim.settings import RankSimSettings
from .runs.settings import Settings, typed_settings
from .self_tuning.settings import SelfTuningSettings

# PyTorch and all that the recipes import load in functions alone: the help of the commands needs only settings.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .runs.recipe import Recipe

ARMS = "arms.yaml"

RECIPES: tuple[type[Settings], ...] = (RankSimSettings, SelfTuningSettings, ChiModelSettings, CMWNetSettings)


def make_recipe(name: str, settings: Mapping[str, Any]) -> "Recipe":
    """The recipe of that name, with settings as in ``config.yaml``; they pass the checks of the command line's."""
    kind = _settings_kind(name)
    required = [field.name for field in fields(kind) if field.default is MISSING and field.name not in settings]
    if required:
        raise SettingsError(f"{name} needs the setting {required[0]}")
    return _recipe_kind(kind)(**typed_settings(kind, settings))


def recipe_of(settings: Settings) -> "Recipe":
    """The recipe with these settings."""
    return _recipe_kind(type(settings))(**{field.name: getattr(settings, field.name) for field in fields(settings)})


def default_arms(name: str) -> str:
    """The ``arms.yaml`` that comes with the recipe of that name."""
    return (files(_settings_kind(name).__module__.rpartition(".")[0]) / ARMS).read_text(encoding="utf-8")


def pictures(name: str, run: Path) -> Sequence[tuple[str, "Figure"]]:
    """What a recipe shows of a run beyond its scores: titles and figures."""
    return _recipe_kind(_settings_kind(name)).pictures(run)


def _settings_kind(name: str) -> type[Settings]:
    kind = next((kind for kind in RECIPES if kind.name == name), None)
    if kind is None:
        names = ", ".join(kind.name for kind in RECIPES)
        raise SettingsError(f"there is no recipe {short_repr(name)}; the recipes are {names}")
    return kind


def _recipe_kind(kind: type[Settings]) -> "type[Recipe]":
    recipe: type[Recipe] = pkgutil.resolve_name(kind.recipe)
    return recipe
