"""Calls every CUDA operator once in each of its ways and compares it with the reference: what compute-sanitizer runs.

compute-sanitizer --tool memcheck python tests/gpu/every_kernel.py [--few-dtypes] [FAMILY ...]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType as Module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dadl_ext import functional, reference

DTYPES = [torch.float32, torch.bfloat16]
if "--few-dtypes" not in sys.argv:
    DTYPES += [torch.float64, torch.float16]
# Of half precision the inputs are exact on both sides, and what is compared is the arithmetic in float32.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 5e-2}
calls = 0
failures: list[str] = []


def compare(what: str, function: Callable[..., Tensor], expected: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Value and gradients on the GPU against the reference's on the CPU."""
    global calls
    calls += 1
    results = []
    for run, device in ((function, "cuda"), (expected, "cpu")):
        leaves = [x.to(device).detach().requires_grad_(x.requires_grad) for x in tensors]
        value = run(*leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        upstream = torch.linspace(0.5, 1.5, value.numel(), device=device).reshape(value.shape).to(value.dtype)
        gradients = torch.autograd.grad(value, wanted, upstream, allow_unused=True) if wanted else ()
        results.append([value, *gradients])
    # A gradient that is 0 but for rounding, as that of the bias, is measured by the others.
    finite_parts = [x.detach().double()[x.isfinite()] for x in results[1] if x is not None]
    scale = max((part.abs().max() for part in finite_parts if part.numel()), default=torch.tensor(1.0)).clamp_min(0.1)
    for ours, theirs in zip(*results, strict=True):
        if theirs is None or theirs.numel() == 0:
            continue
        ours, theirs = ours.detach().cpu().double(), theirs.detach().double()
        finite = theirs.isfinite()
        if not torch.equal(ours[~finite], theirs[~finite]):
            failures.append(f"{what}: not finite in other places")
        error = ((ours - theirs)[finite].abs().amax() / scale).item() if finite.any() else 0.0
        if not error <= TOLERANCE[tensors[0].dtype]:
            failures.append(f"{what}: relative error {error:.2e}")


def ranking() -> None:
    for dtype in DTYPES:
        for n in (1, 7, 32, 33, 100, 500, 1000, 1025, 3000, 6000, 8000, 8193):
            x = torch.randint(-50, 50, (3, n)).to(dtype).requires_grad_()
            compare(f"rank {dtype} {n}", lambda x: functional.rank(x, 1.5), lambda x: reference.rank(x, 1.5), x)


def ranksim() -> None:
    for dtype in DTYPES:
        for n, d in ((1, 3), (20, 5), (33, 70), (70, 16), (200, 8), (600, 8), (1100, 4)):
            x = torch.randn(n, d).to(dtype).requires_grad_()
            labels = torch.randperm(n).float()
            for reduction in ("sum", "none"):

                def run(module: Module, x: Tensor, labels: Tensor, reduction: str = reduction) -> Tensor:
                    return module.ranksim_loss(x, labels, reduction=reduction)

                # Half precision has tied similarities, which rounding may order differently.
                if dtype in (torch.float32, torch.float64):
                    compare(
                        f"ranksim {dtype} {n} {d} {reduction}",
                        lambda x, labels, run=run: run(functional, x, labels),
                        lambda x, labels, run=run: run(reference, x, labels),
                        x,
                        labels,
                    )
                else:
                    run(functional, x.detach().cuda().requires_grad_(), labels.cuda()).sum().backward()
        x, matrix = torch.randn(40, 6).to(dtype).requires_grad_(), torch.rand(40, 40, dtype=torch.float64)
        functional.ranksim_loss(
            x.detach().cuda().requires_grad_(), torch.randn(40, 2).cuda(), label_similarity=matrix.cuda()
        ).backward()


def rank_n_contrast() -> None:
    for dtype in DTYPES:
        for n, d in ((1, 3), (2, 5), (20, 5), (70, 16), (200, 8), (600, 40), (1100, 4)):
            x = torch.randn(n, d).to(dtype).requires_grad_()
            for labels in (torch.randint(0, n, (n,)), torch.rand(n), torch.randint(0, 5, (n, 2)).float()):
                for similarity, reduction in (("negative_l2", "mean"), ("cosine", "none")):

                    def run(
                        module: Module, x: Tensor, labels: Tensor, s: str = similarity, r: str = reduction
                    ) -> Tensor:
                        return module.rank_n_contrast(x, labels, similarity=s, reduction=r)

                    compare(
                        f"rank_n_contrast {dtype} {n} {d} {labels.dtype} {labels.dim()} {similarity}",
                        lambda x, labels, run=run: run(functional, x, labels),
                        lambda x, labels, run=run: run(reference, x, labels),
                        x,
                        labels,
                    )


def contrast() -> None:
    for dtype in DTYPES:
        for b, n, d in (
            (1, 1, 1),
            (5, 70, 3),
            (33, 65, 64),
            (70, 200, 128),
            (65, 130, 136),
            (40, 300, 257),
            (129, 64, 256),
            (90, 90, 96),
            (300, 5000, 128),
        ):
            query, key = (F.normalize(torch.randn(m, d), dim=1).to(dtype).requires_grad_() for m in (b, n))
            mask = torch.rand(n) < 0.7
            for options in ({}, {"key_mask": mask}, *([{"exclude_self": True}] if b == n else [])):

                def logsumexp(module: Module, query: Tensor, key: Tensor, options: Any = options) -> Tensor:
                    moved = {k: v.to(query.device) if isinstance(v, Tensor) else v for k, v in options.items()}
                    return module.similarity_logsumexp(query, key, scale=5.0, **moved)

                compare(
                    f"similarity_logsumexp {dtype} {b} {n} {d} {list(options)}",
                    lambda q, k, f=logsumexp: f(functional, q, k),
                    lambda q, k, f=logsumexp: f(reference, q, k),
                    query,
                    key,
                )
        for b, c, slots, d in ((1, 2, 1, 4), (20, 5, 7, 65), (70, 30, 9, 128), (33, 11, 3, 320)):
            query, key = (F.normalize(torch.randn(b, d), dim=1).to(dtype) for _ in range(2))
            queue = F.normalize(torch.randn(c, slots, d), dim=2).to(dtype)
            target, counts = torch.randint(-1, c, (b,)), torch.randint(0, slots + 1, (c,))
            for form, reduction, partly in itertools.product(("cross_entropy", "kl"), ("mean", "none"), (False, True)):
                options = {"form": form, "reduction": reduction, "temperature": 0.2}

                def group(module: Module, *tensors: Tensor, partly: bool = partly, options: Any = options) -> Tensor:
                    *sides, counts = tensors
                    return module.pseudo_group_contrast(*sides, slot_count=counts if partly else None, **options)

                compare(
                    f"pseudo_group_contrast {dtype} {b} {c} {slots} {d} {form} {reduction} {partly}",
                    partial(group, functional),
                    partial(group, reference),
                    *(query.requires_grad_(), key, queue, target, counts),
                )
        x, labels = F.normalize(torch.randn(50, 20), dim=1).to(dtype).requires_grad_(), torch.randint(0, 9, (50,))
        compare(
            f"supervised_contrast {dtype}",
            lambda x, y: functional.supervised_contrast(x, y, temperature=0.2),
            lambda x, y: reference.supervised_contrast(x, y, temperature=0.2),
            x,
            labels,
        )


def disagreement() -> None:
    for dtype in DTYPES:
        for shape in ((1, 4, 5), (2, 3, 1), (3, 40, 7), (8, 5, 40), (4, 2, 700), (2, 2, 5000), (40, 3, 10)):
            x = torch.randn(*shape).to(dtype).requires_grad_()
            for measure in ("l1", "mse", "variance", "symmetric_kl", "js", "softmax_l1"):
                for reduction in ("mean", "none"):
                    compare(
                        f"disagreement {dtype} {shape} {measure} {reduction}",
                        lambda x, m=measure, r=reduction: functional.disagreement(x, m, reduction=r),
                        lambda x, m=measure, r=reduction: reference.disagreement(x, m, reduction=r),
                        x,
                    )


def dropout() -> None:
    for dtype in DTYPES:
        for b, f, c, k in (
            (1, 3, 1, 2),
            (5, 70, 1, 8),
            (20, 150, 3, 4),
            (9, 300, 8, 3),
            (6, 40, 20, 4),
            (30, 2100, 1, 5),
        ):
            leaves = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((b, f), (c, f), (c,))]

            def linear(module: Module, *leaves: Tensor, k: int = k) -> Tensor:
                seed = torch.tensor(7, device=leaves[0].device)
                return module.dropout_linear(*leaves, p=0.4, samples=k, seed=seed)

            def game(module: Module, *leaves: Tensor, measure: str, k: int = k) -> Tensor:
                seed = torch.tensor(7, device=leaves[0].device)
                return module.dropout_disagreement(
                    *leaves, p=0.4, samples=k, seed=seed, measure=measure, minimax=True, reduction="none"
                )

            compare(
                f"dropout_linear {dtype} {b} {f} {c} {k}",
                lambda *x, f=linear: f(functional, *x),
                lambda *x, f=linear: f(reference, *x),
                *leaves,
            )
            for measure in ("l1", "mse", "js"):
                compare(
                    f"dropout_disagreement {dtype} {b} {f} {c} {k} {measure}",
                    lambda *x, f=game, m=measure: f(functional, *x, measure=m),
                    lambda *x, f=game, m=measure: f(reference, *x, measure=m),
                    *leaves,
                )


FAMILIES = {
    function.__name__: function for function in (ranking, ranksim, rank_n_contrast, contrast, disagreement, dropout)
}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in [word for word in sys.argv[1:] if word in FAMILIES] or FAMILIES:
        FAMILIES[name]()
        torch.cuda.synchronize()
        print(f"{name}: {calls} calls so far", flush=True)
    print(*failures, sep="\n")
    print(f"{calls} calls, {len(failures)} differ from the reference")
    sys.exit(bool(failures))
