"""The recipes of ``dadl train``, and its commands."""

from collections.abc import Callable
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from .chi_model.recipe import ChiModelRecipe
from .cmw_net.recipe import CMWNetRecipe
from .ranksim.recipe import RankSimRecipe
from .runs.recipe import Recipe
from .runs.train import RunOptions, train_run
from .self_tuning.recipe import SelfTuningRecipe

RECIPES: tuple[type[Recipe], ...] = (RankSimRecipe, SelfTuningRecipe, ChiModelRecipe, CMWNetRecipe)

app = App(
    name="train",
    help="Train on your own data; test, and write everything to the folder of the run. Decoded images of more than 64 "
    "MiB, which may be more than the memory holds, are kept in ~/.cache/dadl or, if XDG_CACHE_HOME is set, its folder "
    "dadl, as files that later runs on the same images read; while none runs they may be deleted.",
)


def _command(kind: type[Recipe]) -> Callable[..., None]:
    """What trains a recipe, with its settings for options."""

    def command(recipe: Recipe, options: RunOptions = RunOptions()) -> None:  # noqa: B008 (frozen)
        train_run(recipe, options, Console())

    command.__annotations__["recipe"] = Annotated[kind, Parameter(name="*")]
    command.__annotations__["options"] = Annotated[RunOptions, Parameter(name="*")]
    command.__doc__ = kind.__doc__
    return command


for kind in RECIPES:
    app.command(_command(kind), name=kind.name)
