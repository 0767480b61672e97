"""The residual networks for small images, e.g. ResNet-32 on 32 × 32 pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64


class Block(nn.Module):
    """Two convolutions and a shortcut, which is subsampled and padded with zero channels where needed."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.grows = channels - channels_in
        self.convolution1 = nn.Conv2d(channels_in, channels, 3, 2 if self.grows else 1, padding=1, bias=False)
        self.normalization1 = nn.BatchNorm2d(channels)
        self.convolution2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.normalization2 = nn.BatchNorm2d(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.relu(self.normalization1(self.convolution1(inputs)))
        features = self.normalization2(self.convolution2(features))
        if self.grows:
            inputs = F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, self.grows // 2, self.grows - self.grows // 2))
        return F.relu(features + inputs)


def resnet(depth: int = 32, channels_in: int = 3) -> nn.Sequential:
    """Images ``[B, channels_in, H, W]`` to features ``[B, 64]``; ``depth`` is 6n + 2, including the final linear layer.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    channels = 16
    for width in (16, 32, FEATURES):
        for _ in range((depth - 2) // 6):
            layers.append(Block(channels, width))
            channels = width
    for module in (part for layer in layers for part in layer.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
