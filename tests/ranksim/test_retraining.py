"""Regressor retraining: the head learns, nothing else moves."""

import copy

import pytest
import torch
from dadl import FrozenEncoder, retrain_head
from torch import nn


def test_only_the_head_learns() -> None:
    encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
    head = nn.Linear(8, 1).requires_grad_(False)
    old_head = copy.deepcopy(head.state_dict())
    old_encoder = copy.deepcopy(encoder.state_dict())
    frozen, parameters = retrain_head(encoder, head)
    assert not torch.equal(head.weight, old_head["weight"])
    assert {id(p) for p in parameters} == {id(p) for p in head.parameters()}

    model = nn.Sequential(frozen, head).train()
    x, y = torch.randn(64, 3), torch.randn(64, 1)
    assert torch.equal(frozen(x), frozen(x))  # no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, old_encoder[name]) for name, value in encoder.state_dict().items())


def test_features_carry_no_graph() -> None:
    frozen = FrozenEncoder(nn.Linear(2, 2))
    assert not frozen(torch.ones(1, 2, requires_grad=True)).requires_grad
    assert not frozen.train().training


def test_errors_say_what_is_expected() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="before the last linear layer"):
        retrain_head(model, model[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Sequential"):
        retrain_head(model[0], model)  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in model.parameters())
