"""Dropout ensembles and their disagreement: a loop of dropout and linear in PyTorch, and the batched form compiled.

    python benchmarks/bench_disagreement.py [--threads 2] [--seconds 3]

Ratios of interleaved medians; forward and backward together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import interleaved_medians, write_results
from torch import Tensor

from dadl_ext import functional

P = 0.5


def dropout_loop(features: Tensor, weight: Tensor, bias: Tensor, samples: int) -> Tensor:
    """Member by member, as a user of PyTorch writes it."""
    return torch.stack([F.linear(F.dropout(features, P), weight, bias) for _ in range(samples)])


def dropout_batched(features: Tensor, weight: Tensor, bias: Tensor, samples: int) -> Tensor:
    """All members at once, at the price of a [K, B, F] tensor."""
    return F.linear(F.dropout(features.expand(samples, *features.shape), P), weight, bias)


def mse_disagreement(predictions: Tensor) -> Tensor:
    return 2 * predictions.var(dim=0).mean()


def symmetric_kl(logits: Tensor) -> Tensor:
    """From sums over members, without pairs."""
    members = len(logits)
    log_p = logits.log_softmax(dim=-1)
    p = log_p.exp()
    own = members * (p * log_p).sum(dim=(0, 2))
    return ((own - (p.sum(dim=0) * log_p.sum(dim=0)).sum(dim=-1)) / (members * (members - 1))).mean()


def jensen_shannon(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=-1)
    mean = p.mean(dim=0)
    return (torch.special.entr(mean).sum(dim=-1) - torch.special.entr(p).sum(dim=-1).mean(dim=0)).mean()


def pairwise_l1(predictions: Tensor) -> Tensor:
    """From the sorted members, without pairs."""
    members = len(predictions)
    weight = torch.arange(1 - members, members, 2, dtype=predictions.dtype, device=predictions.device)
    ordered = predictions.sort(dim=0).values
    return 2 * torch.einsum("k...,k->...", ordered, weight).mean() / (members * (members - 1))


compiled_batched = torch.compile(dropout_batched)
compiled_game = torch.compile(lambda *arguments: mse_disagreement(dropout_batched(*arguments)))
EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": mse_disagreement,
    "l1": pairwise_l1,
    "symmetric_kl": symmetric_kl,
    "js": jensen_shannon,
}


def stepper(*leaves: Tensor) -> Callable[[Tensor], None]:
    def step(loss: Tensor) -> None:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()

    return step


def dropout_row(case: tuple[int, int, int, int], device: str, seconds: float) -> dict[str, Any]:
    b, f, c, k = case
    leaves = [x.to(device).requires_grad_() for x in (torch.randn(b, f), torch.randn(c, f) / f**0.5, torch.randn(c))]
    upstream, step = torch.randn(k, b, c, device=device), stepper(*leaves)
    seed = torch.tensor(1, device=device)

    def linear(function: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: step((function(*leaves, k) * upstream).sum())

    candidates = {
        "dadl": linear(lambda *x: functional.dropout_linear(*x[:3], p=P, samples=k, seed=seed)),
        "loop": linear(dropout_loop),
        "compile": linear(compiled_batched),
        "fused": lambda: step(functional.dropout_disagreement(*leaves, p=P, samples=k, seed=seed)),
        "loop game": lambda: step(mse_disagreement(dropout_loop(*leaves, k))),
        "compile game": lambda: step(compiled_game(*leaves, k)),
    }
    median = interleaved_medians(candidates, seconds)
    return {
        "B, F, C, K": ", ".join(map(str, case)),
        "dropout_linear ms": f"{1e3 * median['dadl']:.2f}",
        "loop / dadl": f"{median['loop'] / median['dadl']:.1f}",
        "torch.compile / dadl": f"{median['compile'] / median['dadl']:.1f}",
        "dropout_disagreement ms": f"{1e3 * median['fused']:.2f}",
        "loop / dadl ": f"{median['loop game'] / median['fused']:.1f}",
        "torch.compile / dadl ": f"{median['compile game'] / median['fused']:.1f}",
    }


def disagreement_row(measure: str, device: str, seconds: float) -> dict[str, Any]:
    leaf = torch.randn(8, 256, 1000, device=device, requires_grad=True)
    step, eager = stepper(leaf), EAGER[measure]
    compiled = torch.compile(eager)
    candidates = {
        "dadl": lambda: step(functional.disagreement(leaf, measure)),
        "eager": lambda: step(eager(leaf)),
        "compile": lambda: step(compiled(leaf)),
    }
    torch.testing.assert_close(functional.disagreement(leaf, measure), eager(leaf), rtol=1e-4, atol=0)
    median = interleaved_medians(candidates, seconds)
    return {
        "measure": f"`{measure}`",
        "ms": f"{1e3 * median['dadl']:.2f}",
        "eager / dadl": f"{median['eager'] / median['dadl']:.1f}",
        "torch.compile / dadl": f"{median['compile'] / median['dadl']:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = ((256, 2048, 1, 8), (256, 2048, 1, 2), (128, 2048, 100, 4))
    write_results(
        "dropout",
        [dropout_row(case, device, arguments.seconds) for case in cases],
        "float32, p = 0.5, forward + backward. `loop` is F.dropout and F.linear member by member, `torch.compile` the "
        "batched form with a [K, B, F] tensor; for `dropout_disagreement` both followed by the members' variance. "
        "For more than 8 outputs it is `dropout_linear` and `disagreement` in turn.",
    )
    write_results(
        "disagreement",
        [disagreement_row(measure, device, arguments.seconds) for measure in EAGER],
        "float32 predictions [8, 256, 1000], forward + backward. `eager` is vectorised and forms no pairs.",
    )


if __name__ == "__main__":
    main()
