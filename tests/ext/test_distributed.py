"""Two gloo processes give one loss with gradients to the local rows, one class queue, one set of FDS statistics, and
sample weights that are learnt from the rows of both."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dadl import CMWNet, FeatureDistributionSmoothing, MetaReweighter, meta_weight_gradient
from dadl.cmw_net.soft_labels import SoftLabelReweighter, mixed_objective
from support.processes import in_processes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

from dadl_ext import ClassQueue, PseudoGroupContrastLoss, RankSimLoss, functional, reference
from dadl_ext.distributed import gather_batch

SIZES = (9, 14)  # batches may differ between processes


def whole_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(SIZES)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 12, (n,), generator=generator).float()


def local(value: Tensor, rank: int) -> Tensor:
    return value.split(SIZES)[rank]


def gather_job(rank: int) -> Tensor | None:
    x, _ = whole_batch(0)
    leaf = local(x, rank).clone().requires_grad_()
    (whole,) = gather_batch(leaf)
    assert torch.equal(whole, x)
    (whole * x).sum().backward()
    return leaf.grad


def test_gathered_rows_have_the_gradient_of_one_process() -> None:
    gradients = in_processes(2, gather_job)
    x, _ = whole_batch(0)
    assert torch.equal(torch.cat(gradients), x)


def ranksim_job(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
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
    return results


def test_ranksim_of_two_processes_equals_one() -> None:
    first, second = in_processes(2, ranksim_job)
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


def test_ranksim_without_a_process_group_is_the_local_loss() -> None:
    x, labels = whole_batch(0)
    losses = [
        functional.ranksim_loss(x, labels, generator=torch.Generator().manual_seed(0), gather_distributed=gather)
        for gather in (False, True)
    ]
    assert torch.equal(*losses)


def rank_n_contrast_job(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, function in (("functional", functional.rank_n_contrast), ("reference", reference.rank_n_contrast)):
        x, labels = whole_batch(0)
        leaf = local(x, rank).clone().requires_grad_()
        loss = function(leaf, local(labels, rank), gather_distributed=True)
        loss.backward()
        results[name] = (loss.detach(), leaf.grad)
    return results


def test_rank_n_contrast_of_two_processes_equals_one() -> None:
    processes = in_processes(2, rank_n_contrast_job)
    x, labels = whole_batch(0)
    leaf = x.clone().requires_grad_()
    loss = functional.rank_n_contrast(leaf, labels)
    loss.backward()
    for name in ("functional", "reference"):
        for results in processes:
            torch.testing.assert_close(results[name][0], loss.detach())
        torch.testing.assert_close(torch.cat([results[name][1] for results in processes]), leaf.grad)


CLASSES, SLOTS, DIM = 3, 4, 8
# Rows of each process, step by step: uneven, none in one process, none at all, and more than SLOTS of every class.
STEPS = ((5, 2), (0, 4), (3, 0), (0, 0), (40, 30), (1, 1))


def contrast_rows(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, target and enqueue mask of both processes, in rank order."""
    generator = torch.Generator().manual_seed(step)
    n = sum(STEPS[step])
    query, key = torch.randn(2, n, DIM, generator=generator)
    target = torch.randint(CLASSES, (n,), generator=generator)
    return query, key, target, torch.rand(n, generator=generator) < 0.7


def contrast_steps(rank: int | None) -> dict[str, Any]:
    """What a queue and a loss hold after each step; with the rows of one process, or of both at once."""
    torch.manual_seed(3)
    queue = ClassQueue(CLASSES, DIM, SLOTS, gather_distributed=rank is not None)
    contrast = PseudoGroupContrastLoss(CLASSES, DIM, slots=SLOTS, reduction="none", gather_distributed=rank is not None)
    states, losses = [], []
    for step, sizes in enumerate(STEPS):
        rows = contrast_rows(step)
        query, key, target, mask = rows if rank is None else (value.split(sizes)[rank] for value in rows)
        queue.enqueue(key, target, mask)
        losses.append(contrast(query, key, target.where(mask, -1)))
        states.append({name: v.clone() for m in (queue, contrast) for name, v in m.state_dict().items()})
    return {"states": states, "losses": losses}


def test_class_queues_of_two_processes_equal_one() -> None:
    first, second = in_processes(2, contrast_steps)
    whole = contrast_steps(None)
    for states in zip(whole["states"], first["states"], second["states"], strict=True):
        for name, expected in states[0].items():
            assert torch.equal(states[1][name], expected), name
            assert torch.equal(states[2][name], expected), name
    for expected, *losses in zip(whole["losses"], first["losses"], second["losses"], strict=True):
        torch.testing.assert_close(torch.cat(losses), expected)
    # The rows fill the queue, go round, and leave something out.
    assert whole["states"][-1]["slot_count"].tolist() == [SLOTS] * CLASSES
    _, _, target, mask = contrast_rows(4)
    assert torch.bincount(target[mask], minlength=CLASSES).min() > 2 * SLOTS
    assert not mask.all()


def feature_statistics(rank: int | None) -> dict[str, Any]:
    fds = FeatureDistributionSmoothing(6, 0, 9, 9)
    for epoch in range(2):
        features, labels = whole_batch(epoch)
        rows = (features, labels) if rank is None else (local(features, rank), local(labels, rank))
        fds.observe(*rows)
        fds.end_epoch()
    return fds.state_dict()


def test_feature_statistics_of_two_processes_equal_one() -> None:
    whole = feature_statistics(None)
    for part in in_processes(2, feature_statistics):
        for name, expected in whole.items():
            torch.testing.assert_close(part[name], expected)


META_SIZES = (5, 3)
LABELS = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "jvp": {},
    "sum, every second": {"normalize": "sum", "interval": 2},
    "double backward": {"method": "double_backward"},
    "finite difference": {"method": "finite_difference"},
    "soft labels": {},
}


class MixedWithinProcesses(SoftLabelReweighter):
    """With the same λ and the same partners whether the rows of two processes come apart or together."""

    def objective(self, batch: Any) -> Any:
        inputs, targets = batch
        soft_labels = self.teacher.eval()(inputs).softmax(dim=1)
        sizes = SIZES if len(targets) == sum(SIZES) else (len(targets),)
        partner = torch.cat([rows.flip(0) for rows in torch.arange(len(targets)).split(sizes)])
        return mixed_objective(inputs, targets, soft_labels, 0.7, partner)


def weighted_network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, LABELS)).double()


def make_reweighter(variant: str) -> MetaReweighter:
    model = weighted_network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    net = CMWNet([5, 50, 51, 500]).double()
    kind = MixedWithinProcesses if variant == "soft labels" else MetaReweighter
    return kind(model, optimizer, net, meta_optimizer=Adam(net.parameters(), lr=1e-2), **VARIANTS[variant])


def labelled_rows(sizes: tuple[int, ...], seed: int, rank: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64)
    target = torch.randint(LABELS, (sum(sizes),), generator=generator)
    return (inputs, target) if rank is None else (inputs.split(sizes)[rank], target.split(sizes)[rank])


def reweighted_steps(rank: int | None) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for variant in VARIANTS:
        reweighter = make_reweighter(variant)
        steps = []
        for i in range(4):
            result = reweighter.step(
                labelled_rows(SIZES, i, rank),
                labelled_rows(META_SIZES, 100 + i, rank) if reweighter.needs_meta_batch else None,
            )
            states = [copy.deepcopy(m.state_dict()) for m in (reweighter.model, reweighter.weight_net)]
            steps.append((result.loss, result.meta_loss, states, result.weights))
        results[variant] = steps
    model = weighted_network()
    weights = torch.rand(sum(SIZES), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results["gradient"] = meta_weight_gradient(
        model,
        labelled_rows(SIZES, 0, rank),
        labelled_rows(META_SIZES, 100, rank),
        weights if rank is None else local(weights, rank),
        loss_fn=lambda output, target: F.cross_entropy(output, target, reduction="none"),
        optimizer_or_lr=0.1,
        normalize="sum",
    )
    return results


def test_weights_of_two_processes_are_learnt_as_in_one() -> None:
    first, second = in_processes(2, reweighted_steps)
    whole = reweighted_steps(None)
    for variant in VARIANTS:
        close = {"rtol": 1e-4, "atol": 1e-7} if variant == "finite difference" else {"rtol": 1e-9, "atol": 1e-12}
        for one, a, b in zip(whole[variant], first[variant], second[variant], strict=True):
            for value, in_a, in_b in zip(one[:2], a[:2], b[:2], strict=True):
                assert in_a == in_b
                torch.testing.assert_close(in_a, value, **close)
            for states in zip(one[2], a[2], b[2], strict=True):
                for name, value in states[0].items():
                    assert torch.equal(states[1][name], states[2][name]), (variant, name)
                    torch.testing.assert_close(states[1][name], value, **close, msg=f"{variant}, {name}")
            if variant == "soft labels":  # first those of the samples, then those of their partners
                weights = torch.cat([torch.cat(parts) for parts in zip(a[3].chunk(2), b[3].chunk(2), strict=True)])
            else:
                weights = torch.cat([a[3], b[3]])
            torch.testing.assert_close(weights, one[3], **close)
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]), whole["gradient"])


def steps_with_an_infinite_loss(rank: int) -> dict[str, Any]:
    reweighter = make_reweighter("jvp")
    batch, meta_batch = labelled_rows(SIZES, 0, rank), labelled_rows(META_SIZES, 100, rank)
    before = copy.deepcopy((reweighter.model.state_dict(), reweighter.weight_net.state_dict()))
    messages = []
    for i, spoilt in enumerate((batch, meta_batch)):
        inputs = spoilt[0].clone()
        inputs[2] = torch.inf if rank == 1 else inputs[2]
        wrong = (inputs, spoilt[1])
        with pytest.raises(FloatingPointError) as error:
            reweighter.step(*((wrong, meta_batch) if i == 0 else (batch, wrong)))
        messages.append(str(error.value))
    after = (reweighter.model.state_dict(), reweighter.weight_net.state_dict())
    same = all(torch.equal(a, b[name]) for state, b in zip(before, after, strict=True) for name, a in state.items())
    return {"messages": messages, "same": same, "loss": reweighter.step(batch, meta_batch).loss}


def test_no_process_steps_where_the_loss_of_another_is_infinite() -> None:
    first, second = in_processes(2, steps_with_an_infinite_loss)
    for part, message, other in zip(("batch", "meta batch"), second["messages"], first["messages"], strict=True):
        assert message.startswith(f"the loss in the {part} of row 2 is ")
        assert other == f"a loss in the {part} of another process is not finite"
    assert first["same"]
    assert second["same"]
    assert first["loss"] == second["loss"]
    torch.testing.assert_close(first["loss"], reweighted_steps(None)["jvp"][0][0])
