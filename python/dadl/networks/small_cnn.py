"""A small convolutional network, trained from scratch: small images on a CPU core."""

import torch
from torch import Tensor, nn

FEATURES = 256
CELLS = 6  # at most, along each side, where positions matter
SUBSAMPLED = 24  # the first convolution has stride 2 on larger images
SMALLEST = 16


class SmallCNN(nn.Sequential):
    """Images ``[B, channels, size, size]`` in [0, 1] to features ``[B, num_features]``, ``size`` at least 16.

    Three convolutions, and a fourth, of single cells, whose 256 channels are averaged over the image. With
    ``positions`` there is no fourth: the 64 channels of at most 6 × 6 cells are the features, so that they tell where
    something is.
    """

    num_features: int

    def __init__(self, size: int, channels: int = 3, *, positions: bool = False) -> None:
        if size < SMALLEST:
            raise ValueError(f"the small network is for images of at least {SMALLEST} pixels, got {size}")
        stride, read = 2 if size > SUBSAMPLED else 1, max(channels, 2)
        layers = [
            *_block(read, 16, kernel=5, stride=stride, pool=True),
            *_block(16, 32, pool=True),
            *_block(32, 64, pool=not positions),
        ]
        if positions:
            cells = min(CELLS, -(-size // stride) // 4)
            layers.append(nn.AdaptiveAvgPool2d(cells))
        else:
            layers += [*_block(64, FEATURES, kernel=1), nn.AdaptiveAvgPool2d(1)]
        super().__init__(*layers, nn.Flatten())
        self._channels, self.num_features = read, 64 * cells**2 if positions else FEATURES
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        # The first convolution of one channel takes twice as long on a CPU as that of two.
        features: Tensor = super().forward(images.expand(-1, self._channels, -1, -1))
        return features


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    # Pooling first leaves only a quarter of the values to normalise.
    return [convolution, *[nn.MaxPool2d(2)] * pool, nn.BatchNorm2d(outputs), nn.ReLU()]
