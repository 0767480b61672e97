"""Compiled and exported training steps: numbers that change, modules with state, packages for C++."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dadl import MomentumEncoder
from support.losses import LOSSES, make
from torch import Tensor, nn

from dadl_ext import (
    ChiModelLoss,
    DropoutDisagreementLoss,
    PseudoGroupContrastLoss,
    RankSimLoss,
    SupervisedContrastLoss,
    functional,
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Programs:
    """A backend that counts what it compiles."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.compiler = torch._dynamo.lookup_backend(backend)
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return self.compiler(graph, inputs)


def value_and_gradient(function: Callable[..., Tensor], input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()
    value = function(leaf, *rest)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def of_number(name: str) -> tuple[Callable[..., Tensor], Tensor]:
    x, y, labels, classes = torch.randn(9, 6), torch.randn(9, 6), torch.arange(9.0), torch.arange(9) % 3
    queue, head, seed = torch.randn(3, 2, 6), torch.randn(2, 6), torch.tensor(5)
    functions: dict[str, Callable[[Tensor, float], Tensor]] = {
        "rank": lambda v, s: functional.rank(v, s) * y,
        "ranksim_loss": lambda v, s: functional.ranksim_loss(v, labels, weight=s),
        "ranksim_loss, none": lambda v, s: functional.ranksim_loss(v, labels, interp_strength=s, reduction="none"),
        "rank_n_contrast": lambda v, s: functional.rank_n_contrast(v, labels, temperature=s),
        "similarity_logsumexp": lambda v, s: functional.similarity_logsumexp(v, y, scale=s),
        "pseudo_group_contrast": lambda v, s: functional.pseudo_group_contrast(v, y, queue, classes, temperature=s),
        "supervised_contrast": lambda v, s: functional.supervised_contrast(v, classes, temperature=s),
        "dropout_linear": lambda v, s: functional.dropout_linear(v, head, p=s / 8, samples=2, seed=seed),
        "dropout_disagreement": lambda v, s: functional.dropout_disagreement(v, head, p=s / 8, samples=2, seed=seed),
        "reverse_gradient": lambda v, s: functional.reverse_gradient(v, s),
    }
    return functions[name], x


NUMBERED = [
    "rank",
    "ranksim_loss",
    "ranksim_loss, none",
    "rank_n_contrast",
    "similarity_logsumexp",
    "pseudo_group_contrast",
    "supervised_contrast",
    "dropout_linear",
    "dropout_disagreement",
    "reverse_gradient",
]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", NUMBERED)
def test_a_number_that_changes_from_step_to_step_compiles_once(name: str, dynamic: bool | None) -> None:
    function, x = of_number(name)
    programs = Programs()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=programs)
    for step in range(12):
        number = 0.5 + step / 4
        torch.testing.assert_close(value_and_gradient(compiled, x, number), value_and_gradient(function, x, number))
    assert programs.count <= 2  # the first number is held to be a constant


ONE_CALL_OF_EACH = {name.partition(",")[0]: name for name in reversed(LOSSES)}.values()
"""Compiling for C++ takes seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ONE_CALL_OF_EACH else [pytest.mark.slow]) for name in LOSSES]
)
def test_inductor(device: str, name: str) -> None:
    call = make(name, device)
    compiled = torch.compile(call.function, fullgraph=True, dynamic=True)
    for n in (7, 10):
        call = make(name, device, n=n)
        rest = (*call.inputs[1:], *call.constants)
        actual, plain = (value_and_gradient(f, call.inputs[0], *rest) for f in (compiled, call.function))
        torch.testing.assert_close(actual, plain, rtol=1e-5, atol=1e-6)


def training(loss: nn.Module, step: Callable[..., Tensor], modules: nn.ModuleList, compile: bool) -> list[Tensor]:
    """Losses of 12 steps on batches of several sizes, and what the modules hold at the end."""
    torch.manual_seed(0)
    modules.double()
    programs = Programs()
    run = torch.compile(step, fullgraph=True, backend=programs) if compile else step
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.05)
    losses = []
    for i in range(12):
        generator = torch.Generator().manual_seed(i)
        n = (8, 6, 11)[i % 3]
        images = torch.randn(n, 10, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (n,), generator=generator)
        optimizer.zero_grad()
        value = run(images, labels)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    if compile:
        assert programs.count <= 3, programs.count
    return [*losses, *(v.clone() for v in loss.state_dict().values() if isinstance(v, Tensor))]


Step = tuple[nn.Module, Callable[..., Tensor], nn.ModuleList]


def ranksim_step() -> Step:
    encoder, loss = nn.Linear(10, 6), RankSimLoss(weight=2.0, reduction="mean")

    def step(images: Tensor, labels: Tensor) -> Tensor:
        # distinct labels, because inductor draws other random numbers
        return loss(encoder(images), images[:, 0].detach())

    return loss, step, nn.ModuleList([encoder])


def supervised_step() -> Step:
    encoder, loss = nn.Linear(10, 6), SupervisedContrastLoss(temperature=0.5)
    return loss, lambda images, labels: loss(encoder(images), labels), nn.ModuleList([encoder])


def contrast_step() -> Step:
    encoder, loss = nn.Linear(10, 6), PseudoGroupContrastLoss(4, 6, slots=3, temperature=0.5).double()
    key_encoder = MomentumEncoder(encoder, 0.9).double()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        value = loss(encoder(images), key_encoder(images + 0.1), labels)
        key_encoder.update(encoder)
        return value

    return loss, step, nn.ModuleList([encoder])


def chi_model_step() -> Step:
    encoder = nn.Linear(10, 6)
    loss = ChiModelLoss(nn.Linear(6, 4), nn.Linear(6, 4), nn.CrossEntropyLoss(), measure="js", ramp_steps=9, clamp=1.0)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        return loss(encoder(images), labels, encoder(images + 0.1), encoder(images - 0.1))

    return loss, step, nn.ModuleList([encoder, loss])


def dropout_step() -> Step:
    encoder, head = nn.Linear(10, 6), nn.Linear(6, 2)
    loss = DropoutDisagreementLoss(head, p=0.0, samples=2, minimax=True)
    return (
        loss,
        lambda images, labels: loss(encoder(images)) + head(encoder(images)).mean(),
        nn.ModuleList([encoder, loss]),
    )


STEPS = [ranksim_step, supervised_step, contrast_step, chi_model_step, dropout_step]


@pytest.mark.parametrize("make_step", STEPS, ids=lambda step: step.__name__)
def test_compiled_training_step(
    make_step: Callable[[], Step],
) -> None:
    results = []
    for compile in (False, True):
        torch.manual_seed(1)
        results.append(training(*make_step(), compile))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_package_of_a_model_with_every_loss(tmp_path: Path) -> None:
    """Compiled ahead of time and loaded as a C++ program would."""
    calls = [make(name) for name in LOSSES]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            results, rest = [], list(tensors)
            for call in calls:
                count = len(call.inputs) + len(call.constants)
                first, *others = rest[:count]
                results.append(call.function(self.scale * first, *others))
                rest = rest[count:]
            return tuple(results)

    model, tensors = Model().eval(), tuple(v for call in calls for v in (*call.inputs, *call.constants))
    program = torch.export.export(model, tensors)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        torch.testing.assert_close(tuple(package(*tensors)), model(*tensors))
