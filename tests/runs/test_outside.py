"""Images out of the folder of the file that names them are read only if a run's settings say so."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.data.image_lists import read_image_names
from dadl.errors import ProblemsError
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.recipes import make_recipe
from dadl.runs.recipe import Recipe
from dadl.runs.train import settings_of
from dadl.self_tuning.recipe import SelfTuningRecipe
from PIL import Image
from rich.console import Console
from torch import nn


def colour_network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def recipes(folder: Path, **settings: Any) -> list[Recipe]:
    lists = {"data": folder, "labels": 50, "image_size": 32, **settings}
    network = f"{__name__}:colour_network"
    table = {"data": folder / "table.csv", "target": "y", "image": "photo", "split": "split", "image_size": 32}
    return [
        SelfTuningRecipe(**lists),
        ChiModelRecipe(**lists),
        CMWNetRecipe(data=folder, method="ce", image_size=32, **settings),
        RankSimRecipe(**table, backbone=network, **settings),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lists and a table in a folder beside the one with the images."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    for name in ("train.txt", "test.txt", "train_50.txt", "train_100.txt"):
        (tmp_path / "lists" / name).write_text("".join(f"../images/{i}.png {i % 2}\n" for i in range(8)))
    (tmp_path / "lists" / "names.txt").write_text("../images/3.png\n")
    rows = [f"..\\images\\{i}.png,{i},{('train', 'val', 'test')[i // 3]}\n" for i in range(8)]
    (tmp_path / "lists" / "table.csv").write_text("photo,y,split\n" + "".join(rows))
    return tmp_path / "lists"


@pytest.mark.parametrize("number", range(4))
def test_images_outside_are_read_if_the_settings_say_so(folder: Path, number: int) -> None:
    progress = JobProgress(Console(quiet=True))
    with pytest.raises(ProblemsError, match=r"\.\./images/0\.png leads out of .*lists; .* allow it with --outside"):
        recipes(folder)[number].read(progress)
    recipe = recipes(folder, outside=True)[number]
    assert sum(recipe.read(progress).sizes.values()) >= 8
    settings = settings_of(recipe)
    assert settings["outside"] is True
    assert make_recipe(recipe.name, settings).outside is True  # type: ignore[attr-defined]


def test_unseen_images_too(folder: Path) -> None:
    progress, facts = JobProgress(Console(quiet=True)), {"image_shape": [3, 8, 8]}
    for number in range(3):
        with pytest.raises(ProblemsError, match="leads out of"):
            recipes(folder)[number].read_unseen(folder / "names.txt", facts, progress)
        unseen = recipes(folder, outside=True)[number].read_unseen(folder / "names.txt", facts, progress)
        assert unseen.names == [row.path for row in read_image_names(folder / "names.txt", outside=True)]
