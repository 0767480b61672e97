"""Random views of images of the user's own, e.g. by kornia or torchvision."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError
from .user_code import find_callable
from .views import View, as_fractions

TOLERANCE = 1e-3


class OwnView(View):
    """The user's augmentation of a batch; in evaluation mode the middle of the image.

    Args:
        size: height and width of the view.
        augmentation: float32 images ``[B, C, H, W]`` in [0, 1] to ``[B, C, size, size]`` in [0, 1]. It must
            draw from torch's global generator, or runs would not be repeatable. If it is a module, checkpoints hold
            its state; it is not trained.
    """

    augmentation: Callable[[Tensor], Tensor]

    def __init__(self, size: int, augmentation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(size, crop_area=None)
        self.augmentation = augmentation
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision would shift pixels
            return self.augmentation(as_fractions(images))


def training_view(augment: str | None, size: int, image_shape: Sequence[int], **options: Any) -> View:
    """The built-in :class:`.View` with these options, or the user's view if ``augment`` is given.

    ``augment`` is a ``module:callable`` without arguments that makes the augmentation of an :class:`OwnView`;
    ``image_shape`` ``[C, H, W]`` is that of the data. Raises a :class:`.SettingsError` if there is no such callable, or
    if its result does not make views.
    """
    if augment is None:
        return View(size, **options)
    make_augmentation = find_callable("augment", augment)
    channels = image_shape[0]
    images = torch.rand(4, *image_shape, generator=torch.Generator().manual_seed(0))
    shape = list(images.shape)
    try:
        with torch.random.fork_rng(devices=[]):  # the network starts from the same weights with any augmentation
            view = OwnView(size, make_augmentation())
            views = view(images)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise SettingsError(f"augment {augment} failed on float images {shape}: {error}") from error
    if (
        not isinstance(views, Tensor)
        or views.shape != (4, channels, size, size)
        or views.dtype != torch.float32
        or not bool(((views >= -TOLERANCE) & (views <= 1 + TOLERANCE)).all())
    ):
        raise SettingsError(
            f"augment {augment} made {_described(views)} of float images {shape} in [0, 1]; expected float32 "
            f"{[4, channels, size, size]} in [0, 1], which the network itself normalises"
        )
    return view


def _described(views: Any) -> str:
    if not isinstance(views, Tensor):
        return f"a {type(views).__name__}"
    kind = f"{str(views.dtype).removeprefix('torch.')} {list(views.shape)}"
    return f"{kind} from {views.min().item():.4g} to {views.max().item():.4g}" if views.numel() else kind
