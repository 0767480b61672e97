"""Comparison of ways to train, from Python."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..comparison.options import CompareOptions
from ..comparison.results import Comparison
from ..comparison.study import Study
from ..documents import parse_yaml, read_yaml
from ..recipes import ARMS, default_arms, make_recipe, pictures
from ..report.page import write_figure, write_page
from ..runs.recipe import Recipe


def compare(
    recipe: str,
    arms: Mapping[str, Any] | Path | str | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Compare ways to train a recipe, as ``dadl compare`` does, and return the results.

    >>> comparison = dadl.compare("ranksim", data="houses.csv", target="price", features=["*"], seeds=5)

    Args:
        recipe: ``"ranksim"``, ``"self-tuning"``, ``"chi-model"`` or ``"cmw-net"``.
        arms: a mapping as in an ``arms.yaml``, or the path of such a file; without one the recipe's own.
        progress: show progress and results on the console.
        settings: of :class:`.CompareOptions` and of the recipe, as for :func:`dadl.train`.

    Raises:
        UserError: everything that is wrong with settings, arms, data or the folder, before anything is trained.
    """
    names = {field.name for field in fields(CompareOptions)}
    options = CompareOptions(**{name: value for name, value in settings.items() if name in names})
    made = make_recipe(recipe, {name: value for name, value in settings.items() if name not in names})
    return compare_arms(made, arms, options, Console(quiet=not progress))


def compare_arms(
    recipe: Recipe,
    arms: Mapping[str, Any] | Path | str | None,
    options: CompareOptions,
    console: Console | None = None,
) -> Comparison:
    """Compare arms of a recipe, and write results, page and figure to the folder of the comparison."""
    plain: Mapping[str, Any]
    trusted = options.trust_code
    if arms is None:
        plain, source, trusted = parse_yaml(default_arms(recipe.name)), ARMS, True
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
