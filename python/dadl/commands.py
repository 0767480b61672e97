"""The commands ``dadl train RECIPE`` and ``dadl compare RECIPE``, whose options are the recipes' settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from .comparison.options import CompareOptions
from .errors import SettingsError
from .options import Flag
from .recipes import RECIPES, default_arms, recipe_of
from .runs.settings import RunOptions, Settings

# PyTorch and all that the recipes import load in functions alone, so that the help of the commands is quick.

train_app = App(
    name="train",
    help="Train on your own data, test, and write everything to the folder of the run. Decoded images of more than 64 "
    "MiB may not fit into memory. They are kept in ~/.cache/dadl or, if XDG_CACHE_HOME is set, in its folder dadl, as "
    "files that later runs on the same images read. The files may be deleted while nothing runs.",
)

compare_app = App(
    name="compare",
    help="Compare ways to train on your own data: choose the settings of each on validation, with as many trials for "
    "each, then train and test each with several seeds, and say which differences are more than chance.",
)


def _train_command(kind: type[Settings]) -> Callable[..., None]:
    """The command that trains a recipe."""

    def command(settings: Settings, options: RunOptions = RunOptions()) -> None:  # noqa: B008 (frozen)
        from rich.console import Console

        from .runs.train import train_run

        train_run(recipe_of(settings), options, Console())

    command.__annotations__["settings"] = Annotated[kind, Parameter(name="*")]
    command.__annotations__["options"] = Annotated[RunOptions, Parameter(name="*")]
    command.__doc__ = kind.__doc__
    return command


def _compare_command(kind: type[Settings]) -> Callable[..., None]:
    """The command that compares arms of a recipe."""

    def command(
        settings: Settings | None = None,
        *,
        arms: Path | None = None,
        show_arms: Flag = False,
        options: CompareOptions = CompareOptions(),  # noqa: B008 (frozen)
    ) -> None:
        if show_arms:
            print(default_arms(kind.name), end="")
        elif settings is None:
            raise SettingsError(f"{kind.name} needs the setting data: name a file or folder with --data")
        else:
            from .api.comparing import compare_arms

            compare_arms(recipe_of(settings), arms, options)

    command.__annotations__["settings"] = Annotated[kind | None, Parameter(name="*")]
    command.__annotations__["options"] = Annotated[CompareOptions, Parameter(name="*")]
    command.__doc__ = f"""Compare ways to train. {kind.__doc__}

    Parameters
    ----------
    arms
        YAML file with the arms: names and the settings of each. [default: the recipe's own, see show-arms]
    show_arms
        Only show the recipe's own arms, to be copied and changed.
    """
    return command


for kind in RECIPES:
    train_app.command(_train_command(kind), name=kind.name)
    compare_app.command(_compare_command(kind), name=kind.name)
