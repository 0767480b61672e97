"""CMW-Net-SL: its objective and its meta gradient by hand, the teacher, failures."""

import copy
from typing import Any

import pytest
import torch
from dadl import CMWNet
from dadl.cmw_net.soft_labels import SoftLabelReweighter, mixed_objective
from support.meta import CLASSES, META, OPTIMIZERS, Failure, N, batch, by_hand, network, relative_error, warmed_up
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, Optimizer


def make(name: str = "sgd nesterov", **options: Any) -> SoftLabelReweighter:
    model = network(bias=False)
    optimizer = warmed_up(model, OPTIMIZERS[name])
    torch.manual_seed(3)
    net = CMWNet([5, 50, 51, 500]).double()
    return SoftLabelReweighter(model, optimizer, net, meta_optimizer=SGD(net.parameters(), lr=1.0), **options)


def loss_by_hand(output: Tensor, y: Tensor, z: Tensor, v: Tensor, share: float, partner: Tensor) -> Tensor:
    p = output.softmax(dim=1).log()
    total = output.new_zeros(())
    n = len(y)
    for i in range(n):
        j = int(partner[i])
        first = v[i] * -p[i, y[i]] + (1 - v[i]) * -(z[i] * p[i]).sum()
        second = v[n + i] * -p[i, y[j]] + (1 - v[n + i]) * -(z[j] * p[i]).sum()
        total = total + share * first + (1 - share) * second
    return total / n


def test_the_objective_by_hand() -> None:
    inputs, y = batch(N, 1)
    z, v, partner = torch.rand(N, CLASSES).double().softmax(1), torch.rand(2 * N).double(), torch.randperm(N)
    objective = mixed_objective(inputs, y, z, 0.7, partner)
    torch.testing.assert_close(objective.inputs, 0.7 * inputs + 0.3 * inputs[partner])
    output = torch.randn(N, CLASSES).double()
    terms = objective.evaluate(output)
    torch.testing.assert_close(terms.total(v) / N, loss_by_hand(output, y, z, v, 0.7, partner))
    torch.testing.assert_close(terms.losses[N:], F.cross_entropy(output, y[partner], reduction="none"))
    assert torch.equal(terms.targets, torch.cat([y, y[partner]]))


def slow_step(slow: SoftLabelReweighter, samples: tuple[Tensor, Tensor], meta: tuple[Tensor, Tensor]) -> Tensor:
    """One step by double backward; returns the gradient of the meta loss with respect to the weights."""
    model, optimizer, net = slow.model, slow.optimizer, slow.weight_net
    inputs, y = samples
    b = float(torch.distributions.Beta(slow.mixup, slow.mixup).sample())
    share, partner = max(b, 1 - b), torch.randperm(N)
    z = copy.deepcopy(slow.teacher.network).eval()(inputs).softmax(dim=1).detach()
    mixed = share * inputs + (1 - share) * inputs[partner]
    output = model(mixed)
    losses = torch.cat([F.cross_entropy(output, t, reduction="none") for t in (y, y[partner])]).detach()
    targets = torch.cat([y, y[partner]])

    v = net(losses, targets)
    leaf = v.detach().requires_grad_()
    twin = copy.deepcopy(model)
    gradients = torch.autograd.grad(
        loss_by_hand(twin(mixed), y, z, leaf, share, partner), list(twin.parameters()), create_graph=True
    )
    group: dict[str, Any] = optimizer.param_groups[0]
    moved = {
        name: by_hand(p.detach(), g, group, optimizer.state[original])
        for (name, p), g, original in zip(twin.named_parameters(), gradients, model.parameters(), strict=True)
    }
    meta_loss = F.cross_entropy(functional_call(twin, moved, (meta[0],)), meta[1])
    (gradient,) = torch.autograd.grad(meta_loss, leaf)
    slow.meta_optimizer.zero_grad()
    v.backward(gradient)
    slow.meta_optimizer.step()

    optimizer.zero_grad()
    loss_by_hand(output, y, z, net(losses, targets).detach(), share, partner).backward()
    optimizer.step()
    slow.update_teacher()
    return gradient


@pytest.mark.parametrize("method", ["jvp", "double_backward"])
@pytest.mark.parametrize("name", ["sgd nesterov", "adamw"])
def test_five_steps_equal_the_slow_way(name: str, method: Any) -> None:
    fast, slow = make(name, method=method, momentum=0.8), make(name, momentum=0.8)
    for i in range(5):
        samples, meta = batch(N, 10 + i), batch(META, 20 + i)
        torch.manual_seed(i)
        before = [p.detach().clone() for p in fast.weight_net.parameters()]
        result = fast.step(samples, meta)
        assert result.weights.shape == (2 * N,)
        torch.manual_seed(i)
        slow_before = [p.detach().clone() for p in slow.weight_net.parameters()]
        slow_step(slow, samples, meta)
        # The meta optimiser is plain gradient descent with rate 1: what it moved is the gradient.
        moved, slow_moved = (
            torch.cat([(p - q).flatten() for p, q in zip(r.weight_net.parameters(), start, strict=True)])
            for r, start in ((fast, before), (slow, slow_before))
        )
        assert relative_error(moved.detach(), slow_moved.detach()) < (1e-10 if i == 0 else 1e-8)
    for one, two in ((fast.model, slow.model), (fast.weight_net, slow.weight_net), (fast.teacher, slow.teacher)):
        for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)


def test_the_teacher_follows_and_is_in_evaluation_mode() -> None:
    reweighter = make(momentum=0.9)
    start = reweighter.teacher.network[0].weight.clone()
    reweighter.teacher.train()
    reweighter.step(batch(N, 1), batch(META, 2))
    expected = 0.9 * start + 0.1 * reweighter.model[0].weight  # type: ignore[index]
    torch.testing.assert_close(reweighter.teacher.network[0].weight, expected)
    assert torch.equal(reweighter.teacher.network[1].running_mean, reweighter.model[1].running_mean)  # type: ignore
    assert not reweighter.teacher.network.training


def test_a_failed_step_moves_neither_teacher_nor_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    reweighter = make()
    teacher, random = copy.deepcopy(reweighter.teacher.state_dict()), torch.get_rng_state()

    def fail() -> None:
        raise Failure

    monkeypatch.setattr(reweighter.optimizer, "step", fail)
    with pytest.raises(Failure):
        reweighter.step(batch(N, 1), batch(META, 2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.values(), reweighter.teacher.state_dict().values(), strict=True)
    )


def test_the_state_holds_the_teacher() -> None:
    one, two = make(), make()
    one.step(batch(N, 1), batch(META, 2))
    two.load_state_dict(one.state_dict())
    for a, b in zip(one.teacher.state_dict().values(), two.teacher.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="mixup must be positive"):
        make(mixup=0.0)


def test_single_precision_training_learns_the_labels() -> None:
    torch.manual_seed(0)
    model = network().float()
    optimizer: Optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    net = CMWNet([5, 50, 51, 500])
    reweighter = SoftLabelReweighter(model, optimizer, net, meta_optimizer=SGD(net.parameters(), lr=0.1), interval=3)
    inputs, target = batch(N, 1)
    meta, meta_target = batch(META, 2)
    start = F.cross_entropy(model(inputs.float()), target)
    for _ in range(30):
        reweighter.step((inputs.float(), target), (meta.float(), meta_target))
    assert F.cross_entropy(model(inputs.float()), target) < 0.5 * start
