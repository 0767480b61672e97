"""Device time of the CUDA operators, beside the time that their bytes and products take at least.

    python benchmarks/kernels.py [--output FOLDER] [--only WORD]

Every candidate is captured in a CUDA graph and replayed in turn with the others, after a write that leaves nothing of
the inputs in the cache, so that neither Python nor the launches count. A floor is the larger of two times: the bytes
that must be moved (inputs once, results once) over the measured bandwidth of a copy, and the operations of the products
over the measured rate of a matrix product.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from dadl.benchmarks.contrast import dense
from dadl.benchmarks.disagreement import EAGER, dropout_batched, mse_disagreement
from dadl.benchmarks.harness import markdown_table
from dadl.benchmarks.ranksim import eager_forward, sort_scatter_rank
from torch import Tensor

from dadl_ext import functional

ROUNDS = 30
WARM_UP = 3
Step = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """What this device was measured to reach: bytes and operations per second."""

    copy: float
    product: dict[torch.dtype, float]


@dataclass(frozen=True)
class Case:
    name: str
    ours: Step
    rivals: dict[str, Step]
    bytes: float
    """That must be read and written at least."""
    flops: float = 0
    """Of the matrix products."""
    dtype: torch.dtype = torch.float32
    """Of the matrix products."""


def captured(step: Step) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def medians(steps: dict[str, Step], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, in turn."""
    graphs = {name: captured(step) for name, step in steps.items()}
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(done) for name, done in times.items()}


def ceilings() -> Ceilings:
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = medians({"copy": lambda: target.copy_(source)}, 10)["copy"]
    rates = {}
    for dtype, size in ((torch.bfloat16, 8192), (torch.float32, 4096), (torch.float64, 4096)):
        a, b = torch.randn(2, size, size, device="cuda", dtype=dtype)
        rates[dtype] = 2 * size**3 / medians({"product": lambda a=a, b=b: a @ b}, 10)["product"]
    return Ceilings(2 * len(source) / copy, rates)


def backward(loss: Callable[[], Tensor], *leaves: Tensor) -> Step:
    return lambda: torch.autograd.grad(loss(), leaves)


def rank_cases() -> list[Case]:
    cases = []
    for rows, n in ((256, 256), (1024, 1024), (4096, 4096), (8192, 8192)):
        x = torch.randn(rows, n, device="cuda")
        cases.append(
            Case(
                f"rank {rows}×{n}",
                lambda x=x: functional.rank(x),
                {"eager": lambda x=x: sort_scatter_rank(x)},
                8 * x.numel(),
            )
        )
    return cases


def ranksim_cases() -> list[Case]:
    cases = []
    for n, d in ((64, 512), (256, 512), (256, 2048), (1024, 512), (1024, 2048), (4096, 512)):
        x = torch.randn(n, d, device="cuda", requires_grad=True)
        labels = torch.randperm(n, device="cuda").float()
        detached = x.detach()
        cases.append(
            Case(
                f"ranksim_loss {n}×{d}",
                backward(lambda x=x, labels=labels: functional.ranksim_loss(x, labels), x),
                {"eager": lambda x=detached, labels=labels: eager_forward(x, labels, 2.0, 1.0)},
                8 * x.numel(),
                4 * n * n * d,
            )
        )
    return cases


def unit(*shape: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(*shape, device="cuda"), dim=-1).to(dtype)


def contrast_products(flops: float, d: int, dtype: torch.dtype) -> tuple[float, torch.dtype]:
    """Operations and dtype of a contrast's products: float32 is three of half precision where the kernels prefer it."""
    fast = torch.cuda.get_device_properties().shared_memory_per_multiprocessor >= 160 << 10
    return (3 * flops, torch.bfloat16) if dtype == torch.float32 and d <= 256 and fast else (flops, dtype)


def contrast_cases() -> list[Case]:
    cases = []
    for dtype, word in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for b, c, slots, d in ((256, 1000, 32, 128), (1024, 2048, 32, 128), (64, 100, 8, 128), (256, 1000, 32, 512)):
            query, key = unit(b, d, dtype=dtype).requires_grad_(), unit(b, d, dtype=dtype)
            queue, target = unit(c, slots, d, dtype=dtype), torch.randint(c, (b,), device="cuda")
            arguments, keys = (query, key, queue, target), queue.flatten(0, 1)[None, None]
            rivals = {"eager": backward(lambda a=arguments: dense(*a).float(), query)}
            if dtype == torch.bfloat16 and d <= 256:
                detached = query.detach()[None, None]
                rivals["flash attention"] = lambda q=detached, k=keys: (
                    torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, 0.0, False, scale=1 / 0.07)
                )
            cases.append(
                Case(
                    f"pseudo_group_contrast {word} {b}, {c}×{slots}, {d}",
                    backward(lambda a=arguments: functional.pseudo_group_contrast(*a), query),
                    rivals,
                    queue.numel() * queue.element_size(),
                    *contrast_products(4 * b * c * slots * d, d, dtype),
                )
            )
        for b, n, d in ((1024, 8192, 128), (4096, 4096, 256)):
            query, key = unit(b, d, dtype=dtype).requires_grad_(), unit(n, d, dtype=dtype).requires_grad_()
            cases.append(
                Case(
                    f"similarity_logsumexp, both gradients {word} {b}, {n}, {d}",
                    backward(
                        lambda q=query, k=key: functional.similarity_logsumexp(q, k, scale=1 / 0.07).sum(), query, key
                    ),
                    {
                        "eager": backward(
                            lambda q=query, k=key: ((q @ k.T).float() / 0.07).logsumexp(dim=1).sum(), query, key
                        )
                    },
                    (b + n) * d * query.element_size() * 2,
                    *contrast_products(8 * b * n * d, d, dtype),
                )
            )
    return cases


def disagreement_cases() -> list[Case]:
    cases = []
    eager = {**EAGER, "softmax_l1": lambda x: EAGER["l1"](x.softmax(dim=-1))}
    for shape in ((8, 4096, 1000), (8, 256, 1000)):
        x = torch.randn(*shape, device="cuda", requires_grad=True)
        cases += [
            Case(
                f"disagreement {measure} {list(shape)}",
                backward(lambda x=x, m=measure: functional.disagreement(x, m), x),
                {"eager": backward(lambda x=x, f=function: f(x), x)},
                8 * x.numel(),
            )
            for measure, function in eager.items()
        ]
    return cases


def dropout_cases() -> list[Case]:
    cases = []
    seed = torch.tensor(1, device="cuda")
    for b, f, c, k in ((4096, 4096, 1, 8), (256, 2048, 1, 8), (256, 2048, 4, 8)):
        x, w = torch.randn(b, f, device="cuda", requires_grad=True), torch.randn(c, f, device="cuda") / f**0.5
        w, bias = w.requires_grad_(), torch.randn(c, device="cuda", requires_grad=True)
        cases.append(
            Case(
                f"dropout_disagreement {b}×{f}, C = {c}, K = {k}",
                backward(
                    lambda x=x, w=w, bias=bias, k=k: functional.dropout_disagreement(
                        x, w, bias, p=0.5, samples=k, seed=seed
                    ),
                    x,
                    w,
                    bias,
                ),
                {
                    "eager": backward(
                        lambda x=x, w=w, bias=bias, k=k: mse_disagreement(dropout_batched(x, w, bias, k)), x, w, bias
                    )
                },
                8 * x.numel(),
            )
        )
    for b, f, c, k in ((128, 2048, 100, 4), (1024, 2048, 1000, 4)):
        for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            leaves = [torch.randn(*shape, device="cuda").to(dtype).requires_grad_() for shape in ((b, f), (c, f), (c,))]
            upstream = torch.randn(k, b, c, device="cuda").to(dtype)

            def ours(leaves: list[Tensor] = leaves, upstream: Tensor = upstream, k: int = k) -> Tensor:
                return (functional.dropout_linear(*leaves, p=0.5, samples=k, seed=seed) * upstream).sum()

            def batched(leaves: list[Tensor] = leaves, upstream: Tensor = upstream, k: int = k) -> Tensor:
                return (dropout_batched(*leaves, k) * upstream).sum()

            cases.append(
                Case(
                    f"dropout_linear {word} {b}×{f}, C = {c}, K = {k}",
                    backward(ours, *leaves),
                    {"eager": backward(batched, *leaves)},
                    2 * leaves[0].numel() * leaves[0].element_size(),
                    6 * k * b * f * c,
                    dtype,
                )
            )
    return cases


FAMILIES = (rank_cases, ranksim_cases, contrast_cases, disagreement_cases, dropout_cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, help="folder for kernels-cuda.md and .json; by default nothing is written"
    )
    parser.add_argument("--only", default="", help="measure only the cases whose names hold this word")
    options = parser.parse_args()
    torch.manual_seed(0)
    reached = ceilings()
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    rates = {str(dtype).removeprefix("torch."): rate / 1e12 for dtype, rate in reached.product.items()}
    ceiling = f"copy {reached.copy / 1e12:.2f} TB/s; products " + ", ".join(
        f"{name} {rate:.0f} TFLOP/s" for name, rate in rates.items()
    )
    print(machine, ceiling, sep="\n", flush=True)
    rows, measured = [], {}
    for family in FAMILIES:
        for case in family():
            if options.only not in case.name:
                continue
            done = medians({"dadl": case.ours, **case.rivals})
            floor = max(case.bytes / reached.copy, case.flops / reached.product[case.dtype])
            measured[case.name] = {**done, "floor": floor}
            others = "; ".join(f"{name} {done[name] / done['dadl']:.2f}" for name in case.rivals)
            rows.append(
                {
                    "case": case.name,
                    "µs": f"{done['dadl'] * 1e6:.1f}",
                    "floor / dadl": f"{floor / done['dadl']:.2f}",
                    "others / dadl": others,
                }
            )
            print(" | ".join(rows[-1].values()), flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        notes = " ".join(__doc__.split("\n\n")[2].split())
        text = f"# kernels\n\n{machine}; {ceiling}\n\n{markdown_table(rows)}\n\n{notes}\n"
        (options.output / "kernels-cuda.md").write_text(text, encoding="utf-8")
        record = {"machine": machine, "copy": reached.copy, "product": rates, "seconds": measured}
        (options.output / "kernels-cuda.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
