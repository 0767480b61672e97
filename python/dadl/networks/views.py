"""Random views of image batches, as tensors on the device of the model."""

import math

import torch
from torch import Tensor, nn


def as_fractions(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], from uint8 images or floating-point ones in [0, 1]."""
    return images.float().div(255) if images.dtype == torch.uint8 else images.float()


def stored_size(size: int) -> int:
    """The size of stored images for views of ``size``: evaluation uses their middle 7/8, e.g. 224 of 256 pixels."""
    return round(size * 8 / 7)


class View(nn.Module):
    """A random view of every image in a batch; in evaluation mode the middle of the image.

    A view is a resized random crop with ``operations`` random distortions and an erased square (cutout, DeVries and
    Taylor, 2017). The distortions are rotation, shear along each axis, brightness, contrast and, for colour images,
    saturation, each of random strength, as in RandAugment (Cubuk et al., 2020). Crop and geometry are one resampling.

    Args:
        size: height and width of the view.
        crop_area: smallest fraction of the image's area in the crop, whose aspect ratio is between 3/4 and 4/3. With
            ``None`` everything stays in place, for targets that are positions: the crop is the middle, and only
            brightness, contrast and saturation are distorted.
        operations: number of different distortions of each image.
        cutout: largest side of the erased square, as a fraction of the view's.
        flip: mirror images with probability 1/2; not for characters.

    Shape:
        images ``[B, C, H, W]``, uint8 or floating point in [0, 1] → ``[B, C, size, size]``, float32 in [0, 1].
    """

    def __init__(
        self, size: int, *, crop_area: float | None, operations: int = 0, cutout: float = 0.0, flip: bool = False
    ) -> None:
        super().__init__()
        self.size, self.crop_area, self.operations, self.cutout, self.flip = size, crop_area, operations, cutout, flip

    def forward(self, images: Tensor) -> Tensor:
        images = as_fractions(images)
        if not self.training:
            return self._middle(images)
        distorted = self._draw_distortions(images)
        view = self._middle(images) if self.crop_area is None else self._warp(images, self.crop_area, *distorted[:3])
        return self._cut_out(self._recolour(view, *distorted[3:]))

    def _middle(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return images[..., top : top + self.size, left : left + self.size]

    def _draw_distortions(self, images: Tensor) -> Tensor:
        """Strengths in [-1, 1], ``[6, B]``; 0 if an image does not get the distortion."""
        kinds = slice(3 if self.crop_area is None else 0, 6 if images.shape[1] == 3 else 5)
        draws = torch.rand(kinds.stop - kinds.start, len(images), device=images.device)
        chosen = draws.argsort(dim=0).argsort(dim=0) < self.operations
        strengths = torch.zeros(6, len(images), device=images.device)
        strengths[kinds] = torch.where(chosen, torch.rand_like(draws) * 2 - 1, 0)
        return strengths

    def _warp(self, images: Tensor, crop_area: float, rotation: Tensor, shear_x: Tensor, shear_y: Tensor) -> Tensor:
        n, device = len(images), images.device
        area = torch.empty(n, device=device).uniform_(crop_area, 1)
        aspect = torch.empty(n, device=device).uniform_(-math.log(4 / 3), math.log(4 / 3)).exp()
        width, height = ((area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1))
        x, y = ((torch.rand(2, n, device=device) * 2 - 1) * (1 - torch.stack([width, height]))).unbind()
        if self.flip:
            width = width * (torch.randint(0, 2, (n,), device=device) * 2 - 1)
        angle = rotation * math.radians(30)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([cos, -sin, sin, cos], dim=1).view(n, 2, 2)
        ones = torch.ones_like(angle)
        shear = torch.stack([ones, 0.3 * shear_x, 0.3 * shear_y, ones], dim=1).view(n, 2, 2)
        linear = turn @ shear * torch.stack([width, height], dim=1).unsqueeze(1)
        centres = (2 * torch.arange(self.size, device=device) + 1) / self.size - 1  # of the view's pixels, in [-1, 1]
        # A row's part and a column's: affine_grid multiplies matrices for every pixel, which takes three times as long.
        rows = linear[:, None, :, 1] * centres[:, None] + torch.stack([x, y], dim=1).unsqueeze(1)
        columns = linear[:, None, :, 0] * centres[:, None]
        return nn.functional.grid_sample(images, rows.unsqueeze(2) + columns.unsqueeze(1), align_corners=False)

    def _recolour(self, view: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
        """``view`` ← b ``view``, then c ``view`` + (1 - c) mean, then s ``view`` + (1 - s) grey; in one pass."""
        b, c, s = ((1 + 0.6 * strength).view(-1, 1, 1, 1) for strength in (brightness, contrast, saturation))
        offset = b * (1 - c) * view.mean(dim=(1, 2, 3), keepdim=True)
        if view.shape[1] == 3:
            offset = offset + b * c * (1 - s) * view.mean(dim=1, keepdim=True)
        return (view * (b * c * s)).add_(offset).clamp_(0, 1)  # s is 1 for images without colours

    def _cut_out(self, view: Tensor) -> Tensor:
        if self.cutout == 0:
            return view
        n, device = len(view), view.device
        half = torch.rand(n, 1, device=device) * (self.cutout / 2)
        position = (torch.arange(self.size, device=device) + 0.5) / self.size
        rows, columns = ((position - torch.rand(n, 1, device=device)).abs() < half for _ in range(2))
        return view.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)
