"""Every public function with a gradient, in a call that any transform can take."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dadl_ext import functional, reference


@dataclass(frozen=True)
class Call:
    """``function(*inputs, *constants)``, of which the inputs have a gradient."""

    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]

    def of_inputs(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.constants)

    def reference_of_inputs(self, *inputs: Tensor) -> Tensor:
        return self.reference(*inputs, *self.constants)


@dataclass(frozen=True)
class Draw:
    """Random tensors of one device, dtype and seed."""

    device: str
    dtype: torch.dtype
    generator: torch.Generator

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def classes(self, count: int, n: int) -> Tensor:
        return torch.randint(count, (n,), generator=self.generator).to(self.device)

    def distinct(self, n: int) -> Tensor:
        """Labels among which RankSim has nothing to draw."""
        return torch.randperm(n, generator=self.generator).to(self.device, torch.float32)

    def seed(self) -> Tensor:
        return torch.tensor(11, device=self.device)


def _call(
    name: str, inputs: tuple[Tensor, ...], *constants: Tensor, names: tuple[str, ...] = (), **settings: Any
) -> Call:
    """A call of the function and the reference of one name; the last constants are given by ``names``."""

    def calling(module: Any) -> Callable[..., Tensor]:
        function = getattr(module, name)

        def call(*tensors: Tensor) -> Tensor:
            positional = len(tensors) - len(names)
            return function(*tensors[:positional], **dict(zip(names, tensors[positional:], strict=True)), **settings)

        return call

    return Call(calling(functional), calling(reference), inputs, constants)


def _dropout(name: str, outputs: int, x: Draw, n: int, **settings: Any) -> Call:
    inputs = (x.floats(n, 12), x.floats(outputs, 12), x.floats(outputs))
    return _call(name, inputs, x.seed(), names=("seed",), p=0.5, samples=3, **settings)


def _reverse(x: Draw, n: int) -> Call:
    def expected(value: Tensor) -> Tensor:
        return (2 * value.detach() - value).square()

    return Call(lambda value: functional.reverse_gradient(value).square(), expected, (x.floats(n, 5),), ())


LOSSES: dict[str, Callable[[Draw, int], Call]] = {
    "rank": lambda x, n: _call("rank", (x.floats(3, n),)),
    "ranksim_loss": lambda x, n: _call("ranksim_loss", (x.floats(n, 5),), x.distinct(n), weight=3.0),
    'ranksim_loss, "none"': lambda x, n: _call("ranksim_loss", (x.floats(n, 5),), x.distinct(n), reduction="none"),
    "ranksim_loss, cosine": lambda x, n: _call(
        "ranksim_loss", (x.floats(n, 5),), torch.stack([x.distinct(n), x.distinct(n)], 1), label_similarity="cosine"
    ),
    "similarity_logsumexp": lambda x, n: _call("similarity_logsumexp", (x.floats(n, 8), x.floats(n + 3, 8)), scale=0.5),
    "pseudo_group_contrast": lambda x, n: _call(
        "pseudo_group_contrast", (x.floats(n, 8),), x.floats(n, 8), x.floats(3, 4, 8), x.classes(3, n), temperature=2.0
    ),
    "pseudo_group_contrast, weighted": lambda x, n: _call(
        "pseudo_group_contrast",
        (x.floats(n, 8),),
        x.floats(n, 8),
        x.floats(3, 4, 8),
        x.classes(3, n),
        x.floats(n).abs(),
        names=("sample_weight",),
        temperature=2.0,
        form="kl",
    ),
    "supervised_contrast": lambda x, n: _call(
        "supervised_contrast", (x.floats(n, 8),), x.classes(3, n), temperature=2.0
    ),
    "disagreement, l1": lambda x, n: _call("disagreement", (x.floats(3, n, 4),)),
    "disagreement, js": lambda x, n: _call("disagreement", (x.floats(3, n, 4),), measure="js", reduction="none"),
    "dropout_linear, 3 outputs": partial(_dropout, "dropout_linear", 3),
    "dropout_linear, 11 outputs": partial(_dropout, "dropout_linear", 11),
    "dropout_disagreement, 3 outputs": partial(_dropout, "dropout_disagreement", 3, minimax=True),
    "dropout_disagreement, 11 outputs": partial(_dropout, "dropout_disagreement", 11, minimax=True),
    "reverse_gradient": _reverse,
}


def make(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, n: int = 7, seed: int = 0) -> Call:
    return LOSSES[name](Draw(device, dtype, torch.Generator().manual_seed(seed)), n)
