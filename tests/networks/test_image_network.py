"""``--network`` and ``--backbone``: the same words and the same networks in every recipe on images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.errors import SettingsError
from dadl.networks.image_network import image_network
from dadl.networks.small_cnn import SmallCNN
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning.recipe import SelfTuningRecipe
from rich.console import Console
from support.folders import image_folder

QUIET = Console(quiet=True)


def seven_features() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def recipes(folder: Path, **settings: Any) -> dict[str, Recipe]:
    """Each recipe on two classes of images; for the regressions they are the values 0 and 1."""
    image_folder(folder)
    rows = [f"{i % 2},{i}.png,{'test' if i > 11 else 'val' if i > 8 else 'train'}\n" for i in range(16)]
    (folder / "ages.csv").write_text("age,path,split\n" + "".join(rows))
    (folder / "train.txt").write_text((folder / "train_100.txt").read_text())
    common: dict[str, Any] = {"image_size": 16, "epochs": 1, "batch_size": 4} | settings
    return {
        "ranksim": RankSimRecipe(data=folder / "ages.csv", **common),
        "self-tuning": SelfTuningRecipe(data=folder, labels=30, momentum=0.5, **common),
        "chi-model": ChiModelRecipe(data=folder, labels=30, dropout=0.1, **common),
        "cmw-net": CMWNetRecipe(data=folder, method="ce", **common),
    }


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (32, 3), (33, 3), (48, 3), (64, 1)])
def test_the_small_network_takes_any_small_image(size: int, channels: int) -> None:
    images = torch.rand(2, channels, size, size)
    for positions in (False, True):
        network, features = image_network("small-cnn", None, size, channels, positions=positions)
        assert network(images).shape == (2, features)


def test_with_positions_the_features_of_the_small_network_tell_where_something_is() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 48, 48)
    image[..., 4:12, 28:36] = 1
    network = SmallCNN(48, 1, positions=True).eval()
    with torch.no_grad():
        cells = (network(image) - network(torch.zeros_like(image))).view(-1, 6, 6).norm(dim=0)
    row, column = divmod(int(cells.argmax()), 6)
    assert row in (0, 1)
    assert column in (3, 4)


def test_the_small_network_refuses_images_that_it_would_pool_away(tmp_path: Path) -> None:
    recipe = CMWNetRecipe(data=image_folder(tmp_path / "data"), network="small-cnn", image_size=12, method="ce")
    (recipe.data / "train.txt").write_text((recipe.data / "train_100.txt").read_text())
    with pytest.raises(SettingsError, match=r"network small-cnn: .* at least 16 pixels, got 12"):
        recipe.read(JobProgress(QUIET))


@pytest.mark.parametrize("name", ["ranksim", "self-tuning", "chi-model", "cmw-net"])
@pytest.mark.parametrize("own", [False, True])
def test_every_recipe_trains_a_network_from_scratch(name: str, own: bool, tmp_path: Path) -> None:
    network = {"backbone": f"{__name__}:seven_features"} if own else {"network": "small-cnn"}
    recipe = recipes(tmp_path / "data", **network)[name]
    output = tmp_path / "run"
    table = train_run(recipe, RunOptions(output=output, device="cpu"), QUIET)
    assert Run.load(output, trust_code=True).evaluate(device="cpu", progress=False) == table
    if own:
        with pytest.raises(SettingsError, match="seven_features"):
            Run.load(output)


def test_a_network_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="network small-cnn is for images, but there are none"):
        RankSimRecipe(data=tmp_path / "data.csv", target="y", features=("x",), network="small-cnn")
