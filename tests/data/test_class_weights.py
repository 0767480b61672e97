"""Weights of classes against their formulas."""

from typing import Any

import pytest
import torch
from dadl.cmw_net.method import CrossEntropy
from dadl.cmw_net.settings import CMWNetSettings
from dadl.data.labels import class_weights
from torch import nn


def test_weights_follow_their_formulas() -> None:
    counts, total = torch.tensor([6, 2, 0]), 8
    beta = 1 - 1 / total
    expected = {
        "inverse": [total / 6, total / 2, 0],
        "sqrt-inverse": [(total / 6) ** 0.5, (total / 2) ** 0.5, 0],
        "effective": [1 / (1 - beta**6), 1 / (1 - beta**2), 0],
    }
    for kind, values in expected.items():
        assert class_weights(kind, counts).tolist() == pytest.approx(values)  # type: ignore[union-attr]
    assert class_weights("none", counts) is None


def test_the_loss_is_a_weighted_mean() -> None:
    logits, target, weights = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 0]), torch.tensor([1.0, 2.0, 5.0])
    method = CrossEntropy(nn.Identity(), nn.Identity(), lr=0.1, class_weights=weights)
    losses = -logits.log_softmax(dim=1)[torch.arange(5), target]
    expected = (losses * weights[target]).sum() / weights[target].sum()
    assert method((logits, target)).item() == pytest.approx(expected.item())
    assert "class_weights" not in method.state_dict()


def test_learnt_weights_leave_no_room_for_them(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="cmw-net learns the weights: leave out class-weights, or use ce or ce-meta"):
        CMWNetSettings(data=tmp_path, class_weights="inverse")
