"""Rank-N-Contrast against the best eager PyTorch that we can write, torch.compile of it, and the published loop.

Forward and backward together, float32, all labels and label distances distinct.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dadl_ext import functional

from .harness import BenchmarkTable, Column, Harness, Numbers, milliseconds, peak_memory, ratio, speedup

TEMPERATURE = 2.0
SIZES, QUICK_SIZES = ((512, 128), (512, 512), (1024, 128), (1024, 512)), ((8, 4), (300, 4))
SCALING, QUICK_SCALING, SCALING_WIDTH = (256, 512, 1024, 2048, 4096, 8192), (8, 16), 128
LARGEST_LOOP, LARGEST_EAGER = 512, 4096


def eager_forward(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and hand-written gradient in one pass, float32: what a careful user would write. No distances are equal."""
    n = x.shape[0]
    squared = x.square().sum(dim=1)
    distance = (squared[:, None] + squared - 2 * (x @ x.T)).clamp_min(0).sqrt()
    label_distance = (labels[:, None] - labels).abs().fill_diagonal_(-1)
    order = label_distance.argsort(dim=1)[:, 1:]  # the anchor itself is first
    similarity = distance.gather(1, order) / -TEMPERATURE
    denominator = similarity.flip(1).logcumsumexp(dim=1).flip(1)
    loss = (denominator - similarity).sum() / (n * (n - 1))
    slope = (similarity + (-denominator).logcumsumexp(dim=1)).exp() - 1
    # d similarity / d distance over the distance is 1 / (τ² similarity).
    weight = torch.zeros_like(distance).scatter_(1, order, slope / (similarity * (TEMPERATURE**2 * n * (n - 1))))
    weight = weight + weight.T
    return loss, weight.sum(dim=1, keepdim=True) * x - weight @ x


compiled_forward = torch.compile(eager_forward)


def make_eager(forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    class EagerRankNContrast(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
            loss, gradient = forward(x, labels)
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            (gradient,) = ctx.saved_tensors
            return grad * gradient, None

    return EagerRankNContrast.apply


def published_loop(x: Tensor, labels: Tensor) -> Tensor:
    """Positive by positive with an [n, n] mask each, on an [n, n, d] tensor of differences, as in research code."""
    n = x.shape[0]
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    similarity = -torch.linalg.vector_norm(x[:, None] - x, dim=2) / TEMPERATURE
    similarity = similarity[others].view(n, n - 1)
    label_distance = (labels[:, None] - labels).abs()[others].view(n, n - 1)
    exponentials = similarity.exp()
    loss = x.new_zeros(())
    for j in range(n - 1):
        farther = (label_distance >= label_distance[:, j : j + 1]).float()
        loss = loss + ((farther * exponentials).sum(dim=1).log() - similarity[:, j]).sum()
    return loss / (n * (n - 1))


def make_steps(n: int, d: int, device: str) -> tuple[dict[str, Callable[[], object]], Callable[[], object]]:
    """A forward and backward pass of every candidate, and of the published loop."""
    x, labels = torch.randn(n, d, device=device, requires_grad=True), torch.rand(n, device=device)
    detached, square = x.detach(), torch.randn(n, n, device=device)
    eager, compiled = make_eager(eager_forward), make_eager(compiled_forward)

    def step(loss: Tensor) -> None:
        x.grad = None
        loss.backward()

    steps: dict[str, Callable[[], object]] = {
        "dadl": lambda: step(functional.rank_n_contrast(x, labels)),
        "eager": lambda: step(eager(x, labels)),
        "torch.compile": lambda: step(compiled(x, labels)),
        "two products": lambda: (detached @ detached.T, square @ detached),
    }
    return steps, lambda: step(published_loop(x, labels))


def loss_case(n: int, d: int, harness: Harness) -> dict[str, Numbers]:
    candidates, loop = make_steps(n, d, harness.device)
    numbers = harness.medians(candidates)
    if n <= LARGEST_LOOP:
        # Measured separately: its gigabytes of masks would cool the caches of the others.
        numbers |= harness.medians({"dadl beside the loop": candidates["dadl"], "published loop": loop})
    return {f"{n}, {d}": numbers}


def scaling_case(n: int, harness: Harness) -> dict[str, Numbers]:
    steps, loop = make_steps(n, SCALING_WIDTH, harness.device)
    candidates = {"dadl": steps["dadl"], "two products": steps["two products"]}
    if n <= LARGEST_EAGER:
        candidates["eager"] = steps["eager"]
    numbers = harness.medians(candidates)
    if n <= LARGEST_LOOP:
        numbers |= harness.medians({"published loop": loop})
    memory = peak_memory(steps["dadl"], harness.device)
    return {f"{n}": {**numbers, "dadl MiB": memory, "matrix MiB": 4 * n * n / 2**20}}


def tables(quick: bool) -> list[BenchmarkTable]:
    return [
        BenchmarkTable(
            name="rank-n-contrast",
            header="n, d",
            columns=(
                milliseconds(digits=3),
                speedup("eager"),
                speedup("torch.compile"),
                speedup("published loop", "dadl beside the loop", title="published loop / dadl", digits=0),
                ratio("dadl", "two products"),
            ),
            notes="float32, forward + backward, distinct labels, τ = 2. `eager` is vectorised: sort, logcumsumexp, "
            "gather, hand-written gradient, no equal label distances. `two products` are the bare float32 X Xᵀ and "
            "G X. The published loop, measured in a run of its own, goes through the positives with a mask each.",
            cases=[partial(loss_case, n, d) for n, d in (QUICK_SIZES if quick else SIZES)],
        ),
        BenchmarkTable(
            name="rank-n-contrast-scaling",
            header="n",
            columns=(
                milliseconds(),
                milliseconds("eager", "eager ms"),
                milliseconds("published loop", "published loop ms"),
                milliseconds("two products", "two products ms"),
                Column("peak MiB", "dadl MiB", digits=1),
                ratio("dadl MiB", "matrix MiB", title="peak / n² numbers"),
            ),
            notes=f"float32, forward + backward, d = {SCALING_WIDTH}. Memory: of the tensors that live during a step, "
            "beyond the features; also as a multiple of an [n, n] matrix of float32.",
            cases=[partial(scaling_case, n) for n in (QUICK_SCALING if quick else SCALING)],
            scaling=True,
        ),
    ]
