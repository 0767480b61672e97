"""gather_distributed with two gloo processes: one loss, gradients to the local rows, equal to one process."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dadl_ext import RankSimLoss, functional, reference

SIZES = (9, 14)  # batches may differ between processes


def whole_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(SIZES)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 12, (n,), generator=generator).float()


def local(value: Tensor, rank: int) -> Tensor:
    return value.split(SIZES)[rank]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SIZES))
    torch.set_num_threads(1)
    results = {}
    for name, function in (("functional", functional.ranksim_loss), ("reference", reference.ranksim_loss)):
        x, labels = whole_batch(0)
        leaf = local(x, rank).clone().requires_grad_()
        generator = torch.Generator().manual_seed(rank)  # each process draws for its own rows
        loss = function(leaf, local(labels, rank), weight=5.0, generator=generator, gather_distributed=True)
        loss.backward()
        results[name] = (loss.detach(), leaf.grad)

    # An encoder under DDP, which averages gradients: the loss times the world size trains as one process would.
    x, labels = whole_batch(1)
    torch.manual_seed(7)
    encoder = DistributedDataParallel(nn.Linear(6, 5))
    ranksim = RankSimLoss(weight=5.0, gather_distributed=True)
    features = encoder(local(x, rank))
    loss = ranksim(features, torch.arange(sum(SIZES)).split(SIZES)[rank])
    (loss * dist.get_world_size()).backward()
    results["ddp"] = encoder.module.weight.grad

    empty = functional.ranksim_loss(torch.zeros(0, 6), torch.zeros(0), gather_distributed=True)
    results["empty"] = empty
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder,), nprocs=len(SIZES))
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(len(SIZES)))

    for name in ("functional", "reference"):
        (loss_a, gradient_a), (loss_b, gradient_b) = first[name], second[name]
        assert torch.equal(loss_a, loss_b)
        gradient = torch.cat([gradient_a, gradient_b])
        # One process, with the priorities that the two have drawn.
        x, labels = whole_batch(0)
        priority = torch.cat(
            [
                torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(r))
                for r, n in enumerate(SIZES)
            ]
        )
        chosen = reference.ranksim.select_subset(labels, priority)
        leaf = x[chosen].clone().requires_grad_()
        loss = functional.ranksim_loss(leaf, labels[chosen], weight=5.0)
        loss.backward()
        torch.testing.assert_close(loss_a, loss.detach())
        torch.testing.assert_close(gradient[chosen], leaf.grad)
        left_out = torch.ones(len(x), dtype=torch.bool)
        left_out[chosen] = False
        assert gradient[left_out].eq(0).all()
        assert left_out.any()

    x, _ = whole_batch(1)
    torch.manual_seed(7)
    encoder = nn.Linear(6, 5)
    functional.ranksim_loss(encoder(x), torch.arange(sum(SIZES)), weight=5.0).backward()
    torch.testing.assert_close(first["ddp"], encoder.weight.grad)
    torch.testing.assert_close(second["ddp"], encoder.weight.grad)
    assert first["empty"].item() == 0


def test_without_a_process_group_it_is_the_local_loss() -> None:
    x, labels = whole_batch(0)
    losses = [
        functional.ranksim_loss(x, labels, generator=torch.Generator().manual_seed(0), gather_distributed=gather)
        for gather in (False, True)
    ]
    assert torch.equal(*losses)
