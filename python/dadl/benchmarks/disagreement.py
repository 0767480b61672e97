"""Dropout ensembles and their disagreement: a loop of dropout and linear in PyTorch, and the batched form compiled.

Forward and backward together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dadl_ext import functional

from .harness import BenchmarkTable, Harness, Numbers, milliseconds, speedup

P = 0.5
SIZES, QUICK_SIZES = ((256, 2048, 1, 8), (256, 2048, 1, 2), (128, 2048, 100, 4)), ((4, 16, 1, 2),)
PREDICTIONS, QUICK_PREDICTIONS = (8, 256, 1000), (3, 4, 5)


def dropout_loop(features: Tensor, weight: Tensor, bias: Tensor, samples: int) -> Tensor:
    """Member by member, as written in plain PyTorch."""
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
    gap: Tensor = torch.special.entr(p.mean(dim=0)).sum(dim=-1) - torch.special.entr(p).sum(dim=-1).mean(dim=0)
    return gap.mean()


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


def dropout_case(b: int, f: int, c: int, k: int, harness: Harness) -> dict[str, Numbers]:
    initial = (torch.randn(b, f), torch.randn(c, f) / f**0.5, torch.randn(c))
    features, weight, bias = leaves = [x.to(harness.device).requires_grad_() for x in initial]
    upstream, step = torch.randn(k, b, c, device=harness.device), stepper(*leaves)
    seed = torch.tensor(1, device=harness.device)

    def linear(function: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Callable[[], None]:
        return lambda: step((function(features, weight, bias, k) * upstream).sum())

    def dropout_linear(features: Tensor, weight: Tensor, bias: Tensor, samples: int) -> Tensor:
        return functional.dropout_linear(features, weight, bias, p=P, samples=samples, seed=seed)

    candidates = {
        "linear": linear(dropout_linear),
        "loop": linear(dropout_loop),
        "torch.compile": linear(compiled_batched),
        "disagreement": lambda: step(
            functional.dropout_disagreement(features, weight, bias, p=P, samples=k, seed=seed)
        ),
        "loop and variance": lambda: step(mse_disagreement(dropout_loop(features, weight, bias, k))),
        "torch.compile with variance": lambda: step(compiled_game(features, weight, bias, k)),
    }
    return {f"{b}, {f}, {c}, {k}": harness.medians(candidates)}


def disagreement_case(measure: str, shape: tuple[int, int, int], harness: Harness) -> dict[str, Numbers]:
    leaf = torch.randn(*shape, device=harness.device, requires_grad=True)
    step, eager = stepper(leaf), EAGER[measure]
    compiled = torch.compile(eager)
    torch.testing.assert_close(functional.disagreement(leaf, measure), eager(leaf), rtol=1e-4, atol=0)
    candidates = {
        "dadl": lambda: step(functional.disagreement(leaf, measure)),
        "eager": lambda: step(eager(leaf)),
        "torch.compile": lambda: step(compiled(leaf)),
    }
    return {measure: harness.medians(candidates)}


def tables(quick: bool) -> list[BenchmarkTable]:
    predictions = QUICK_PREDICTIONS if quick else PREDICTIONS
    return [
        BenchmarkTable(
            name="dropout",
            header="B, F, C, K",
            columns=(
                milliseconds("linear", title="linear ms"),
                speedup("loop", "linear"),
                speedup("torch.compile", "linear"),
                milliseconds("disagreement", title="disagreement ms"),
                speedup("loop and variance", "disagreement", title="loop / disagreement"),
                speedup("torch.compile with variance", "disagreement", title="torch.compile / disagreement"),
            ),
            notes="float32, p = 0.5, forward + backward. `linear` is `dropout_linear`, `disagreement` is "
            "`dropout_disagreement`. `loop` is F.dropout and F.linear member by member, `torch.compile` the batched "
            "form with a [K, B, F] tensor; for `disagreement` both followed by the members' variance, and for more "
            "than 8 outputs it is itself `dropout_linear` and `disagreement` in turn.",
            cases=[partial(dropout_case, *size) for size in (QUICK_SIZES if quick else SIZES)],
        ),
        BenchmarkTable(
            name="disagreement",
            header="measure",
            columns=(milliseconds(), speedup("eager"), speedup("torch.compile")),
            notes=f"float32 predictions {list(predictions)}, forward + backward. `eager` is vectorised and forms no "
            "pairs.",
            cases=[partial(disagreement_case, measure, predictions) for measure in EAGER],
        ),
    ]
