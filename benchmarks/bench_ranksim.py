"""Ranks and RankSim against the best eager PyTorch that we can write, and against torch.compile of it.

    python benchmarks/bench_ranksim.py [--threads 2] [--seconds 3]

Ratios of interleaved medians; forward and backward together for the loss, all labels distinct.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from harness import interleaved_medians, write_results
from torch import Tensor

from dadl_ext import functional


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


def make_eager(forward: Any) -> Any:
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
    """Row by row with the blackbox rank operator, as research code does it."""
    m = x.shape[0]
    unit = F.normalize(x, dim=1)
    similarity = unit @ unit.T
    loss = x.new_zeros(())
    for i in range(m):
        label_rank = double_argsort_rank(-(labels[i] - labels).abs()) / m
        rank = functional.rank(similarity[i], strength) / m
        loss = loss + weight * F.mse_loss(rank, label_rank)
    return loss


def rank_row(m: int, device: str, seconds: float) -> dict[str, Any]:
    values = torch.randn(m, m, device=device)
    median = interleaved_medians(
        {
            "dadl": lambda: functional.rank(values),
            "argsort": lambda: double_argsort_rank(values),
            "sort": lambda: sort_scatter_rank(values),
        },
        seconds,
    )
    return {
        "rank of": f"{m}×{m}",
        "ms": f"{1e3 * median['dadl']:.3f}",
        "double argsort / dadl": f"{median['argsort'] / median['dadl']:.1f}",
        "sort + scatter / dadl": f"{median['sort'] / median['dadl']:.1f}",
    }


def loss_row(m: int, d: int, device: str, seconds: float) -> dict[str, Any]:
    x = torch.randn(m, d, device=device, requires_grad=True)
    labels = torch.randperm(m, device=device).float()
    detached, square = x.detach(), torch.randn(m, m, device=device)
    eager, compiled = make_eager(eager_forward), make_eager(compiled_forward)

    def step(loss: Tensor) -> None:
        x.grad = None
        loss.backward()

    candidates = {
        "dadl": lambda: step(functional.ranksim_loss(x, labels)),
        "eager": lambda: step(eager(x, labels, 2.0, 1.0)),
        "compile": lambda: step(compiled(x, labels, 2.0, 1.0)),
        "products": lambda: (detached @ detached.T, square @ detached),
    }
    median = interleaved_medians(candidates, seconds)
    ratio = {name: median[name] / median["dadl"] for name in candidates}
    if m <= 256:
        # A run of its own: the loop's thousands of small operations would leave nobody's caches warm.
        pair = {"dadl": candidates["dadl"], "loop": lambda: step(published_loop(x, labels, 2.0, 1.0))}
        median_pair = interleaved_medians(pair, seconds)
        ratio["loop"] = median_pair["loop"] / median_pair["dadl"]
    return {
        "m, d": f"{m}, {d}",
        "ms": f"{1e3 * median['dadl']:.3f}",
        "eager / dadl": f"{ratio['eager']:.1f}",
        "torch.compile / dadl": f"{ratio['compile']:.1f}",
        "row loop / dadl": f"{ratio['loop']:.0f}" if "loop" in ratio else "–",
        "dadl / two products": f"{1 / ratio['products']:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank_rows = [rank_row(m, device, arguments.seconds) for m in (64, 256, 1024)]
    write_results("rank", rank_rows, "float32, random normal values.")
    write_results(
        "ranksim",
        [loss_row(m, d, device, arguments.seconds) for m, d in ((64, 512), (256, 512), (1024, 512), (256, 2048))],
        "float32, forward + backward, distinct labels, γ = 1. `eager` is vectorised: sort + scatter ranks, "
        "hand-written gradient, no subset selection. `two products` are the bare float32 X Xᵀ and G X. "
        "The row loop, measured in a run of its own, uses dadl's rank operator on each row.",
    )


if __name__ == "__main__":
    main()
