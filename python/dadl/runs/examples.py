"""A picture of test images with what was predicted for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6
RIGHT, WRONG = "#0072B2", "#D55E00"


def draw_examples(images: Tensor, captions: Sequence[str], right: Sequence[bool]) -> "Figure":
    """Images ``[N, C, H, W]``, uint8, with a caption under each, in another colour where the prediction is wrong."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(6.4, 1.25 * rows), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for cell in cells:
        cell.set_axis_off()
    for cell, image, caption, good in zip(cells, images, captions, right, strict=False):
        grey = image.shape[0] == 1
        cell.imshow(image[0] if grey else image.permute(1, 2, 0), cmap="gray" if grey else None, vmin=0, vmax=255)
        cell.set_title(caption, fontsize=7, y=-0.02, va="top", color=RIGHT if good else WRONG)
    return figure
