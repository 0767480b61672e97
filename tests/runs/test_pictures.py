"""Pictures of a recipe's own, for the page of a comparison."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.pictures import draw_weights
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.cmw_net.weight_net import CMWNet
from dadl.ranksim.pictures import MOST_GROUPS, draw_similarities, label_groups, similarity_ranks
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning.recipe import SelfTuningRecipe
from rich.console import Console
from support.folders import class_idx_folder, image_folder


def trained(recipe: Recipe, output: Path) -> Path:
    train_run(recipe, RunOptions(output=output, device="cpu"), Console(quiet=True))
    return output


def own_network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_ranks_of_features_in_the_order_of_their_labels_are_those_of_the_labels() -> None:
    angles = torch.linspace(0, 1.5, 40)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    figure: Any = draw_similarities(features, angles, torch.arange(40))
    assert "difference of ranks 0.000" in figure.axes[1].get_title()
    shuffled: Any = draw_similarities(features[torch.randperm(40)], angles, torch.arange(40))
    assert "difference of ranks 0.000" not in shuffled.axes[1].get_title()
    assert draw_similarities(features[:2], angles[:2], torch.arange(2)) is None


def test_label_groups_by_hand() -> None:
    labels, group = label_groups(torch.tensor([5.0, 1.0, 3.0, 1.0]), torch.tensor([9, 0, 4, 0]))
    assert labels.tolist() == [1, 3, 5]
    assert group.tolist() == [2, 0, 1, 0]
    labels, group = label_groups(torch.arange(500.0), torch.arange(500))
    assert len(labels) == MOST_GROUPS
    assert bool((labels.diff() > 0).all())
    ranks = similarity_ranks(torch.tensor([[3.0, 1.0, 2.0]] * 3))
    assert ranks.tolist() == [[1.0, 0.0, 0.5]] * 3


def test_the_histograms_count_right_and_wrong_labels() -> None:
    net = CMWNet(torch.tensor([30, 20, 10]), 1)
    losses, labels, wrong = torch.rand(60) * 4, torch.randint(3, (60,)), torch.arange(60) < 24
    figure: Any = draw_weights(net, losses, labels, wrong)
    right, others = (patch.get_data().values.sum() for patch in figure.axes[1].patches)
    assert (right, others) == (36, 24)
    (every,) = (patch.get_data().values.sum() for patch in draw_weights(net, losses, labels, None).axes[1].patches)
    assert every == 60


def test_every_recipe_has_a_picture(tmp_path: Path) -> None:
    lists = image_folder(tmp_path / "lists")
    small: dict[str, Any] = {"network": "small-cnn", "epochs": 1, "batch_size": 4}
    (lists / "table.csv").write_text("x,y\n" + "".join(f"{i * 37 % 60},{i * 37 % 60}\n" for i in range(200)))
    recipes: dict[str, Recipe] = {
        "similarity": RankSimRecipe(data=lists / "table.csv", target="y", features=("x",), epochs=2),
        "test images": SelfTuningRecipe(data=lists, labels=30, image_size=16, **small),
        "test images, true": ChiModelRecipe(data=lists, labels=30, image_size=16, **small),
        "learnt weights": CMWNetRecipe(
            data=class_idx_folder(tmp_path / "idx"), epochs=1, noise="flip", noise_rate=0.4, meta_per_class=5
        ),
    }
    for i, (title, recipe) in enumerate(recipes.items()):
        ((found, figure),) = type(recipe).pictures(trained(recipe, tmp_path / str(i)))
        assert found.startswith(title)
        assert figure.axes


def test_a_run_without_its_data_or_with_code_of_the_users_own_has_no_picture(tmp_path: Path) -> None:
    lists = image_folder(tmp_path / "lists")
    options: dict[str, Any] = {"labels": 30, "image_size": 16, "epochs": 1, "batch_size": 4}
    own = SelfTuningRecipe(data=lists, backbone=f"{__name__}:own_network", **options)
    assert not SelfTuningRecipe.pictures(trained(own, tmp_path / "own"))
    run = trained(SelfTuningRecipe(data=lists, network="small-cnn", **options), tmp_path / "run")
    (lists / "test.txt").unlink()
    assert not SelfTuningRecipe.pictures(run)
