"""The networks for images that every recipe on images offers: built-in ones by name, or the user's own."""

from torch import nn

from ..errors import SettingsError
from ..options import Network
from .efficientnet import FEATURES as EFFICIENTNET_FEATURES
from .efficientnet import efficientnet_lite0
from .resnet import FEATURES as RESNET_FEATURES
from .resnet import resnet
from .small_cnn import SmallCNN
from .user_networks import load_backbone


def image_network(
    network: Network, backbone: str | None, size: int, channels: int = 3, *, positions: bool = False
) -> tuple[nn.Module, int]:
    """The network from images ``[B, channels, size, size]`` in [0, 1] to features ``[B, F]``, and F.

    ``backbone``, a ``module:callable`` or ``timm:NAME``, takes the place of the built-in ``network``, see
    :func:`.load_backbone`. With ``positions`` the features of ``small-cnn`` tell where something is. Raises a
    :class:`.SettingsError` if the network is not for such images.
    """
    if backbone is not None:
        return load_backbone(backbone, size, channels)
    if network == "small-cnn":
        try:
            small = SmallCNN(size, channels, positions=positions)
        except ValueError as error:
            raise SettingsError(f"network small-cnn: {error}") from None
        return small, small.num_features
    if network == "resnet32":
        return resnet(32, channels), RESNET_FEATURES
    return efficientnet_lite0(), EFFICIENTNET_FEATURES
