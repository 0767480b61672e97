"""The momentum encoder: the moving average by hand, its buffers, its state and two processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dadl import MomentumEncoder
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3, bias=False))


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def train_step(module: nn.Module, inputs: Tensor) -> None:
    module.zero_grad()
    module(inputs).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad


def test_it_starts_as_a_copy_and_follows_as_the_moving_average() -> None:
    query = encoder()
    keys = MomentumEncoder(query, 0.9)
    expected = values(query)
    assert all(torch.equal(a, b) for a, b in zip(values(keys), expected, strict=True))
    storage = [parameter.data_ptr() for parameter in keys.parameters()]
    for step in range(5):
        train_step(query, torch.randn(8, 5))
        assert all(torch.equal(a, b) for a, b in zip(values(keys), expected, strict=True)), step  # not before update
        keys.update(query)
        expected = [0.9 * k + 0.1 * q for k, q in zip(expected, values(query), strict=True)]
        torch.testing.assert_close(values(keys), expected)
        expected = values(keys)
    assert [parameter.data_ptr() for parameter in keys.parameters()] == storage  # in place


def test_the_extremes_of_the_momentum() -> None:
    query = encoder()
    frozen, copy = MomentumEncoder(query, 1.0), MomentumEncoder(query, 0.0)
    start = values(query)
    train_step(query, torch.randn(8, 5))
    frozen.update(query)
    copy.update(query)
    assert all(torch.equal(a, b) for a, b in zip(values(frozen), start, strict=True))
    torch.testing.assert_close(values(copy), values(query))
    assert not torch.equal(start[0], values(query)[0])


def test_there_are_no_gradients() -> None:
    query = encoder()
    keys = MomentumEncoder(query)
    inputs = torch.randn(8, 5, requires_grad=True)
    assert not keys(inputs).requires_grad
    assert not any(parameter.requires_grad for parameter in keys.parameters())
    assert all(parameter.requires_grad for parameter in query.parameters())


def test_own_buffers_see_the_keys_and_copied_ones_the_queries() -> None:
    query = encoder()
    own, copied = MomentumEncoder(query), MomentumEncoder(query, buffers="copied")
    queries, keys = torch.randn(64, 5), torch.randn(64, 5) + 10
    query(queries)
    for key_encoder in (own, copied):
        key_encoder(keys)
        key_encoder.update(query)

    fresh = MomentumEncoder(encoder())
    fresh.network[0].load_state_dict(query[0].state_dict())
    fresh(keys)
    assert torch.equal(own.network[1].running_mean, fresh.network[1].running_mean)
    assert not torch.equal(own.network[1].running_mean, query[1].running_mean)
    assert torch.equal(copied.network[1].running_mean, query[1].running_mean)
    assert copied.network[1].num_batches_tracked == 1


def test_evaluation_mode_is_the_parents() -> None:
    parent = nn.ModuleDict({"key_encoder": MomentumEncoder(encoder())})
    parent.eval()
    before = parent["key_encoder"].network[1].running_mean.clone()
    parent["key_encoder"](torch.randn(8, 5) + 3)
    assert torch.equal(parent["key_encoder"].network[1].running_mean, before)
    parent.train()
    parent["key_encoder"](torch.randn(8, 5) + 3)
    assert not torch.equal(parent["key_encoder"].network[1].running_mean, before)


def test_state_dict_restores_parameters_and_buffers() -> None:
    query = encoder()
    keys = MomentumEncoder(query, 0.5)
    train_step(query, torch.randn(8, 5))
    keys(torch.randn(8, 5))
    keys.update(query)
    restored = MomentumEncoder(encoder(), 0.5)
    restored.load_state_dict(keys.state_dict())
    inputs = torch.randn(8, 5)
    assert torch.equal(restored.eval()(inputs), keys.eval()(inputs))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_an_impossible_momentum_is_an_error(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must be between 0 and 1"):
        MomentumEncoder(encoder(), momentum)


def test_an_unknown_buffer_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match='"own" or "copied"'):
        MomentumEncoder(encoder(), buffers="shared")  # type: ignore[arg-type]


def test_another_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="other parameters"):
        MomentumEncoder(encoder()).update(nn.Linear(5, 4))


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    query = DistributedDataParallel(encoder())
    keys = MomentumEncoder(query, 0.5)
    generator = torch.Generator().manual_seed(rank)  # every process has samples of its own
    for _ in range(3):
        inputs = torch.randn(8, 5, generator=generator)
        keys(inputs)
        train_step(query, inputs)
        keys.update(query)
    torch.save((keys.state_dict(), query.module.state_dict()), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_parameters(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    (first, query), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    parameters = [f"network.{name}" for name, _ in encoder().named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    assert not torch.equal(first["network.0.weight"], query["0.weight"])  # it lags behind
    assert not torch.equal(first["network.1.running_mean"], second["network.1.running_mean"])  # own statistics


class Remembers(nn.Module):
    """Keeps the last features, with their graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.seen: dict[str, list[Tensor]] = {"features": []}

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layer(inputs)
        self.seen["features"] = [features]
        return features


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 3)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)).eval(),
        Remembers,
    ],
    ids=["weight_norm", "parametrized weight_norm", "spectral_norm", "remembered features"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_networks_that_hold_computed_tensors(make: Callable[[], nn.Module]) -> None:
    query, inputs = make(), torch.randn(6, 5)
    train_step(query, inputs)
    keys = MomentumEncoder(query, 0.5).train(query.training)
    torch.testing.assert_close(keys(inputs), query(inputs))
    before = values(query)
    train_step(query, inputs)
    keys.update(query)
    torch.testing.assert_close(values(keys), [(a + b) / 2 for a, b in zip(before, values(query), strict=True)])
    half_way, trained = keys(inputs), query(inputs)
    assert not half_way.requires_grad
    assert not torch.equal(half_way, trained)
    for parameter, value in zip(keys.parameters(), values(query), strict=True):
        parameter.copy_(value)
    torch.testing.assert_close(keys(inputs), trained)


def test_lazy_networks_are_made_first() -> None:
    query = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(TypeError, match=r"lazy.*pass one batch"):
        MomentumEncoder(query)
    query(torch.randn(2, 5))
    MomentumEncoder(query).update(query)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_holds_no_moving_average(dtype: torch.dtype) -> None:
    query = nn.Linear(5, 3).to(dtype)
    with pytest.raises(TypeError, match="small steps of a moving average"):
        MomentumEncoder(query)
    keys = MomentumEncoder(nn.Linear(5, 3))
    keys.update(query)  # a query in half precision can be followed
    with pytest.raises(TypeError, match=r"float32 and compute under torch\.autocast"):
        keys.to(dtype).update(query)
    MomentumEncoder(query, 0.0).update(query)  # a plain copy loses nothing
