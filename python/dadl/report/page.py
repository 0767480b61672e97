"""The page of ``dadl report`` and ``dadl compare``, made from the files in folders of runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from ..comparison.judgement import judge
from ..comparison.results import COMPARE, ArmRuns, Comparison, Unit
from ..errors import ProblemsError
from ..files import check_output_file, write_text
from ..output import save_figure
from ..runs.folder import RESULTS
from ..training.loop import LOG
from .arm import Arm
from .chance import difference_figure
from .curves import curve_panels
from .groups import comparison_of
from .results import Run, read_results
from .section import Section

CURVES_IN_SIGHT = 3  # the others are collapsed


Pictures = Callable[[str, Path], Sequence[tuple[str, Figure]]]
"""What a recipe, by its name, shows of a run: titles and figures."""


def write_report(folders: Sequence[Path], output: Path, pictures: Pictures | None = None) -> None:
    """Compare runs on one self-contained HTML page.

    Args:
        folders: written by ``dadl compare``, or by ``dadl train``. Runs of one recipe are compared with each other, and
            runs that differ only in the seed are one arm; the first is the reference. Unfinished runs are shown by
            their learning curves.
        output: the file to write; its folder is created if necessary.
        pictures: shown at the end, of one run of each arm.

    Raises:
        ProblemsError: no runs, a folder that is not a run or is given twice, results that cannot be read, or an
            ``output`` that is a folder; with a line for each problem. Then nothing is written.
        OutputError: the page cannot be written.
    """
    problems: list[str] = []
    if not folders:
        problems.append("no runs: name at least one folder that `dadl train` or `dadl compare` wrote")
    if output.is_dir():
        problems.append(f"{output}: is a folder; name a file for the report, such as {output / 'report.html'}")
    else:
        check_output_file(output)
    places = [folder.resolve() for folder in folders]
    for place, times in Counter(places).items():
        if times > 1:
            problems.append(f"{place}: given {times} times; name every run once")
    shared = Counter(place.name for place in places)
    sections, found = [], []
    for given, place in zip(folders, places, strict=True):
        if (given / COMPARE).exists():
            sections.append(_section(Comparison.load(given), problems, pictures))
        else:
            found.append(read_results(given, place.name if shared[place.name] == 1 else str(given), problems))
    if problems:
        raise ProblemsError(problems)
    finished = [run for run in found if run is not None and run.finished]
    unfinished = [run for run in found if run is not None and not run.finished]
    for recipe in dict.fromkeys(run.recipe for run in finished):
        comparison, runs = comparison_of(recipe, [run for run in finished if run.recipe == recipe])
        sections.append(Section(comparison, runs, {}, _pictures(comparison, pictures)))
    _write(sections, unfinished, output)


def write_page(comparison: Comparison, output: Path, pictures: Pictures | None = None) -> None:
    """Write a comparison's page, also while it is unfinished; ``pictures`` as for :func:`write_report`.

    Raises:
        ProblemsError: results of runs cannot be read; then nothing is written.
        OutputError: the page cannot be written.
    """
    problems: list[str] = []
    section = _section(comparison, problems, pictures)
    if problems:
        raise ProblemsError(problems)
    _write([section], [], output)


def write_figure(comparison: Comparison, stem: Path) -> None:
    """Write the comparison's differences with their intervals as ``stem.png`` and ``stem.svg``.

    Raises an :class:`.OutputError` if they cannot be written.
    """
    arms = [Arm(i, arm, {}) for i, arm in enumerate(comparison.arms)]
    save_figure(difference_figure(judge(comparison), arms, comparison.reference), stem)


def _section(comparison: Comparison, problems: list[str], pictures: Pictures | None) -> Section:
    runs: dict[str, dict[Unit, Run]] = {}
    unfinished: dict[str, list[Run]] = {}
    for arm in comparison.arms:
        for unit, folder in arm.runs.items():
            name = f"{arm.name}, split {unit.split}, seed {unit.seed}"
            run = read_results(folder, name, problems)
            if run is not None and run.finished:
                runs.setdefault(arm.name, {})[unit] = run
        for folder in sorted(arm.folder.glob("split-*/seed-*")):
            begun = (folder / LOG).exists() and not (folder / RESULTS).exists()
            name = f"{arm.name}, {folder.parent.name.replace('-', ' ')}, {folder.name.replace('-', ' ')}"
            if begun and (run := read_results(folder, name, problems)) is not None:
                unfinished.setdefault(arm.name, []).append(run)
    return Section(comparison, runs, unfinished, _pictures(comparison, pictures))


def _pictures(comparison: Comparison, pictures: Pictures | None) -> list[tuple[str, Figure]]:
    if pictures is None:
        return []
    first = {arm.name: run for arm in comparison.arms for run in list(arm.runs.values())[:1]}
    return [
        (f"{name}: {title}", shown) for name, run in first.items() for title, shown in pictures(comparison.recipe, run)
    ]


class _Unfinished:
    """Runs without results yet, and how far they have come."""

    def __init__(self, runs: Sequence[Run]) -> None:
        nothing: dict[str, Any] = {"settings": {}, "tuned": (), "chosen": {}, "trials": {}, "runs": {}, "scores": {}}
        self.arms = [
            Arm(i, ArmRuns(name=run.name, folder=run.folder, **nothing), {Unit(0, 0): run})
            for i, run in enumerate(runs)
        ]
        self.progress = [(run.name, [f"{run.history[-1]['epoch']:.0f}"]) for run in runs]
        self.curves = curve_panels("unfinished", self.arms, "")


def _write(sections: Sequence[Section], unfinished: Sequence[Run], output: Path) -> None:
    environment = Environment(
        loader=PackageLoader("dadl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        sections=sections,
        unfinished=_Unfinished(unfinished) if unfinished else None,
        title=_title(sections),
        curves_in_sight=CURVES_IN_SIGHT,
    )
    write_text(output, page, errors="replace")  # file names may not be valid UTF-8


def _title(sections: Sequence[Section]) -> str:
    return ", ".join(["Training runs", *(section.name for section in sections)]).replace(",", ":", 1)
