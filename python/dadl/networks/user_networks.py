"""Image networks of the user's own, or of timm."""

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingsError
from .user_code import TIMM, find_callable


def load_backbone(name: str, size: int, channels: int = 3) -> tuple[nn.Module, int]:
    """The network made by ``name``, a ``module:callable`` without arguments, and the number F of its features.

    ``timm:NAME`` is timm's network of that name, with random weights and without its classifier. The network takes
    images ``[B, channels, size, size]`` in [0, 1] to features ``[B, F]``. Raises a :class:`.SettingsError` if there is
    no such callable or network, or if it returns something else.
    """
    make_network = _of_timm(name, channels) if name.startswith(TIMM) else find_callable("backbone", name)
    images = torch.zeros(2, channels, size, size)
    try:
        network = make_network()
        with torch.no_grad():
            features = network.eval()(images)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise SettingsError(f"backbone {name} failed on images {list(images.shape)}: {error}") from error
    if (
        not isinstance(network, nn.Module)
        or not isinstance(features, Tensor)
        or features.dim() != 2
        or len(features) != 2
    ):
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SettingsError(
            f"backbone {name} made {shape} of images {list(images.shape)}; expected a torch.nn.Module "
            "that makes features [2, F]"
        )
    return network.train(), features.shape[1]


def _of_timm(name: str, channels: int) -> Callable[[], Any]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise SettingsError(
            f"backbone {name} needs timm, which cannot be imported ({error}): pip install timm, or name a network of "
            "your own as module:callable"
        ) from None
    if not re.fullmatch(r"[\w.-]+", name.removeprefix(TIMM)):
        raise SettingsError(f"backbone {name}: timm:NAME names one of timm's networks, without hub or folder")
    return partial(timm.create_model, name.removeprefix(TIMM), pretrained=False, num_classes=0, in_chans=channels)
