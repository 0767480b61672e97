"""Networks for images that users bring along."""

import torch
from torch import Tensor, nn

from .recipe import SettingsError
from .user_code import find_callable


def load_backbone(name: str, size: int, channels: int = 3) -> tuple[nn.Module, int]:
    """The network that ``name``, ``module:callable`` without arguments, makes, and how many features F it gives.

    It takes images ``[B, channels, size, size]`` in [0, 1] to features ``[B, F]``. Raises a :class:`.SettingsError` if
    there is no such callable, or it makes something else.
    """
    make_network = find_callable("backbone", name)
    images = torch.zeros(2, channels, size, size)
    try:
        network = make_network()
        with torch.no_grad():
            features = network.eval()(images)
    except Exception as error:  # whatever foreign code raises
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
