"""Pseudo group contrast against the best eager PyTorch that we can write, and against torch.compile of it.

    python benchmarks/bench_contrast.py [--threads 2] [--seconds 3]

Ratios of interleaved medians, forward and backward together, float32.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from harness import interleaved_medians, write_results
from torch import Tensor

from dadl_ext import functional

TEMPERATURE = 0.07


def dense(query: Tensor, key: Tensor, queue: Tensor, target: Tensor) -> Tensor:
    """All similarities at once, positives through class sums: neither mask nor gather over them."""
    own = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ queue.flatten(0, 1).T], dim=1) / TEMPERATURE
    positives = key + queue.sum(dim=1)[target]
    mean_positive = (query * positives).sum(dim=1) / ((queue.shape[1] + 1) * TEMPERATURE)
    return (logits.logsumexp(dim=1) - mean_positive).mean()


compiled_dense = torch.compile(dense)


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


if __name__ == "__main__":
    main()
