"""The one list of methods: their recipes, and the commands of ``dadl train`` and ``dadl compare``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from .checks import check, short_repr
from .chi_model.recipe import ChiModelRecipe
from .cmw_net.recipe import CMWNetRecipe
from .comparison.results import Comparison
from .comparison.study import CompareOptions, Study
from .documents import parse_yaml, read_yaml
from .errors import SettingsError
from .networks.user_code import refuse_code, user_code
from .options import Flag
from .ranksim.recipe import RankSimRecipe
from .runs.evaluate import TrainedRun
from .runs.folder import CONFIG, RUN, check_unchanged, read_run
from .runs.recipe import Recipe, typed_settings
from .runs.train import RunOptions, train_run
from .self_tuning.recipe import SelfTuningRecipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = "arms.yaml"

RECIPES: tuple[type[Recipe], ...] = (RankSimRecipe, SelfTuningRecipe, ChiModelRecipe, CMWNetRecipe)


def make_recipe(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of that name, with settings as in ``config.yaml``; they pass the checks of the command line's."""
    kind = _kind(name)
    required = [field.name for field in fields(kind) if field.default is MISSING and field.name not in settings]
    if required:
        raise SettingsError(f"{name} needs the setting {required[0]}")
    return kind(**typed_settings(kind, settings))


def open_run(folder: Path, data: Any = None, *, trust_code: bool = False) -> TrainedRun:
    """The run in that folder; ``data``, if given, replaces its own. It may be a frame, see :func:`.as_path`.

    A folder of someone else's may name code, as its ``backbone`` or ``augment``: it is executed only with
    ``trust_code``. Raises a :class:`.SettingsError` if the folder is not one of a run, was changed, or names code.
    """
    name, settings, facts = read_run(folder)
    kind = _kind(name)
    try:
        recipe = make_recipe(name, settings)
    except SettingsError as error:
        raise SettingsError(f"{folder / CONFIG}: {error}") from None
    if not trust_code:
        refuse_code(user_code(settings), folder / CONFIG)
    check(facts, kind.facts_kind, f"{folder / RUN}: facts")
    check_unchanged(folder)
    recipe = recipe if data is None else replace(recipe, data=data)
    return TrainedRun(folder, recipe.as_trained(facts), facts)


def pictures(name: str, run: Path) -> Sequence[tuple[str, "Figure"]]:
    """What a recipe shows of a run beyond its scores: titles and figures."""
    return _kind(name).pictures(run)


def _kind(name: str) -> type[Recipe]:
    kind = next((kind for kind in RECIPES if kind.name == name), None)
    if kind is None:
        names = ", ".join(kind.name for kind in RECIPES)
        raise SettingsError(f"there is no recipe {short_repr(name)}; the recipes are {names}")
    return kind


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


compare_app = App(
    name="compare",
    help="Compare ways to train on your own data: choose the settings of each on validation, with as many trials for "
    "each, then train and test each with several seeds, and say which differences are more than chance.",
)


def default_arms(kind: type[Recipe]) -> str:
    """The ``arms.yaml`` that comes with a recipe."""
    return (files(kind.__module__.rpartition(".")[0]) / ARMS).read_text(encoding="utf-8")


def compare(
    recipe: Recipe | str,
    arms: Mapping[str, Any] | Path | str | None = None,
    *,
    console: Console | None = None,
    **settings: Any,
) -> Comparison:
    """Compare ways to train a recipe, as ``dadl compare`` does, and return the results.

    >>> comparison = dadl.compare("ranksim", data="houses.csv", target="price", features="*", seeds=5)

    Args:
        recipe: the recipe that all arms share, or its name.
        arms: a mapping as in an ``arms.yaml``, or the path of such a file; without one the recipe's own.
        console: where to show progress; by default the standard output.
        settings: of :class:`.CompareOptions` and of the recipe.

    Raises:
        UserError: everything that is wrong with settings, arms, data or the folder, before anything is trained.
    """
    from .report.page import write_figure, write_page  # slow to import, and not to be missing at the end

    names = {field.name for field in fields(CompareOptions)}
    options = CompareOptions(**{name: value for name, value in settings.items() if name in names})
    settings = {name: value for name, value in settings.items() if name not in names}
    if isinstance(recipe, str):
        recipe = make_recipe(recipe, settings)
    elif settings:
        recipe = replace(recipe, **typed_settings(type(recipe), settings))
    plain: Mapping[str, Any]
    trusted = options.trust_code
    if arms is None:
        plain, source, trusted = parse_yaml(default_arms(type(recipe))), ARMS, True
    elif isinstance(arms, Mapping):
        plain, source, trusted = arms, "arms", True
    else:
        plain, source = read_yaml(Path(arms)), str(arms)
    study = Study(recipe, plain, replace(options, trust_code=trusted), source)
    console = Console() if console is None else console
    comparison = study.run(console)
    write_page(comparison, comparison.folder / "report.html", pictures)
    write_figure(comparison, comparison.folder / "figure")
    console.print(f"Wrote {comparison.folder / 'report.html'}, to open in a browser", soft_wrap=True)
    return comparison


def _compare_command(kind: type[Recipe]) -> Callable[..., None]:
    """The command that compares arms of a recipe; its options are the recipe's settings."""

    def command(
        recipe: Recipe | None = None,
        *,
        arms: Path | None = None,
        show_arms: Flag = False,
        options: CompareOptions = CompareOptions(),  # noqa: B008 (frozen)
    ) -> None:
        if show_arms:
            print(default_arms(kind), end="")
        elif recipe is None:
            raise SettingsError(f"{kind.name} needs the setting data: name a file or folder with --data")
        else:
            compare(recipe, arms, **vars(options))

    command.__annotations__["recipe"] = Annotated[kind | None, Parameter(name="*")]
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
    app.command(_command(kind), name=kind.name)
    compare_app.command(_compare_command(kind), name=kind.name)
