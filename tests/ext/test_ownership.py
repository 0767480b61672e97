"""Gradients that are handed out are nobody else's."""

import pytest
import torch
from support.losses import LOSSES, make
from torch import Tensor

NAMES = [name for name in LOSSES if name not in ("rank", "reverse_gradient")]


def leaves_and_loss(name: str, device: str, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
    call = make(name, device, dtype)
    leaves = tuple(value.clone().requires_grad_() for value in call.inputs)
    return leaves, call.of_inputs(*leaves).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_a_kept_graph_may_be_changed(device: str, dtype: torch.dtype, name: str) -> None:
    leaves, loss = leaves_and_loss(name, device, dtype)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.data.mul_(0)
        gradient.add_(3)
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    for gradient, value in zip(second, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_hooks_may_change_gradients_in_place(device: str, dtype: torch.dtype, name: str) -> None:
    leaves, loss = leaves_and_loss(name, device, dtype)
    for leaf in leaves:
        leaf.register_hook(lambda gradient: gradient.mul_(2))
    for _ in range(2):
        loss.backward(retain_graph=True)
    once = leaves_and_loss(name, device, dtype)
    expected = torch.autograd.grad(once[1], once[0])
    for leaf, value in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 4 * value)


@pytest.mark.parametrize("name", LOSSES)
def test_one_loss_in_two_sums(device: str, name: str) -> None:
    """As PCGrad and similar methods do: a gradient for each of several objectives that share a loss."""
    leaves, loss = leaves_and_loss(name, device, torch.float64)
    gradients = [torch.autograd.grad(total, leaves, retain_graph=True) for total in (loss + 1, loss * 2)]
    for one, two in zip(*gradients, strict=True):
        one.neg_()
        torch.testing.assert_close(-2 * one, two)
    once = leaves_and_loss(name, device, torch.float64)
    for gradient, value in zip(gradients[1], torch.autograd.grad(once[1], once[0]), strict=True):
        torch.testing.assert_close(gradient, 2 * value)


@pytest.mark.parametrize("name", NAMES)
def test_a_freed_graph_says_so(device: str, name: str) -> None:
    leaves, loss = leaves_and_loss(name, device, torch.float32)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)
