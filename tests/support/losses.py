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
    any_size: bool = False

    def size(self, usual: int) -> int:
        """A dimension: the usual one, or any from 1 to 20."""
        return int(torch.randint(1, 21, (), generator=self.generator)) if self.any_size else usual

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


def _rank(x: Draw, n: int) -> Call:
    return _call("rank", (x.floats(x.size(3), n),))


def _ranksim(x: Draw, n: int, **settings: Any) -> Call:
    return _call("ranksim_loss", (x.floats(n, x.size(5)),), x.distinct(n), **settings)


def _ranksim_cosine(x: Draw, n: int) -> Call:
    # Directions that differ: whether rounded cosines of equal ones tie depends on the order of a product's sums.
    labels = torch.randn(n, 2, generator=x.generator, dtype=torch.float64).to(x.device)
    return _call("ranksim_loss", (x.floats(n, x.size(5)),), labels, label_similarity="cosine")


def _rank_n_contrast(x: Draw, n: int, **settings: Any) -> Call:
    return _call("rank_n_contrast", (x.floats(n, x.size(5)),), x.distinct(n), **settings)


def _similarity(x: Draw, n: int) -> Call:
    d = x.size(8)
    return _call("similarity_logsumexp", (x.floats(n, d), x.floats(n + 3, d)), scale=0.5)


def _group_contrast(x: Draw, n: int) -> Call:
    classes, slots, d = x.size(3), x.size(4), x.size(8)
    constants = x.floats(n, d), x.floats(classes, slots, d), x.classes(classes, n)
    return _call("pseudo_group_contrast", (x.floats(n, d),), *constants, temperature=2.0)


def _weighted_group_contrast(x: Draw, n: int) -> Call:
    classes, slots, d = x.size(3), x.size(4), x.size(8)
    constants = x.floats(n, d), x.floats(classes, slots, d), x.classes(classes, n), x.floats(n).abs()
    settings = {"names": ("sample_weight",), "temperature": 2.0, "form": "kl"}
    return _call("pseudo_group_contrast", (x.floats(n, d),), *constants, **settings)


def _supervised(x: Draw, n: int) -> Call:
    return _call("supervised_contrast", (x.floats(n, x.size(8)),), x.classes(x.size(3), n), temperature=2.0)


def _disagreement(measure: str, reduction: str, x: Draw, n: int) -> Call:
    return _call("disagreement", (x.floats(x.size(3), n, x.size(4)),), measure=measure, reduction=reduction)


def _dropout(name: str, outputs: int, x: Draw, n: int, **settings: Any) -> Call:
    width, samples = x.size(12), x.size(3)
    inputs = (x.floats(n, width), x.floats(outputs, width), x.floats(outputs))
    return _call(name, inputs, x.seed(), names=("seed",), p=0.5, samples=samples, **settings)


def _reverse(x: Draw, n: int) -> Call:
    def expected(value: Tensor) -> Tensor:
        return (2 * value.detach() - value).square()

    return Call(lambda value: functional.reverse_gradient(value).square(), expected, (x.floats(n, x.size(5)),), ())


LOSSES: dict[str, Callable[[Draw, int], Call]] = {
    "rank": _rank,
    "ranksim_loss": partial(_ranksim, weight=3.0),
    'ranksim_loss, "none"': partial(_ranksim, reduction="none"),
    "ranksim_loss, cosine": _ranksim_cosine,
    "rank_n_contrast": _rank_n_contrast,
    'rank_n_contrast, "none"': partial(_rank_n_contrast, reduction="none", similarity="cosine"),
    "similarity_logsumexp": _similarity,
    "pseudo_group_contrast": _group_contrast,
    "pseudo_group_contrast, weighted": _weighted_group_contrast,
    "supervised_contrast": _supervised,
    "disagreement, l1": partial(_disagreement, "l1", "mean"),
    "disagreement, js": partial(_disagreement, "js", "none"),
    "dropout_linear, 3 outputs": partial(_dropout, "dropout_linear", 3),
    "dropout_linear, 11 outputs": partial(_dropout, "dropout_linear", 11),
    "dropout_disagreement, 3 outputs": partial(_dropout, "dropout_disagreement", 3, minimax=True),
    "dropout_disagreement, 11 outputs": partial(_dropout, "dropout_disagreement", 11, minimax=True),
    "reverse_gradient": _reverse,
}


def make(
    name: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    n: int = 7,
    seed: int = 0,
    any_size: bool = False,
) -> Call:
    return LOSSES[name](Draw(device, dtype, torch.Generator().manual_seed(seed), any_size), n)
