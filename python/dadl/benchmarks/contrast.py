"""The contrasts against the best eager PyTorch that we can write, torch.compile of it, and pytorch-metric-learning.

Forward and backward together, float32.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dadl_ext import PseudoGroupContrastLoss, SupervisedContrastLoss, functional

from .harness import BenchmarkTable, Harness, Numbers, milliseconds, ratio, speedup

TEMPERATURE = 0.07
LIBRARY = "pytorch-metric-learning"
SIZES, QUICK_SIZES = ((256, 1000, 32, 128), (24, 200, 32, 1024), (64, 100, 8, 128)), ((4, 3, 2, 8),)
SUPERVISED_SIZES, QUICK_SUPERVISED_SIZES = ((256, 10, 128), (1024, 10, 128), (1024, 100, 128)), ((8, 2, 4),)


def metric_learning(harness: Harness) -> Any | None:
    """The losses of pytorch-metric-learning, if it is installed."""
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError as error:
        harness.say_once(f"{error.name} is not installed, {LIBRARY} is left out: pip install 'dadl[bench]'")
        return None
    return losses


def library_version() -> str:
    try:
        return f"{LIBRARY} {importlib.metadata.version(LIBRARY)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{LIBRARY} (not installed here)"


def dense(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """All similarities at once, positives by class sums, without a mask or a gather."""
    own = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ queue.flatten(0, 1).T], dim=1) / TEMPERATURE
    positives = key + queue.sum(dim=1)[target]
    mean_positive = (query * positives).sum(dim=1) / ((queue.shape[1] + 1) * TEMPERATURE)
    return (logits.logsumexp(dim=1) - mean_positive).mean()


compiled_dense = torch.compile(dense)


def dense_supervised(features: Tensor, labels: Tensor) -> Tensor:
    """All similarities at once, positives by class sums; labels 0, 1, ..., each with two samples or more."""
    z = F.normalize(features, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    denominator = (z @ z.T / TEMPERATURE).masked_fill(own, -torch.inf).logsumexp(dim=1)
    count = torch.bincount(labels)
    sums = z.new_zeros(len(count), z.shape[1]).index_add(0, labels, z)
    mean_positive = (z * (sums[labels] - z)).sum(dim=1) / ((count[labels] - 1) * TEMPERATURE)
    return (denominator - mean_positive).mean()


compiled_dense_supervised = torch.compile(dense_supervised)


def attention(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """The gradient of the query as one attention with values = keys; it does not give the loss itself."""
    keys = queue.flatten(0, 1)[None, None]
    return F.scaled_dot_product_attention(query[None, None], keys, keys, scale=1 / TEMPERATURE)


def published_loop(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """Sample by sample with a copy of the negatives, as in research code."""
    loss = query.new_zeros(())
    for q, k, y in zip(query, key, target.tolist(), strict=True):
        positives = torch.cat([k[None], queue[y]])
        negatives = torch.cat([queue[:y], queue[y + 1 :]]).flatten(0, 1)
        logits = torch.cat([positives @ q, negatives @ q]) / TEMPERATURE
        loss = loss + logits.logsumexp(dim=0) - logits[: len(positives)].mean()
    return loss / len(query)


def contrast_case(b: int, c: int, slots: int, d: int, harness: Harness) -> dict[str, Numbers]:
    query, key = F.normalize(torch.randn(2, b, d, device=harness.device), dim=-1)
    queue = F.normalize(torch.randn(c, slots, d, device=harness.device), dim=-1)
    target = torch.randint(c, (b,), device=harness.device)
    leaf = query.clone().requires_grad_()
    keys, square = queue.flatten(0, 1), torch.rand(b, c * slots, device=harness.device)

    def step(function: Any) -> None:
        leaf.grad = None
        function(leaf, key, queue, target).backward()

    candidates = {
        "dadl": lambda: step(functional.pseudo_group_contrast),
        "eager": lambda: step(dense),
        "torch.compile": lambda: step(compiled_dense),
        "attention": lambda: attention(query, key, queue, target),
        "two products": lambda: (query @ keys.T, square @ keys),
    }
    pair = {"eager beside the loop": candidates["eager"], "sample loop": lambda: step(published_loop)}
    return {f"{b}, {c}, {slots}, {d}": harness.medians(candidates) | harness.medians(pair)}


def supervised_case(n: int, classes: int, d: int, harness: Harness) -> dict[str, Numbers]:
    features = torch.randn(n, d, device=harness.device, requires_grad=True)
    labels = torch.arange(n, device=harness.device) % classes
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dadl": SupervisedContrastLoss(temperature=TEMPERATURE),
        "eager": dense_supervised,
        "torch.compile": compiled_dense_supervised,
    }
    library = metric_learning(harness)
    if library is not None:
        losses["SupConLoss"] = library.SupConLoss(temperature=TEMPERATURE)

    def step(name: str) -> None:
        features.grad = None
        losses[name](features, labels).backward()

    numbers = harness.medians({name: partial(step, name) for name in losses})
    for name in numbers:
        torch.testing.assert_close(losses[name](features, labels), losses["dadl"](features, labels), rtol=1e-5, atol=0)
    return {f"{n}, {classes}, {d}": numbers}


def memory_case(b: int, c: int, slots: int, d: int, harness: Harness) -> dict[str, Numbers]:
    """A training step including the update of the memory, which is full from the start on both sides."""
    query, key = torch.randn(2, b, d, device=harness.device)
    target = torch.randint(c, (b,), device=harness.device)
    query.requires_grad_()
    group = PseudoGroupContrastLoss(c, d, slots=slots, temperature=TEMPERATURE).to(harness.device)

    def group_step() -> None:
        query.grad = None
        group(query, key, target).backward()

    candidates = {"dadl": group_step}
    library = metric_learning(harness)
    if library is not None:
        batch_target = target.repeat(2)
        are_keys = torch.arange(2 * b, device=harness.device) >= b
        loss = library.SupConLoss(temperature=TEMPERATURE)
        memory = library.CrossBatchMemory(loss, d, memory_size=c * slots + b).to(harness.device)
        classes = torch.cat([torch.arange(c, device=harness.device).repeat_interleave(slots), target])
        memory.add_to_memory(torch.cat([group.queue.keys.flatten(0, 1), key]), classes, len(classes))

        def memory_step() -> None:
            query.grad = None
            memory(torch.cat([query, key]), batch_target, enqueue_mask=are_keys).backward()

        candidates["CrossBatchMemory"] = memory_step
    return {f"{b}, {c}, {slots}, {d}": harness.medians(candidates)}


def tables(quick: bool) -> list[BenchmarkTable]:
    sizes = QUICK_SIZES if quick else SIZES
    return [
        BenchmarkTable(
            name="group-contrast",
            header="B, C, D, d",
            columns=(
                milliseconds(),
                speedup("eager", digits=2),
                speedup("torch.compile", digits=2),
                ratio("attention", "dadl", better="higher"),
                ratio("sample loop", "eager beside the loop", title="sample loop / eager", digits=1, better=None),
                ratio("dadl", "two products"),
            ),
            notes="float32, forward + backward. `eager` forms all similarities and takes the positives through class "
            "sums. `attention` is `scaled_dot_product_attention` with values = keys: the gradient's larger part in one "
            "pass, without the loss. `two products` are the bare Q Kᵀ and P K. The sample loop is measured in a run "
            "of its own.",
            cases=[partial(contrast_case, *size) for size in sizes],
        ),
        BenchmarkTable(
            name="supervised-contrast",
            header="n, classes, d",
            columns=(
                milliseconds(),
                speedup("eager", digits=2),
                speedup("torch.compile", digits=2),
                speedup("SupConLoss", digits=2),
            ),
            notes="float32, normalisation + forward + backward, classes of equal size. `SupConLoss` is that of "
            f"{library_version()}: the same mathematics where every sample has a positive, as here. All losses that "
            "were measured are equal to a relative 1e-5.",
            cases=[partial(supervised_case, *size) for size in (QUICK_SUPERVISED_SIZES if quick else SUPERVISED_SIZES)],
        ),
        BenchmarkTable(
            name="cross-batch-memory",
            header="B, C, D, d",
            columns=(milliseconds(), speedup("CrossBatchMemory")),
            notes="float32, normalisation + forward + backward + storing the keys. `CrossBatchMemory` is that of "
            f"{library_version()}, around its `SupConLoss`, with queries against the stored keys of another encoder. "
            "**Not the same mathematics**, but the nearest that it has: as many keys, all in the denominator and "
            "those of the query's class positive. But whatever their class the oldest keys leave, and a query also "
            "meets the other keys of its batch.",
            cases=[partial(memory_case, *size) for size in sizes],
        ),
    ]
