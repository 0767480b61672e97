"""Positions in images as heatmaps: points to targets, predictions to points, and the share of correct points."""

import torch
from torch import Tensor


def to_heatmaps(points: Tensor, size: int) -> Tensor:
    """Points ``[..., 2]``, (x, y) in [0, 1], as distributions ``[..., size, size]`` over the cells of a grid.

    The weight of a point is shared by the four cells whose centres surround it, so that their mean is the point. A
    point closer to the border than the first centre goes to the cells at the border.
    """
    position = (points * size - 0.5).clamp(0, size - 1)
    cells = torch.arange(size, device=points.device, dtype=points.dtype)
    columns, rows = ((1 - (position.unsqueeze(-1) - cells).abs()).clamp(min=0)).unbind(-2)
    return rows.unsqueeze(-1) * columns.unsqueeze(-2)


def from_heatmaps(heatmaps: Tensor) -> Tensor:
    """Distributions ``[..., H, W]`` to points ``[..., 2]``: the mean over the likeliest cell and its neighbours.

    Not over all cells, because the mean of two likely places may be an unlikely one.
    """
    height, width = heatmaps.shape[-2:]
    best = heatmaps.flatten(-2).argmax(dim=-1)
    rows, columns = torch.arange(height, device=best.device), torch.arange(width, device=best.device)
    near_rows = (rows - (best // width).unsqueeze(-1)).abs() <= 1
    near_columns = (columns - (best % width).unsqueeze(-1)).abs() <= 1
    near = heatmaps * (near_rows.unsqueeze(-1) & near_columns.unsqueeze(-2))
    near = near / near.sum(dim=(-2, -1), keepdim=True)
    x, y = near.sum(dim=-2) @ (columns + 0.5), near.sum(dim=-1) @ (rows + 0.5)
    return torch.stack([x / width, y / height], dim=-1)


def heatmap_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of softmaxes over all cells, logits and distributions ``[B, J, H, W]``, averaged over B and J."""
    return -(target * logits.flatten(-2).log_softmax(dim=-1).view_as(logits)).sum(dim=(-2, -1)).mean()


def pck(predicted: Tensor, target: Tensor, radius: float = 0.05) -> float:
    """Percentage of correct key points: the share, in %, of points ``[..., 2]`` within ``radius``."""
    return 100 * float(((predicted - target).norm(dim=-1) <= radius).float().mean())
