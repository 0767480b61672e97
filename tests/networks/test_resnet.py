"""The residual network: its published size, shapes, depths that there are."""

import pytest
import torch
from dadl.networks.resnet import FEATURES, resnet


def test_resnet32_has_the_published_size() -> None:
    network = resnet(32)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, FEATURES)
    assert sum(p.numel() for p in network.parameters()) + (FEATURES + 1) * 10 == 464_154
    assert resnet(8, channels_in=1)(torch.randn(2, 1, 28, 28)).shape == (2, FEATURES)


def test_a_depth_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet(33)
