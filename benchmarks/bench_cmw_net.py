"""One iteration of CMW-Net with a meta step against a plain training step, for each way to the meta gradient.

    python benchmarks/bench_cmw_net.py [--threads 2] [--seconds 120]

ResNet-32 on 32 × 32 pixels, batch and meta batch of 100, SGD with momentum. Ratios of interleaved medians; the
memory is what tensors need beyond those that there are before the iteration.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from dadl import CMWNet, MetaReweighter
from dadl.resnet import FEATURES, resnet
from harness import interleaved_medians, write_results
from torch import nn
from torch.optim import SGD, Adam
from torch.profiler import ProfilerActivity, profile

BATCH, CLASSES = 100, 10
PLAIN = "plain"
METHODS = ("jvp", "finite_difference", "double_backward")
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def make_step(kind: str, memory_format: torch.memory_format, device: str) -> Callable[[], Any]:
    """One iteration on random data: a plain training step, or a reweighted one with a meta step by the method."""
    torch.manual_seed(0)
    model = nn.Sequential(resnet(32), nn.Linear(FEATURES, CLASSES)).to(device, memory_format=memory_format)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, meta_images = torch.randn(2, BATCH, 3, 32, 32, device=device)
    images, meta_images = (x.contiguous(memory_format=memory_format) for x in (images, meta_images))
    target, meta_target = torch.randint(0, CLASSES, (2, BATCH), device=device)
    if kind == PLAIN:

        def plain_step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images), target).backward()
            optimizer.step()

        return plain_step
    weight_net = CMWNet(torch.arange(1, CLASSES + 1)).to(device)
    meta_optimizer = Adam(weight_net.parameters(), lr=1e-4, weight_decay=1e-4)
    reweighter = MetaReweighter(model, optimizer, weight_net, meta_optimizer=meta_optimizer, method=kind)  # type: ignore
    return partial(reweighter.step, (images, target), (meta_images, meta_target))


def peak_memory(step: Callable[[], Any]) -> float:
    """MiB of tensors at most during a step, beyond those that there are before it."""
    step()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes)) / 2**20


def rows(name: str, memory_format: torch.memory_format, device: str, seconds: float) -> list[Any]:
    kinds = (PLAIN, *METHODS)
    steps = {kind: make_step(kind, memory_format, device) for kind in kinds}
    median = interleaved_medians(steps, seconds)
    memory = {kind: peak_memory(step) for kind, step in steps.items()}
    return [
        {
            "memory format": name,
            "step": kind.replace("_", " "),
            "ms": f"{1e3 * median[kind]:.0f}",
            "time / plain": f"{median[kind] / median[PLAIN]:.2f}",
            "peak MiB": f"{memory[kind]:.0f}",
            "memory / double backward": f"{memory[kind] / memory['double_backward']:.2f}",
        }
        for kind in kinds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="per memory format")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = [
        row for name, memory_format in FORMATS.items() for row in rows(name, memory_format, device, arguments.seconds)
    ]
    write_results(
        "cmw-net",
        results,
        "ResNet-32, 32 × 32 pixels, float32, batch and meta batch of 100, SGD with momentum, a meta step in every "
        "iteration. `plain` is a training step without weights. Memory: of the tensors that live during an iteration.",
    )


if __name__ == "__main__":
    main()
