"""CMW-Net's recipe with small settings, and a small network for it."""

from pathlib import Path
from typing import Any

from dadl.cmw_net.recipe import CMWNetRecipe
from torch import nn


def small_network(depth: int = 32, channels: int = 1) -> nn.Sequential:
    layers = [nn.AdaptiveAvgPool2d(12), nn.Flatten(), nn.Linear(channels * 144, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers)


def recipe_of(folder: Path, **settings: Any) -> CMWNetRecipe:
    defaults = {"epochs": 2, "batch_size": 20, "lr": 0.05, "flip": False}
    return CMWNetRecipe(data=folder, **(defaults | settings))
