"""The meta gradient and the reweighted step against double backward through steps written out by hand."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dadl import CMWNet, MetaReweighter, meta_weight_gradient
from hypothesis import given
from hypothesis import strategies as st
from support.meta import (
    CLASSES,
    META,
    OPTIMIZERS,
    Failure,
    N,
    batch,
    by_hand,
    cross_entropy,
    network,
    relative_error,
    warmed_up,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer


def weights(seed: int = 5) -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_gradient(
    model: nn.Module,
    samples: tuple[Tensor, Tensor],
    meta: tuple[Tensor, Tensor],
    v: Tensor,
    optimizer: Optimizer,
    normalize: str = "mean",
    loss_fn: Any = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """Double backward on a copy: the gradient with respect to the weights, and the meta loss."""
    twin = copy.deepcopy(model)
    v = v.detach().clone().requires_grad_()
    losses = loss_fn(twin(samples[0]), samples[1])
    total = (v * losses).sum() / (len(v) if normalize == "mean" else v.detach().sum())
    trained = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moving = {
        name: (p, original)
        for (name, p), (_, original) in zip(twin.named_parameters(), model.named_parameters(), strict=True)
        if p.requires_grad and id(original) in trained
    }
    gradients = torch.autograd.grad(total, [p for p, _ in moving.values()], create_graph=True)
    moved = {
        name: by_hand(p.detach(), g, trained[id(original)], optimizer.state.get(original, {}))
        for (name, (p, original)), g in zip(moving.items(), gradients, strict=True)
    }
    meta_loss = loss_fn(functional_call(twin, moved, (meta[0],)), meta[1]).mean()
    (gradient,) = torch.autograd.grad(meta_loss, v)
    return gradient, meta_loss.detach()


def assert_equal_states(one: Any, two: Any) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, two[key]), key
        elif isinstance(value, dict):
            assert_equal_states(value, two[key])
        else:
            assert value == two[key], key


@pytest.mark.parametrize("normalize", ["mean", "sum"])
@pytest.mark.parametrize("method", ["jvp", "double_backward", "finite_difference"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_equals_double_backward(name: str, method: Any, normalize: Any) -> None:
    model = network()
    optimizer = warmed_up(model, OPTIMIZERS[name])
    state, inner = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    expected, _ = slow_gradient(model, samples, meta, v, optimizer, normalize)
    gradient = meta_weight_gradient(
        model,
        samples,
        meta,
        v,
        loss_fn=cross_entropy,
        optimizer_or_lr=optimizer,
        method=method,
        normalize=normalize,
    )
    assert relative_error(gradient, expected) < (1e-4 if method == "finite_difference" else 1e-10)
    assert not gradient.requires_grad
    assert_equal_states(model.state_dict(), state)
    assert_equal_states(optimizer.state_dict()["state"], inner["state"])
    assert all(p.grad is not None for p in model.parameters())  # as the warm-up left them


@pytest.mark.parametrize("name", ["sgd dampening", "sgd nesterov"])
def test_an_optimizers_first_step(name: str) -> None:
    model = network()
    optimizer = warmed_up(model, OPTIMIZERS[name], steps=0)
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    expected, _ = slow_gradient(model, samples, meta, v, optimizer)
    gradient = meta_weight_gradient(model, samples, meta, v, loss_fn=cross_entropy, optimizer_or_lr=optimizer)
    assert relative_error(gradient, expected) < 1e-10
    assert len(optimizer.state) == 0


def test_a_learning_rate_is_plain_gradient_descent() -> None:
    model = network(bias=False)
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    expected, _ = slow_gradient(model, samples, meta, v, SGD(model.parameters(), lr=0.3))
    gradient = meta_weight_gradient(model, samples, meta, v, loss_fn=cross_entropy, optimizer_or_lr=0.3)
    assert relative_error(gradient, expected) < 1e-10


class Variant(nn.Module):
    """Tied and unused parameters, functional batch normalisation, an in-place operation on a convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, CLASSES)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(16, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        features = self.convolution(inputs).mul_(0.5).tanh_()
        features = F.adaptive_avg_pool2d(F.batch_norm(features, None, None, training=True), 2).flatten(1)
        features = self.second(F.relu(self.first(features)))
        self.average = 0.9 * self.average + 0.1 * features.detach().mean(dim=0)  # not in place
        return self.head(F.layer_norm(features, (16,)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["jvp", "double_backward"])
def test_tied_frozen_and_unused_parameters(method: Any) -> None:
    model = Variant().double()
    model.first.bias.requires_grad_(False)
    model.convolution.bias.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.2)
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    twin = copy.deepcopy(model)
    twin.unused = None  # type: ignore[assignment]
    trained = SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1, weight_decay=0.2)
    expected, _ = slow_gradient(twin, samples, meta, v, trained)
    options: Any = {"loss_fn": cross_entropy, "method": method}
    gradient = meta_weight_gradient(model, samples, meta, v, optimizer_or_lr=optimizer, **options)
    assert relative_error(gradient, expected) < 1e-10
    assert model.calls == 0

    reweighter = MetaReweighter(
        model,
        optimizer,
        CMWNet([3] * CLASSES).double(),
        meta_optimizer=SGD([nn.Parameter(torch.zeros(1))], lr=0.0),
        method=method,
    )
    model(samples[0])  # what one pass makes of the buffers
    once = copy.deepcopy(model.average)
    nn.init.zeros_(model.calls)
    nn.init.zeros_(model.average)
    reweighter.step(samples, meta)
    assert model.calls == 1
    assert torch.equal(model.average, once)
    assert model.second.weight is model.first.weight
    assert torch.equal(model.unused, torch.ones(3, dtype=torch.float64))


@given(
    scale=st.booleans(),
    momentum=st.sampled_from([0.0, 0.5]),
    channels=st.integers(1, 4),
    dims=st.integers(0, 3),
    rows=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_batch_normalisations_tangent(
    scale: bool, momentum: float, channels: int, dims: int, rows: int, seed: int
) -> None:
    """Every shape, with and without scale, and where the variance is nearly nothing."""
    torch.manual_seed(seed)
    shape = (rows, 3, *[3] * dims)
    layers = [nn.Linear(3, channels) if dims == 0 else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, channels, 1)]
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
    layers += [kind(channels, eps=1e-3, momentum=momentum, affine=scale), nn.Flatten(), nn.LazyLinear(2)]
    model = nn.Sequential(*layers).double()
    inputs, target = torch.randn(*shape, dtype=torch.float64) * 10.0 ** -(seed % 3), torch.arange(rows) % 2
    model(inputs)
    v = torch.rand(rows, dtype=torch.float64)
    options: Any = {"loss_fn": cross_entropy, "optimizer_or_lr": 0.5}
    meta = torch.randn(*shape, dtype=torch.float64), target
    one, two = (
        meta_weight_gradient(model, (inputs, target), meta, v, method=method, **options)
        for method in ("jvp", "double_backward")
    )
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)


def reweighter_for(model: nn.Module, optimizer: Optimizer, **options: Any) -> MetaReweighter:
    torch.manual_seed(3)
    net = CMWNet([5, 50, 51, 500]).double()
    return MetaReweighter(
        model, optimizer, net, meta_optimizer=Adam(net.parameters(), lr=1e-2, weight_decay=1e-3), **options
    )


@pytest.mark.parametrize("method", ["jvp", "double_backward"])
@pytest.mark.parametrize(("interval", "normalize"), [(1, "mean"), (1, "sum"), (2, "mean")])
@pytest.mark.parametrize("name", ["sgd", "sgd nesterov", "adamw"])
def test_five_steps_equal_the_slow_way(name: str, interval: int, normalize: Any, method: Any) -> None:
    """Weights, running statistics and the weighting network."""
    model = network(bias=False)  # a bias before normalisation has a gradient of 0, whose rounding Adam would amplify
    optimizer = warmed_up(model, OPTIMIZERS[name])
    slow_model = network(bias=False)
    slow_optimizer = warmed_up(slow_model, OPTIMIZERS[name])
    fast = reweighter_for(model, optimizer, interval=interval, normalize=normalize, method=method)
    slow = reweighter_for(slow_model, slow_optimizer)  # its networks and optimisers, nothing else
    net = slow.weight_net

    for i in range(5):
        samples, meta = batch(N, 10 + i), batch(META, 20 + i)
        assert fast.needs_meta_batch == (i % interval == 0)
        result = fast.step(samples, meta if fast.needs_meta_batch else None)

        losses = cross_entropy(slow_model(samples[0]), samples[1])  # the one pass that the buffers see
        if i % interval == 0:
            v = net(losses, samples[1])
            gradient, meta_loss = slow_gradient(slow_model, samples, meta, v, slow_optimizer, normalize)
            slow.meta_optimizer.zero_grad()
            v.backward(gradient)
            slow.meta_optimizer.step()
            torch.testing.assert_close(result.meta_loss, meta_loss, rtol=1e-10, atol=0)
        else:
            assert result.meta_loss is None
        v = net(losses, samples[1]).detach()
        loss = (v * losses).sum() / (N if normalize == "mean" else v.sum())
        slow_optimizer.zero_grad()
        loss.backward()
        slow_optimizer.step()
        torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(result.weights, v, rtol=1e-10, atol=0)

    for one, two in ((model, slow_model), (fast.weight_net, net)):
        for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)
    assert model[1].num_batches_tracked == 3 + 5


def test_a_loss_for_another_loop_is_the_steps_loss() -> None:
    one, two = network(), network()
    first, second = (reweighter_for(m, warmed_up(m, OPTIMIZERS["sgd momentum"])) for m in (one, two))
    for i in range(3):
        samples, meta = batch(N, i), batch(META, 20 + i)
        first.step(samples, meta)
        second.optimizer.zero_grad()
        second.loss(samples, meta).loss.backward()
        second.optimizer.step()
    assert_equal_states(one.state_dict(), two.state_dict())
    assert_equal_states(first.weight_net.state_dict(), second.weight_net.state_dict())


@pytest.mark.parametrize("method", ["jvp", "finite_difference", "double_backward"])
def test_dropout_has_the_virtual_steps_mask_in_the_meta_gradient(method: Any) -> None:
    model = network(last=nn.Dropout(0.5))
    optimizer = warmed_up(model, OPTIMIZERS["sgd"])
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    torch.manual_seed(9)
    expected, _ = slow_gradient(model, samples, meta, v, optimizer)
    after = torch.rand(())
    torch.manual_seed(9)
    options: Any = {"loss_fn": cross_entropy, "optimizer_or_lr": optimizer, "method": method}
    gradient = meta_weight_gradient(model, samples, meta, v, **options)
    assert relative_error(gradient, expected) < (1e-4 if method == "finite_difference" else 1e-10)
    assert torch.equal(torch.rand(()), after)  # as many random numbers were drawn


def test_dropout_draws_anew_for_the_real_step() -> None:
    model, slow_model = network(last=nn.Dropout(0.5)), network(last=nn.Dropout(0.5))
    optimizer, slow_optimizer = (warmed_up(m, OPTIMIZERS["sgd"], steps=0) for m in (model, slow_model))
    fast, slow = reweighter_for(model, optimizer), reweighter_for(slow_model, slow_optimizer)
    samples, meta = batch(N, 1), batch(META, 2)
    torch.manual_seed(9)
    fast.step(samples, meta)
    after = torch.rand(())

    torch.manual_seed(9)
    losses = cross_entropy(copy.deepcopy(slow_model)(samples[0]), samples[1])
    v = slow.weight_net(losses, samples[1])
    torch.manual_seed(9)
    gradient, _ = slow_gradient(slow_model, samples, meta, v, slow_optimizer)
    v.backward(gradient)
    slow.meta_optimizer.step()
    losses = cross_entropy(slow_model(samples[0]), samples[1])
    (slow.weight_net(losses, samples[1]).detach() * losses).mean().backward()
    slow_optimizer.step()
    assert torch.equal(torch.rand(()), after)
    for (key, a), b in zip(model.state_dict().items(), slow_model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)


def snapshot(reweighter: MetaReweighter) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "model": reweighter.model.state_dict(),
            "gradients": {name: p.grad for name, p in reweighter.model.named_parameters() if p.grad is not None},
            "optimizer": reweighter.optimizer.state_dict()["state"],
            "own": reweighter.state_dict()["weight_net"],
            "meta_optimizer": reweighter.meta_optimizer.state_dict()["state"],
            "batches": reweighter.batches,
            "random": torch.get_rng_state(),
        }
    )


def failing_at(call: int) -> Callable[[Any, Tensor], Tensor]:
    calls: list[int] = []

    def loss_fn(output: Any, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise Failure
        return cross_entropy(output, target)

    return loss_fn


MOMENTS = ("batch", "meta batch", "tangent", "meta step", "backward", "step")


@pytest.mark.parametrize(
    ("moment", "dropout"), [("second pass", 0.5), *((moment, dropout) for moment in MOMENTS for dropout in (0.0, 0.5))]
)
def test_a_step_that_fails_changes_nothing(moment: str, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(last=nn.Dropout(dropout))
    optimizer = warmed_up(model, OPTIMIZERS["sgd momentum"])
    reweighter = reweighter_for(model, optimizer)
    reweighter.step(batch(N, 1), batch(META, 2))
    before = snapshot(reweighter)

    def after(method: Any) -> Any:
        def fail(*args: Any, **kwargs: Any) -> None:
            method(*args, **kwargs)
            raise Failure

        return fail

    calls = {"batch": 1, "meta batch": 2, "tangent": 3, "second pass": 4}
    with monkeypatch.context() as patch:
        if moment in calls:
            patch.setattr(reweighter, "loss_fn", failing_at(calls[moment]))
        elif moment == "meta step":
            patch.setattr(reweighter.meta_optimizer, "step", after(reweighter.meta_optimizer.step))
        elif moment == "backward":
            patch.setattr(reweighter, "_report_collapse", after(lambda weights: None))
        else:
            patch.setattr(optimizer, "step", after(optimizer.step))
        with pytest.raises(Failure):
            reweighter.step(batch(N, 3), batch(META, 4))
    assert_equal_states(snapshot(reweighter), before)
    reweighter.step(batch(N, 3), batch(META, 4))


@pytest.mark.parametrize(("where", "n"), [("batch", N), ("meta batch", META)])
def test_a_loss_that_is_not_finite_names_its_row(where: str, n: int) -> None:
    model = network()
    reweighter = reweighter_for(model, warmed_up(model, OPTIMIZERS["sgd"]))
    before = snapshot(reweighter)
    batches = {"batch": batch(N, 1), "meta batch": batch(META, 2)}
    batches[where][0][n - 2] = torch.inf

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        # Batch normalisation would spread the infinity to every row.
        finite = cross_entropy(output.nan_to_num(), target)
        return torch.where(torch.arange(len(target)) == n - 2, torch.inf, finite) if len(target) == n else finite

    reweighter.loss_fn = loss_fn
    with pytest.raises(FloatingPointError, match=rf"the loss in the {where} of row {n - 2} is inf"):
        reweighter.step(batches["batch"], batches["meta batch"])
    after = snapshot(reweighter)
    assert_equal_states(after, before)


@torch.library.custom_op("dadl_test::double", mutates_args=())
def double(values: Tensor) -> Tensor:
    return 2 * values


double.register_autograd(lambda context, gradient: 2 * gradient)


class WithoutForwardMode(nn.Module):
    """An operator of one's own, with a backward and no forward mode, beside a path that has both."""

    def forward(self, values: Tensor) -> Tensor:
        return double(values) + values


class RaisesInForwardMode(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return torch.cdist(values.unsqueeze(1), torch.ones(1, 3, 1, dtype=values.dtype), p=2.0)[:, 0, :1] + values


@pytest.mark.parametrize("layer", [WithoutForwardMode, RaisesInForwardMode])
def test_a_layer_without_forward_mode_is_named_once_and_differenced(layer: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1), nn.Sequential(nn.Tanh(), layer()), nn.Linear(1, CLASSES))
    model = model.double()
    reweighter = reweighter_for(model, SGD(model.parameters(), lr=0.1))
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    with pytest.warns(UserWarning, match=rf"layer '2.1' \({layer.__name__}\) has no forward-mode derivative"):
        gradient = meta_weight_gradient(model, samples, meta, v, loss_fn=cross_entropy, optimizer_or_lr=0.1)
    if layer is WithoutForwardMode:
        expected, _ = slow_gradient(model, samples, meta, v, SGD(model.parameters(), lr=0.1))
        assert relative_error(gradient, expected) < 1e-4

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(3):
            reweighter.step(batch(N, i), batch(META, i))
    assert len(caught) == 1
    assert reweighter.method == "finite_difference"


class Detached(torch.autograd.Function):
    """A forward-mode rule that is wrong."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return 2 * values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * 1.5


def test_a_wrong_tangent_is_noticed() -> None:
    model = network()
    options: Any = {"loss_fn": lambda output, target: cross_entropy(Detached.apply(output), target)}
    samples, meta, v = batch(N, 1), batch(META, 2), weights()
    with pytest.warns(UserWarning, match=r"loss_fn has no forward-mode derivative.*backward mode"):
        gradient = meta_weight_gradient(model, samples, meta, v, optimizer_or_lr=0.1, **options)
    expected, _ = slow_gradient(model, samples, meta, v, SGD(model.parameters(), lr=0.1), **options)
    assert relative_error(gradient, expected) < 1e-4


def test_channels_last_single_precision() -> None:
    model = network().float()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (inputs, target), (meta, meta_target), v = batch(N, 1), batch(META, 2), weights().float()
    options: Any = {"loss_fn": cross_entropy, "optimizer_or_lr": 0.1}
    one = meta_weight_gradient(model, (inputs.float(), target), (meta.float(), meta_target), v, **options)
    inputs, meta = (x.float().to(memory_format=torch.channels_last) for x in (inputs, meta))
    two = meta_weight_gradient(last, (inputs, target), (meta, meta_target), v, **options)
    assert relative_error(two, one) < 1e-4
    exact = network()
    expected, _ = slow_gradient(exact, batch(N, 1), batch(META, 2), weights(), SGD(exact.parameters(), lr=0.1))
    assert relative_error(one.double(), expected) < 1e-3


@pytest.mark.parametrize("method", ["jvp", "double_backward", "finite_difference"])
def test_autocast(method: Any) -> None:
    model = network().float()
    net = CMWNet([5, 50, 51, 500])
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    reweighter = MetaReweighter(model, optimizer, net, meta_optimizer=Adam(net.parameters(), lr=1e-3), method=method)
    (inputs, target), (meta, meta_target), v = batch(N, 1), batch(META, 2), weights().float()
    options: Any = {"loss_fn": cross_entropy, "optimizer_or_lr": 0.1}
    samples, metas = (inputs.float(), target), (meta.float(), meta_target)
    exact = meta_weight_gradient(model, samples, metas, v, **options)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        lowered = meta_weight_gradient(model, samples, metas, v, method=method, **options)
        first = [reweighter.step(samples, metas).loss.item() for _ in range(10)]
    assert relative_error(lowered, exact) < 0.2
    assert first[-1] < first[0]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_collapsed_weights_are_reported_once() -> None:
    model = network()
    reweighter = reweighter_for(model, SGD(model.parameters(), lr=0.1), normalize="sum")
    nn.init.constant_(reweighter.weight_net.heads.bias, -2000.0)  # type: ignore[union-attr, arg-type]
    with pytest.warns(UserWarning, match=r"all weights of batch 0 are below 0\.001.*floor"):
        result = reweighter.step(batch(N, 1), batch(META, 2))
    assert result.loss == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reweighter.step(batch(N, 1), batch(META, 2))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_state_continues() -> None:
    def make() -> MetaReweighter:
        model = network()
        return reweighter_for(model, SGD(model.parameters(), lr=0.1), interval=2)

    whole, broken, resumed = make(), make(), make()
    for i in range(5):
        whole.step(batch(N, i), batch(META, i))
        if i < 3:
            broken.step(batch(N, i), batch(META, i))
    resumed.model.load_state_dict(broken.model.state_dict())
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert not resumed.needs_meta_batch
    for i in range(3, 5):
        resumed.step(batch(N, i), batch(META, i))
    assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())
    assert_equal_states(resumed.weight_net.state_dict(), whole.weight_net.state_dict())


def test_bad_input_is_named() -> None:
    model = network()
    net = CMWNet([1, 2, 3, 4]).double()
    theta = Adam(net.parameters())
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="method must be one of"):
        MetaReweighter(model, optimizer, net, meta_optimizer=theta, method="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalize must be one of"):
        MetaReweighter(model, optimizer, net, meta_optimizer=theta, normalize="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interval >= 1"):
        MetaReweighter(model, optimizer, net, meta_optimizer=theta, interval=0)
    with pytest.raises(TypeError, match="SGD, Adam or AdamW"):
        MetaReweighter(model, torch.optim.RMSprop(model.parameters()), net, meta_optimizer=theta)
    other = SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="holds 1 parameters that are not the model's"):
        MetaReweighter(model, other, net, meta_optimizer=theta)
    with pytest.raises(ValueError, match="needs a meta batch"):
        MetaReweighter(model, optimizer, net, meta_optimizer=theta).step(batch(N, 1))
    options: Any = {"optimizer_or_lr": 0.1}
    with pytest.raises(ValueError, match=r'one loss per sample, \[12\], got shape \[\].*reduction="none"'):
        meta_weight_gradient(model, batch(N, 1), batch(META, 2), weights(), loss_fn=F.cross_entropy, **options)
    with pytest.raises(ValueError, match=r"expected weights \[12\], got shape \[11\]"):
        meta_weight_gradient(model, batch(N, 1), batch(META, 2), weights()[:-1], loss_fn=cross_entropy, **options)
