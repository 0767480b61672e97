"""Three data-parallel processes with 7, 5 and no rows train as one process with 12 does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.processes import in_processes
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from dadl_ext import (
    ClassQueue,
    PseudoGroupContrastLoss,
    RankNContrastLoss,
    RankSimLoss,
    SupervisedContrastLoss,
    functional,
)
from dadl_ext.distributed import gather_batch

SIZES = (7, 5, 0)
TOGETHER = {"gather_distributed": True, "averaged_gradients": True}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ranksim(settings: dict[str, Any]) -> Loss:
    loss = RankSimLoss(weight=3.0, **settings)
    return lambda features, labels, key: loss(features, labels)


def rank_n_contrast(settings: dict[str, Any]) -> Loss:
    loss = RankNContrastLoss(**settings)
    return lambda features, labels, key: loss(features, labels)


def supervised(settings: dict[str, Any]) -> Loss:
    loss = SupervisedContrastLoss(temperature=0.5, **settings)
    return lambda features, labels, key: loss(features, labels.long() % 3)


def group_contrast(settings: dict[str, Any], **more: Any) -> Loss:
    torch.manual_seed(5)
    loss = PseudoGroupContrastLoss(3, 5, slots=4, temperature=0.5, **settings, **more)
    return lambda features, labels, key: loss(features, key, labels.long() % 4 - 1)  # -1: does not count


def info_nce(settings: dict[str, Any]) -> Loss:
    def loss(features: Tensor, labels: Tensor, key: Tensor) -> Tensor:
        query, other = normalize(features, dim=1), normalize(features * key, dim=1)
        if settings:
            query, other = gather_batch(query, other, averaged_gradients=True)
        lse = functional.similarity_logsumexp(query, other, scale=2.0)
        return (lse - 2 * (query * other).sum(dim=1)).mean()

    return loss


LOSSES: dict[str, Callable[[dict[str, Any]], Loss]] = {
    "RankSim": ranksim,
    "Rank-N-Contrast": rank_n_contrast,
    "supervised contrast": supervised,
    "group contrast": group_contrast,
    "group contrast, sum": lambda settings: group_contrast(settings, reduction="sum"),
    "InfoNCE": info_nce,
}


def rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    n = sum(SIZES)
    images, key = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return images, torch.randperm(n, generator=generator).float(), key


def gradient(model: nn.Module, parameter: Callable[[], Tensor], loss: Loss, rank: int | None) -> tuple[Tensor, Tensor]:
    images, labels, key = rows() if rank is None else (value.split(SIZES)[rank] for value in rows())
    value = loss(model(images), labels, key)
    value.backward()
    return value.detach(), parameter()


def encoder() -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(6, 5)


def under_ddp(rank: int) -> dict[str, Any]:
    results = {}
    for name, make in LOSSES.items():
        network = encoder()
        model = DistributedDataParallel(network)
        results[name] = gradient(model, lambda n=network: n.weight.grad, make(TOGETHER), rank)
    return results


def under_fsdp(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (len(SIZES),))
    results = {}
    for name, make in LOSSES.items():
        network = encoder()
        fully_shard(network, mesh=mesh)

        def whole(network: nn.Linear = network) -> Tensor:
            assert isinstance(network.weight.grad, DTensor)
            return network.weight.grad.full_tensor()

        results[name] = gradient(network, whole, make(TOGETHER), rank)
    return results


@pytest.mark.parametrize("job", [under_ddp, pytest.param(under_fsdp, marks=pytest.mark.slow)])
def test_gradient_is_that_of_the_whole_batch(job: Callable[[int], dict[str, Any]]) -> None:
    processes = in_processes(len(SIZES), job)
    for name, make in LOSSES.items():
        network = encoder()
        expected = gradient(network, lambda n=network: n.weight.grad, make({}), None)
        for results in processes:
            torch.testing.assert_close(results[name], expected, msg=lambda text, n=name: f"{n}: {text}")


def many_steps(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    queue = ClassQueue(3, 4, 5, gather_distributed=True)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(200):
        n = int(torch.randint(0, 8, (), generator=generator))
        target = torch.randint(3, (n,), generator=generator, dtype=torch.int32)
        queue.enqueue(torch.randn(n, 4, generator=generator), target, torch.rand(n, generator=generator) < 0.8)
    return dict(queue.state_dict())


@pytest.mark.slow
def test_queues_are_identical_after_many_uneven_steps() -> None:
    first, *others = in_processes(3, many_steps)
    assert first["slot_count"].tolist() == [5, 5, 5]
    for other in others:
        for name, value in first.items():
            assert torch.equal(other[name], value)


def without_rows(rank: int) -> dict[str, Any]:
    results = {}
    for name, make in LOSSES.items():
        leaf = torch.zeros(0, 5, requires_grad=True)
        value = make(TOGETHER)(leaf, torch.zeros(0), torch.zeros(0, 5))
        value.sum().backward()
        results[name] = (value.detach(), leaf.grad)
    dist.barrier()
    return results


def test_no_rows_anywhere() -> None:
    for results in in_processes(2, without_rows):
        for name, (value, grad) in results.items():
            assert grad.shape == (0, 5)
            assert value.item() == 0 or name == "InfoNCE"  # whose mean of nothing is NaN
