"""The contrasts against the best eager PyTorch that we can write, torch.compile of it, and pytorch-metric-learning.

    python benchmarks/bench_contrast.py [--threads 2] [--seconds 3]

Ratios of interleaved medians, forward and backward together, float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_metric_learning
import torch
import torch.nn.functional as F
from harness import interleaved_medians, write_results
from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss
from torch import Tensor

from dadl_ext import PseudoGroupContrastLoss, SupervisedContrastLoss, functional

TEMPERATURE = 0.07


def dense(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """All similarities at once, positives through class sums: neither mask nor gather over them."""
    own = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ queue.flatten(0, 1).T], dim=1) / TEMPERATURE
    positives = key + queue.sum(dim=1)[target]
    mean_positive = (query * positives).sum(dim=1) / ((queue.shape[1] + 1) * TEMPERATURE)
    return (logits.logsumexp(dim=1) - mean_positive).mean()


compiled_dense = torch.compile(dense)


def dense_supervised(features: Tensor, labels: Tensor) -> Tensor:
    """All similarities at once, positives through class sums; labels 0, 1, ..., each of two samples or more."""
    z = F.normalize(features, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    denominator = (z @ z.T / TEMPERATURE).masked_fill(own, -torch.inf).logsumexp(dim=1)
    count = torch.bincount(labels)
    sums = z.new_zeros(len(count), z.shape[1]).index_add(0, labels, z)
    mean_positive = (z * (sums[labels] - z)).sum(dim=1) / ((count[labels] - 1) * TEMPERATURE)
    return (denominator - mean_positive).mean()


compiled_dense_supervised = torch.compile(dense_supervised)


def attention(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """The query's gradient as one attention with values = keys; the loss itself does not come out of it."""
    keys = queue.flatten(0, 1)[None, None]
    return F.scaled_dot_product_attention(query[None, None], keys, keys, scale=1 / TEMPERATURE)


def published_loop(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """Sample by sample with a copy of the negatives, as research code does it."""
    loss = query.new_zeros(())
    for q, k, y in zip(query, key, target.tolist(), strict=True):
        positives = torch.cat([k[None], queue[y]])
        negatives = torch.cat([queue[:y], queue[y + 1 :]]).flatten(0, 1)
        logits = torch.cat([positives @ q, negatives @ q]) / TEMPERATURE
        loss = loss + logits.logsumexp(dim=0) - logits[: len(positives)].mean()
    return loss / len(query)


def contrast_row(b: int, c: int, slots: int, d: int, device: str, seconds: float) -> dict[str, Any]:
    query, key = F.normalize(torch.randn(2, b, d, device=device), dim=-1)
    queue = F.normalize(torch.randn(c, slots, d, device=device), dim=-1)
    target = torch.randint(c, (b,), device=device)
    leaf = query.clone().requires_grad_()
    keys, square = queue.flatten(0, 1), torch.rand(b, c * slots, device=device)

    def step(function: Any) -> None:
        leaf.grad = None
        function(leaf, key, queue, target).backward()

    candidates = {
        "dadl": lambda: step(functional.pseudo_group_contrast),
        "eager": lambda: step(dense),
        "compile": lambda: step(compiled_dense),
        "attention": lambda: attention(query, key, queue, target),
        "products": lambda: (query @ keys.T, square @ keys),
    }
    median = interleaved_medians(candidates, seconds)
    pair = {"eager": candidates["eager"], "loop": lambda: step(published_loop)}
    loop = interleaved_medians(pair, seconds)
    return {
        "B, C, D, d": f"{b}, {c}, {slots}, {d}",
        "ms": f"{1e3 * median['dadl']:.2f}",
        "eager / dadl": f"{median['eager'] / median['dadl']:.2f}",
        "torch.compile / dadl": f"{median['compile'] / median['dadl']:.2f}",
        "attention / dadl": f"{median['attention'] / median['dadl']:.2f}",
        "sample loop / eager": f"{loop['loop'] / loop['eager']:.1f}",
        "dadl / two products": f"{median['dadl'] / median['products']:.2f}",
    }


def supervised_row(n: int, classes: int, d: int, device: str, seconds: float) -> dict[str, Any]:
    features = torch.randn(n, d, device=device, requires_grad=True)
    labels = torch.arange(n, device=device) % classes
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dadl": SupervisedContrastLoss(temperature=TEMPERATURE),
        "eager": dense_supervised,
        "compile": compiled_dense_supervised,
        "SupConLoss": SupConLoss(temperature=TEMPERATURE),
    }
    for loss in losses.values():
        torch.testing.assert_close(loss(features, labels), losses["dadl"](features, labels), rtol=1e-5, atol=0)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        features.grad = None
        loss(features, labels).backward()

    median = interleaved_medians({name: partial(step, loss) for name, loss in losses.items()}, seconds)
    return {
        "n, classes, d": f"{n}, {classes}, {d}",
        "ms": f"{1e3 * median['dadl']:.2f}",
        "eager / dadl": f"{median['eager'] / median['dadl']:.2f}",
        "torch.compile / dadl": f"{median['compile'] / median['dadl']:.2f}",
        "SupConLoss / dadl": f"{median['SupConLoss'] / median['dadl']:.2f}",
    }


def memory_row(b: int, c: int, slots: int, d: int, device: str, seconds: float) -> dict[str, Any]:
    """A training step with what it does to the memory, which is full from the start on both sides."""
    query, key = torch.randn(2, b, d, device=device)
    target = torch.randint(c, (b,), device=device)
    query.requires_grad_()
    group = PseudoGroupContrastLoss(c, d, slots=slots, temperature=TEMPERATURE).to(device)
    batch_target = target.repeat(2)
    are_keys = torch.arange(2 * b, device=device) >= b
    memory = CrossBatchMemory(SupConLoss(temperature=TEMPERATURE), d, memory_size=c * slots + b).to(device)
    classes = torch.cat([torch.arange(c, device=device).repeat_interleave(slots), target])
    memory.add_to_memory(torch.cat([group.queue.keys.flatten(0, 1), key]), classes, len(classes))

    def group_step() -> None:
        query.grad = None
        group(query, key, target).backward()

    def memory_step() -> None:
        query.grad = None
        memory(torch.cat([query, key]), batch_target, enqueue_mask=are_keys).backward()

    median = interleaved_medians({"dadl": group_step, "memory": memory_step}, seconds)
    return {
        "B, C, D, d": f"{b}, {c}, {slots}, {d}",
        "ms": f"{1e3 * median['dadl']:.2f}",
        "CrossBatchMemory / dadl": f"{median['memory'] / median['dadl']:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ((256, 1000, 32, 128), (24, 200, 32, 1024), (64, 100, 8, 128))
    write_results(
        "group-contrast",
        [contrast_row(*size, device, arguments.seconds) for size in sizes],
        "float32, forward + backward. `eager` forms all similarities and takes the positives through class sums. "
        "`attention` is `scaled_dot_product_attention` with values = keys: the gradient's larger part in one pass, "
        "without the loss. `two products` are the bare Q Kᵀ and P K. The sample loop is measured in a run of its own.",
    )
    library = f"pytorch-metric-learning {pytorch_metric_learning.__version__}"
    supervised_sizes = ((256, 10, 128), (1024, 10, 128), (1024, 100, 128))
    write_results(
        "supervised-contrast",
        [supervised_row(*size, "cpu", arguments.seconds) for size in supervised_sizes],
        f"float32, normalisation + forward + backward, classes of equal size. `SupConLoss` is that of {library}: the "
        "same mathematics where every sample has a positive, as here. All four losses were equal to a relative 1e-5 "
        "before they were measured.",
    )
    write_results(
        "cross-batch-memory",
        [memory_row(*size, "cpu", arguments.seconds) for size in sizes],
        "float32, normalisation + forward + backward + storing the keys. `CrossBatchMemory` is that of "
        f"{library}, around its `SupConLoss`, with queries against the stored keys of another encoder. **Not the same "
        "mathematics**, but the nearest that it has: as many keys, all in the denominator and those of the query's "
        "class positive. But whatever their class the oldest keys leave, and a query also meets the other keys of its "
        "batch.",
    )


if __name__ == "__main__":
    main()
