"""The one list of methods: their recipes, and the commands of ``dadl train``."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import App, Parameter
from rich.console import Console

from .chi_model.recipe import ChiModelRecipe
from .cmw_net.recipe import CMWNetRecipe
from .data.columns.arrow import as_path
from .errors import SettingsError
from .ranksim.recipe import RankSimRecipe
from .runs.evaluate import TrainedRun
from .runs.folder import read_run
from .runs.recipe import Recipe
from .runs.train import RunOptions, train_run
from .self_tuning.recipe import SelfTuningRecipe

RECIPES: tuple[type[Recipe], ...] = (RankSimRecipe, SelfTuningRecipe, ChiModelRecipe, CMWNetRecipe)


def make_recipe(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of that name, with settings as in ``config.yaml``."""
    kind = next((kind for kind in RECIPES if kind.name == name), None)
    if kind is None:
        raise SettingsError(f"there is no recipe {name!r}; the recipes are {', '.join(kind.name for kind in RECIPES)}")
    hints = get_type_hints(kind)
    unknown = [key for key in settings if key not in {field.name for field in fields(kind)}]
    if unknown:
        raise SettingsError(f"{name} has no setting {unknown[0]!r}")

    def value(key: str) -> Any:
        plain = settings[key]
        if Path in (hints[key], *get_args(hints[key])):
            return as_path(plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return kind(**{key: value(key) for key in settings})


def open_run(folder: Path, data: Any = None) -> TrainedRun:
    """The run in that folder; ``data``, if given, replaces its own. It may be a frame, see :func:`.as_path`."""
    name, settings, facts = read_run(folder)
    recipe = make_recipe(name, settings | ({} if data is None else {"data": data}))
    return TrainedRun(folder, recipe.as_trained(facts), facts)


app = App(
    name="train",
    help="Train on your own data, test, and write everything to the folder of the run. Decoded images of more than 64 "
    "MiB may not fit into memory. They are kept in ~/.cache/dadl or, if XDG_CACHE_HOME is set, in its folder dadl, as "
    "files that later runs on the same images read. The files may be deleted while nothing runs.",
)


def _command(kind: type[Recipe]) -> Callable[..., None]:
    """The command that trains a recipe; its options are the recipe's settings."""

    def command(recipe: Recipe, options: RunOptions = RunOptions()) -> None:  # noqa: B008 (frozen)
        train_run(recipe, options, Console())

    command.__annotations__["recipe"] = Annotated[kind, Parameter(name="*")]
    command.__annotations__["options"] = Annotated[RunOptions, Parameter(name="*")]
    command.__doc__ = kind.__doc__
    return command


for kind in RECIPES:
    app.command(_command(kind), name=kind.name)
