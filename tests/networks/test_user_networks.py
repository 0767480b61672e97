"""``--backbone timm:NAME``, with a stand-in for timm."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.errors import SettingsError
from dadl.networks.user_networks import load_backbone
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from rich.console import Console
from support.folders import grey_idx_folder, image_folder
from torch import nn

QUIET = Console(quiet=True)


def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
    assert (pretrained, num_classes) == (False, 0)
    if name != "tiny":
        raise RuntimeError(f"Unknown model ({name})")
    return nn.Sequential(nn.Conv2d(in_chans, 7, 3), nn.BatchNorm2d(7), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = ModuleType("timm")
    stub.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", stub)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_timm(timm: None, channels: int) -> None:
    network, features = load_backbone("timm:tiny", 16, channels)
    assert features == 7
    assert network.training
    assert network(torch.rand(5, channels, 16, 16)).shape == (5, 7)


def test_a_name_that_timm_does_not_know(timm: None) -> None:
    with pytest.raises(SettingsError, match=r"backbone timm:huge failed on images .*: Unknown model \(huge\)"):
        load_backbone("timm:huge", 16)


def test_without_timm_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    data = image_folder(tmp_path / "lists")
    rows = [f"{i},{i}.png,{part}\n" for i, part in enumerate(["train", "val", "test"] * 2)]
    (data / "ages.csv").write_text("age,path,split\n" + "".join(rows))
    recipes: tuple[Recipe, ...] = (
        RankSimRecipe(data=data / "ages.csv", backbone="timm:tiny", image_size=16),
        CMWNetRecipe(data=grey_idx_folder(tmp_path / "idx"), backbone="timm:tiny"),
    )
    for recipe in recipes:
        with pytest.raises(SettingsError, match=r"timm:tiny needs timm, .*: pip install timm, or .* module:callable"):
            recipe.read(JobProgress(QUIET))


def test_a_run_on_a_network_of_timm(timm: None, tmp_path: Path) -> None:
    data, output = grey_idx_folder(tmp_path / "idx"), tmp_path / "run"
    recipe = CMWNetRecipe(data=data, method="ce", epochs=1, backbone="timm:tiny")
    table = train_run(recipe, RunOptions(output=output, device="cpu"), QUIET)
    state = torch.load(output / "last.ckpt", weights_only=True)["method"]
    assert state["network.0.0.weight"].shape == (7, 1, 3, 3)
    assert Run.load(output).evaluate(part="test", device="cpu", progress=False) == table
