"""One iteration of CMW-Net with a meta step against a plain training step, for each method of the meta gradient.

Memory is what tensors need during an iteration, on top of those that exist before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam

from ..cmw_net.reweighter import MetaReweighter
from ..cmw_net.weight_net import CMWNet
from ..networks.resnet import FEATURES, resnet
from .harness import BenchmarkTable, Column, Harness, Numbers, milliseconds, peak_memory, ratio, speedup

DEPTH, QUICK_DEPTH = 32, 8
BATCH, QUICK_BATCH = 100, 4
CLASSES = 10
PLAIN = "plain"
METHODS = ("jvp", "finite_difference", "double_backward")
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def make_step(kind: str, depth: int, batch: int, memory_format: torch.memory_format, device: str) -> Callable[[], Any]:
    """One iteration on random data: a plain training step, or a reweighted one with a meta step by the method."""
    torch.manual_seed(0)
    model = nn.Sequential(resnet(depth), nn.Linear(FEATURES, CLASSES)).to(device)
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, meta_images = torch.randn(2, batch, 3, 32, 32, device=device)
    images, meta_images = (x.contiguous(memory_format=memory_format) for x in (images, meta_images))
    target, meta_target = torch.randint(0, CLASSES, (2, batch), device=device)
    if kind == PLAIN:

        def plain_step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images), target).backward()
            optimizer.step()

        return plain_step
    weight_net = CMWNet(torch.arange(1, CLASSES + 1)).to(device)
    meta_optimizer = Adam(weight_net.parameters(), lr=1e-4, weight_decay=1e-4)
    reweighter = MetaReweighter(model, optimizer, weight_net, meta_optimizer=meta_optimizer, method=kind)  # type: ignore[arg-type]
    return partial(reweighter.step, (images, target), (meta_images, meta_target))


def step_case(name: str, depth: int, batch: int, harness: Harness) -> dict[str, Numbers]:
    steps = {kind: make_step(kind, depth, batch, FORMATS[name], harness.device) for kind in (PLAIN, *METHODS)}
    seconds = harness.medians(steps)
    mebibytes = {kind: peak_memory(step, harness.device) for kind, step in steps.items()}
    return {
        f"{name}, {kind.replace('_', ' ')}": {
            "step": seconds[kind],
            "plain": seconds[PLAIN],
            "double backward": seconds["double_backward"],
            "step MiB": mebibytes[kind],
            "double backward MiB": mebibytes["double_backward"],
        }
        for kind in steps
    }


def tables(quick: bool) -> list[BenchmarkTable]:
    depth, batch = (QUICK_DEPTH, QUICK_BATCH) if quick else (DEPTH, BATCH)
    return [
        BenchmarkTable(
            name="cmw-net",
            header="memory format, step",
            columns=(
                milliseconds("step", digits=0),
                ratio("step", "plain", title="time / plain"),
                speedup("double backward", "step", title="double backward / time", digits=2),
                Column("peak MiB", "step MiB", digits=0),
                ratio("step MiB", "double backward MiB", title="memory / double backward"),
            ),
            notes=f"ResNet-{depth}, 32 × 32 pixels, float32, batch and meta batch of {batch}, SGD with momentum, a "
            "meta step in every iteration. `plain` is a training step without weights. Memory: of the tensors that "
            "live during an iteration.",
            cases=[partial(step_case, name, depth, batch) for name in FORMATS],
        )
    ]
