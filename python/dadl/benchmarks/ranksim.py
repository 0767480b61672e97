"""Ranks and RankSim against the best eager PyTorch that we can write, and against torch.compile of it.

Forward and backward together for the loss, all labels distinct.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dadl_ext import functional

from .harness import BenchmarkTable, Harness, Numbers, milliseconds, ratio, speedup

RANKS, QUICK_RANKS = (64, 256, 1024), (8,)
SIZES, QUICK_SIZES = ((64, 512), (256, 512), (1024, 512), (256, 2048)), ((8, 4), (300, 4))
LARGEST_LOOP = 256


def sort_scatter_rank(values: Tensor) -> Tensor:
    """Ranks from one stable sort and one scatter: half the work of a double argsort."""
    n = values.shape[-1]
    ascending = torch.sort(values, dim=-1, stable=True).indices
    position = torch.arange(n, 0, -1, device=values.device, dtype=values.dtype).expand(values.shape)
    return torch.empty_like(values).scatter_(-1, ascending, position)


def double_argsort_rank(values: Tensor) -> Tensor:
    ascending = torch.argsort(values, dim=-1, stable=True)
    return values.shape[-1] - torch.argsort(ascending, dim=-1, stable=True).to(values.dtype)


def eager_forward(x: Tensor, labels: Tensor, strength: float, weight: float) -> tuple[Tensor, Tensor]:
    """Loss and hand-written gradient in one pass, float32: what a careful user would write. Labels all distinct."""
    m = x.shape[0]
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    unit = x / norm
    similarity = unit @ unit.T
    label_rank = sort_scatter_rank(-(labels[:, None] - labels[None, :]).abs())
    rank = sort_scatter_rank(similarity)
    difference = (rank - label_rank) / m
    loss = weight * difference.square().mean(dim=1).sum()
    perturbed = sort_scatter_rank(similarity + (strength * weight * 2 / m) * difference)
    gradient = (perturbed - rank) / (m * (strength + 1e-8))
    unit_gradient = (gradient + gradient.T) @ unit
    return loss, (unit_gradient - unit * (unit_gradient * unit).sum(dim=1, keepdim=True)) / norm


compiled_forward = torch.compile(eager_forward)


def make_eager(forward: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]) -> Any:
    class EagerRankSim(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, labels: Tensor, strength: float, weight: float) -> Tensor:
            loss, gradient = forward(x, labels, strength, weight)
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
            (gradient,) = ctx.saved_tensors
            return grad * gradient, None, None, None

    return EagerRankSim.apply


def published_loop(x: Tensor, labels: Tensor, strength: float, weight: float) -> Tensor:
    """Row by row with the blackbox rank operator, as in research code."""
    m = x.shape[0]
    unit = F.normalize(x, dim=1)
    similarity = unit @ unit.T
    loss = x.new_zeros(())
    for i in range(m):
        label_rank = double_argsort_rank(-(labels[i] - labels).abs()) / m
        rank = functional.rank(similarity[i], strength) / m
        loss = loss + weight * F.mse_loss(rank, label_rank)
    return loss


def rank_case(m: int, harness: Harness) -> dict[str, Numbers]:
    values = torch.randn(m, m, device=harness.device)
    candidates = {
        "dadl": lambda: functional.rank(values),
        "double argsort": lambda: double_argsort_rank(values),
        "sort + scatter": lambda: sort_scatter_rank(values),
    }
    return {f"{m}×{m}": harness.medians(candidates)}


def loss_case(m: int, d: int, harness: Harness) -> dict[str, Numbers]:
    x = torch.randn(m, d, device=harness.device, requires_grad=True)
    labels = torch.randperm(m, device=harness.device).float()
    detached, square = x.detach(), torch.randn(m, m, device=harness.device)
    eager, compiled = make_eager(eager_forward), make_eager(compiled_forward)

    def step(loss: Tensor) -> None:
        x.grad = None
        loss.backward()

    candidates = {
        "dadl": lambda: step(functional.ranksim_loss(x, labels)),
        "eager": lambda: step(eager(x, labels, 2.0, 1.0)),
        "torch.compile": lambda: step(compiled(x, labels, 2.0, 1.0)),
        "two products": lambda: (detached @ detached.T, square @ detached),
    }
    numbers = harness.medians(candidates)
    if m <= LARGEST_LOOP:
        # Measured separately: the thousands of small operations in the loop would cool the caches of the others.
        pair = {
            "dadl beside the loop": candidates["dadl"],
            "row loop": lambda: step(published_loop(x, labels, 2.0, 1.0)),
        }
        numbers |= harness.medians(pair)
    return {f"{m}, {d}": numbers}


def tables(quick: bool) -> list[BenchmarkTable]:
    return [
        BenchmarkTable(
            name="rank",
            header="rank of",
            columns=(milliseconds(digits=3), speedup("double argsort"), speedup("sort + scatter")),
            notes="float32, random normal values.",
            cases=[partial(rank_case, m) for m in (QUICK_RANKS if quick else RANKS)],
        ),
        BenchmarkTable(
            name="ranksim",
            header="m, d",
            columns=(
                milliseconds(digits=3),
                speedup("eager"),
                speedup("torch.compile"),
                speedup("row loop", "dadl beside the loop", title="row loop / dadl", digits=0),
                ratio("dadl", "two products"),
            ),
            notes="float32, forward + backward, distinct labels, γ = 1. `eager` is vectorised: sort + scatter ranks, "
            "hand-written gradient, no subset selection. `two products` are the bare float32 X Xᵀ and G X. "
            "The row loop, measured in a run of its own, uses dadl's rank operator on each row.",
            cases=[partial(loss_case, m, d) for m, d in (QUICK_SIZES if quick else SIZES)],
        ),
    ]
