"""Do the features order samples as their labels do? The picture of RankSim's idea."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_GROUPS = 3
MOST_GROUPS = 60  # of labels; more make cells too small to see


def label_groups(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The mean label of each label bin that occurs, ``[G]``, and the group of each sample, ``[N]``."""
    used, group = torch.unique(bins, return_inverse=True)
    if len(used) > MOST_GROUPS:
        group = group * MOST_GROUPS // len(used)
        group = torch.unique(group, return_inverse=True)[1]
    sums = torch.zeros(int(group.max()) + 1).index_add_(0, group, target.float())
    return sums / torch.bincount(group), group


def similarity_ranks(similarity: Tensor) -> Tensor:
    """The ranks within each row of a similarity matrix ``[G, G]``, from 0, the least similar, to 1."""
    return similarity.argsort(dim=1, stable=True).argsort(dim=1) / max(len(similarity) - 1, 1)


def draw_similarities(features: Tensor, target: Tensor, bins: Tensor) -> "Figure | None":
    """Ranks of the similarities of every two label bins: of their labels, and of the mean features of their samples.

    Args:
        features: of the test samples, ``[N, F]``.
        target: their labels, ``[N]``.
        bins: the number of the label bin of each, ``[N]``.
    """
    from matplotlib.figure import Figure

    labels, group = label_groups(target, bins)
    if len(labels) < LEAST_GROUPS:
        return None
    means = torch.zeros(len(labels), features.shape[1]).index_add_(0, group, features.float())
    unit = torch.nn.functional.normalize(means, dim=1)
    wanted, found = similarity_ranks(-(labels[:, None] - labels).abs()), similarity_ranks(unit @ unit.T)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    error = float((wanted - found).square().mean())
    titles = ("labels", f"features: mean squared\ndifference of ranks {error:.3f}")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, matrix, title in zip(panels, (wanted, found), titles, strict=True):
        image = axes.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=1)
        ticks = range(0, len(labels), max(len(labels) // 5, 1))
        axes.set_xticks(ticks, [f"{labels[i]:.3g}" for i in ticks])
        axes.set_yticks(ticks, [f"{labels[i]:.3g}" for i in ticks])
        axes.set_xlabel("label")
        axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, ticks=(0, 1))
    bar.ax.set_yticklabels(["least similar", "most similar"])
    return figure
