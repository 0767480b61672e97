"""``dadl demo``: data that come with Python packages, and the ``dadl compare`` command on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..output import JobProgress
from .characters import STROKES, write_characters
from .data import HERE, DemoData
from .melting_points import TABLE, write_melting_points
from .sprites import write_sprites

KANJIVG = "Characters: KanjiVG, © Ulrich Apel, CC BY-SA 3.0, https://kanjivg.tagaini.net"
QUICK = {"epochs": 2, "trials": 1, "seeds": 1, "splits": 1}
"""Options of a quick demo, whose numbers mean nothing."""


@dataclass(frozen=True)
class Demo:
    """A recipe, its data, and whom they are from; ``settings.yaml`` and ``arms.yaml`` are in the demo's folder."""

    recipe: str
    data: DemoData | Path
    source: str


DEMOS: Mapping[str, Demo] = {
    "ranksim": Demo(
        "ranksim",
        DemoData(write_melting_points, 20, ("chemicals", "rdkit"), TABLE),
        "Melting points: Jean-Claude Bradley Open Melting Point Dataset (2014), from the package chemicals",
    ),
    "strokes": Demo("ranksim", DemoData(write_characters, 12, ("kanjivg", "resvg-py"), STROKES), KANJIVG),
    "self-tuning": Demo("self-tuning", DemoData(write_characters, 12, ("kanjivg", "resvg-py")), KANJIVG),
    "chi-model": Demo(
        "chi-model",
        DemoData(write_sprites, 20, ("scikit-learn",)),
        "Photographs: china.jpg © danielbuechele, flower.jpg © vultilion, CC BY 2.0, from scikit-learn",
    ),
    "cmw-net": Demo(
        "cmw-net", HERE / "fashion-mnist", "Images: Fashion-MNIST, © Zalando SE, MIT licence, a part of them"
    ),
}


def demo_command(
    name: str, options: Mapping[str, object], *, quick: bool, output: Path, progress: JobProgress
) -> list[str]:
    """Prepare the data of a demo; returns the arguments of ``dadl`` that compare the demo's arms on them.

    ``options`` replace those of the demo's settings; ``None`` stands for no option.
    """
    demo = DEMOS[name]
    data = demo.data if isinstance(demo.data, Path) else demo.data.prepare(quick, progress)
    given: dict[str, object] = {"data": data, "output": output, **(QUICK if quick else {})}
    given |= {option: value for option, value in options.items() if value is not None}
    files = {"config": HERE / name / "settings.yaml", "arms": HERE / name / "arms.yaml"}
    named = [part for option, value in {**files, **given}.items() for part in (f"--{option}", str(value))]
    return ["compare", demo.recipe, *named]
