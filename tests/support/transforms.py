"""PyTorch's transforms, each with what it must give for a call, told by the reference and by plain autograd."""

from collections.abc import Callable
from typing import Any

import torch
from support.losses import LOSSES, Call, make
from torch import Tensor, nn

WORKS, RAISES = "yes", "raises"


def tolerance(call: Call) -> float:
    """Of the largest number: sums round by the size of their terms."""
    return 2e-2 if call.inputs[0].dtype in (torch.float16, torch.bfloat16) else 1e-4


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sum of the results with weights that differ from element to element."""

    def weighted(*tensors: Tensor) -> Tensor:
        value = function(*tensors)
        upstream = torch.arange(value.numel(), device=value.device).remainder(3).view(value.shape)
        return (value * (upstream.to(value.dtype) / 2 + 0.5)).sum()

    return weighted


def same(call: Call, actual: Any, expected: Any, check_dtype: bool = True) -> None:
    for one, other in zip(*(v if isinstance(v, tuple) else (v,) for v in (actual, expected)), strict=True):
        largest = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(
            one, other, rtol=0, atol=tolerance(call) * max(largest, 1.0), check_dtype=check_dtype, equal_nan=False
        )


def plain_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = tuple(value.detach().clone().requires_grad_() for value in inputs)
    return torch.autograd.grad(scalar(function)(*leaves), leaves)


def reference_gradients(call: Call) -> tuple[Tensor, ...]:
    return plain_gradients(call.reference_of_inputs, call.inputs)


def positions(call: Call) -> tuple[int, ...]:
    return tuple(range(len(call.inputs)))


def autograd(call: Call) -> None:
    same(call, call.of_inputs(*call.inputs), call.reference_of_inputs(*call.inputs))
    same(call, plain_gradients(call.of_inputs, call.inputs), reference_gradients(call))


def func_grad(call: Call) -> None:
    same(call, torch.func.grad(scalar(call.of_inputs), positions(call))(*call.inputs), reference_gradients(call))


def func_vjp(call: Call) -> None:
    value, pull = torch.func.vjp(call.of_inputs, *call.inputs)
    same(call, value, call.reference_of_inputs(*call.inputs))
    _, expected = torch.autograd.functional.vjp(call.reference_of_inputs, call.inputs, torch.ones_like(value))
    same(call, pull(torch.ones_like(value)), expected)


def functional_call(call: Call) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = nn.ParameterList(value.clone() for value in call.inputs)

        def forward(self) -> Tensor:
            return scalar(call.of_inputs)(*self.inputs)

    model = Model()
    parameters = dict(model.named_parameters())
    gradients = torch.func.grad(lambda values: torch.func.functional_call(model, values, ()))(parameters)
    same(call, tuple(gradients.values()), reference_gradients(call))


def examples(call: Call) -> tuple[Tensor, ...]:
    """Three examples of the inputs, along their last dimension."""
    return tuple(torch.stack([value, 2 * value, value.flip(0)], dim=-1) for value in call.inputs)


def _of_each(function: Callable[..., Any], batch: tuple[Tensor, ...]) -> Any:
    return [function(*(value[..., i] for value in batch)) for i in range(batch[0].shape[-1])]


def vmap(call: Call) -> None:
    batch = examples(call)
    actual = torch.vmap(call.of_inputs, in_dims=-1, randomness="same")(*batch)
    same(call, actual, torch.stack(_of_each(call.reference_of_inputs, batch)))


def vmap_of_everything(call: Call) -> None:
    """Labels, keys and seeds differ between the examples too, and each draws its own random numbers."""
    batch = examples(call)
    others = (value.flip(0) if value.dim() else value + 1 for value in call.constants)
    constants = tuple(torch.stack(pair, dim=-1) for pair in zip(call.constants, others, strict=True))
    pairs = tuple(value[..., :2] for value in batch)
    actual = torch.vmap(call.function, in_dims=-1, randomness="different")(*pairs, *constants)
    same(call, actual, torch.stack(_of_each(call.reference, (*pairs, *constants))))


def vmap_of_grad(call: Call) -> None:
    batch = examples(call)
    gradient = torch.func.grad(scalar(call.of_inputs), positions(call))
    actual = torch.vmap(gradient, in_dims=-1, randomness="same")(*batch)
    each = _of_each(lambda *inputs: plain_gradients(call.reference_of_inputs, inputs), batch)
    same(call, actual, tuple(torch.stack(parts) for parts in zip(*each, strict=True)))


def grad_of_vmap(call: Call) -> None:
    batch = examples(call)

    def loss(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        return torch.vmap(scalar(function), in_dims=-1, randomness="same")(*values).sum()

    actual = torch.func.grad(lambda *values: loss(call.of_inputs, *values), positions(call))(*batch)
    each = _of_each(lambda *inputs: plain_gradients(call.reference_of_inputs, inputs), batch)
    same(call, actual, tuple(torch.stack(parts, dim=-1) for parts in zip(*each, strict=True)))


def jacrev(call: Call) -> None:
    actual = torch.func.jacrev(call.of_inputs, positions(call))(*call.inputs)
    leaves = tuple(value.detach().clone().requires_grad_() for value in call.inputs)
    value = call.reference_of_inputs(*leaves)
    rows = [torch.autograd.grad(part, leaves, retain_graph=True) for part in value.flatten()]
    expected = tuple(
        torch.stack([leaf.new_zeros(leaf.shape), *(row[i] for row in rows)])[1:].view(*value.shape, *leaf.shape)
        for i, leaf in enumerate(leaves)
    )
    same(call, actual, expected)


def forward_mode(call: Call) -> None:
    torch.func.jvp(call.of_inputs, call.inputs, tuple(torch.ones_like(value) for value in call.inputs))


def second_derivative(call: Call) -> None:
    def slope(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = tuple(value.detach().clone().requires_grad_() for value in inputs)
        gradients = torch.autograd.grad(scalar(function)(*leaves), leaves, create_graph=True)
        sums = sum(g.square().sum() for g in gradients)
        assert isinstance(sums, Tensor)
        return torch.autograd.grad(sums, leaves, materialize_grads=True)

    same(call, slope(call.of_inputs, *call.inputs), slope(call.reference_of_inputs, *call.inputs))


def second_func_grad(call: Call) -> None:
    def slope(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        gradient = torch.func.grad(scalar(function), positions(call))

        def total(*inputs: Tensor) -> Tensor:
            sums = sum(g.square().sum() for g in gradient(*inputs))
            assert isinstance(sums, Tensor)
            return sums

        return total

    actual = torch.func.grad(slope(call.of_inputs), positions(call))(*call.inputs)
    same(call, actual, torch.func.grad(slope(call.reference_of_inputs), positions(call))(*call.inputs))


def checkpoint(call: Call) -> None:
    def recomputed(*inputs: Tensor) -> Tensor:
        value: Tensor = torch.utils.checkpoint.checkpoint(call.of_inputs, *inputs, use_reentrant=False)
        return value

    same(call, plain_gradients(recomputed, call.inputs), reference_gradients(call))


def inference_mode(call: Call) -> None:
    with torch.inference_mode():
        value = call.of_inputs(*call.inputs)
    same(call, value.clone(), call.reference_of_inputs(*call.inputs))


def autocast(call: Call) -> None:
    with torch.autocast(call.inputs[0].device.type, dtype=torch.bfloat16):
        value = call.of_inputs(*call.inputs)
        gradients = plain_gradients(call.of_inputs, call.inputs)
    expected = call.reference_of_inputs(*call.inputs)
    same(call, value, expected, check_dtype=False)
    same(call, gradients, reference_gradients(call))


def deterministic(call: Call) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        autograd(call)
    finally:
        torch.use_deterministic_algorithms(False)


EAGER: dict[str, Callable[[Call], None]] = {
    "`autograd.grad`": autograd,
    "`func.grad`": func_grad,
    "`func.vjp`": func_vjp,
    "`functional_call`": functional_call,
    "`vmap`": vmap,
    "`vmap`, labels and keys too": vmap_of_everything,
    "`vmap(grad)`": vmap_of_grad,
    "`grad(vmap)`": grad_of_vmap,
    "`jacrev`": jacrev,
    "forward mode (`jvp`)": forward_mode,
    "second derivative": second_derivative,
    "`grad(grad)`": second_func_grad,
    "activation checkpoint": checkpoint,
    "`inference_mode`": inference_mode,
    "`autocast`": autocast,
    "deterministic algorithms": deterministic,
}


def compiled(name: str, dtype: torch.dtype, device: str) -> None:
    """One program for batches of several sizes, value and gradients."""
    torch._dynamo.reset()
    programs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal programs
        programs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    step = torch.compile(lambda function, *tensors: function(*tensors), fullgraph=True, dynamic=None, backend=backend)
    function = make(name, device, dtype).function
    for n in (7, 9, 12, 20, 31):
        call = make(name, device, dtype, n=n)
        value = plain_gradients(lambda *inputs, c=call: step(function, *inputs, *c.constants), call.inputs)
        same(call, value, reference_gradients(call))
    assert programs <= 2, f"{programs} programs for five batch sizes"
    torch._dynamo.reset()


def compiled_func_grad(name: str, dtype: torch.dtype, device: str) -> None:
    call = make(name, device, dtype)

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        constants = tensors[len(call.inputs) :]
        loss = scalar(lambda *inputs: call.function(*inputs, *constants))
        return torch.func.grad(loss, positions(call))(*tensors[: len(call.inputs)])

    torch._dynamo.reset()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    same(call, compiled(*call.inputs, *call.constants), reference_gradients(call))
    torch._dynamo.reset()


def exported(name: str, dtype: torch.dtype, device: str, *, strict: bool) -> None:
    """One exported program for batches of several sizes."""

    class Model(nn.Module):
        def __init__(self, function: Callable[..., Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *tensors: Tensor) -> Tensor:
            return self.function(*tensors)

    first, second = make(name, device, dtype, n=7), make(name, device, dtype, n=9)
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = []
    for small, large in zip((*first.inputs, *first.constants), (*second.inputs, *second.constants), strict=True):
        sizes = zip(small.shape, large.shape, strict=True)
        shapes.append({i: batch + (s - 7) if s > 7 else batch for i, (s, t) in enumerate(sizes) if s != t})
    tensors = (*first.inputs, *first.constants)
    program = torch.export.export(Model(first.function), tensors, dynamic_shapes=(tuple(shapes),), strict=strict)
    for n in (7, 9, 20):
        call = make(name, device, dtype, n=n)
        same(call, program.module()(*call.inputs, *call.constants), call.reference_of_inputs(*call.inputs))


WHOLE: dict[str, Callable[[str, torch.dtype, str], None]] = {
    "`torch.compile`, one program": compiled,
    "`torch.compile(func.grad)`": compiled_func_grad,
    "`torch.export`, one program": lambda *case: exported(*case, strict=False),
    "`torch.export`, strict": lambda *case: exported(*case, strict=True),
}
# What no operator offers, and those that do.
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    "forward mode (`jvp`)": (),
    "second derivative": ("dropout_linear", "reverse_gradient"),
    "`grad(grad)`": ("dropout_linear", "reverse_gradient"),
}
SENTENCES = ("cannot be differentiated", "has no forward-mode derivative", "under vmap their number may differ")


def expected(name: str, transform: str) -> str:
    if (name, transform) == ('ranksim_loss, "none"', "`vmap`, labels and keys too"):
        return RAISES  # the number of distinct labels may differ between examples
    if transform in EXCEPTIONS and name.split(",")[0] not in EXCEPTIONS[transform]:
        return RAISES
    return WORKS


def table(find: Callable[[str, str], str]) -> str:
    """For each transform, the functions that work and those that raise; ``find`` tells it for a call of ``LOSSES``."""
    functions: dict[str, list[str]] = {}
    for name in LOSSES:
        functions.setdefault(name.split(",")[0], []).append(name)

    def named(transform: str, wanted: str) -> str:
        names = []
        for function, calls in functions.items():
            found = [call for call in calls if find(call, transform) == wanted]
            variants = [f"`{function}`" + call.removeprefix(function).replace(",", " with", 1) for call in found]
            names += [f"`{function}`"] if found == calls else variants
        whole = [f"`{function}`" for function in functions]
        return (
            "every function" if names == whole else ", ".join(names) if len(names) < len(whole) // 2 else "the others"
        )

    lines = ["| | dtypes | works | raises |", "| --- | --- | --- | --- |"]
    for transform in (*EAGER, *WHOLE):
        dtypes = "all four" if transform in EAGER else "float32"
        lines.append(f"| {transform} | {dtypes} | {named(transform, WORKS)} | {named(transform, RAISES)} |")
    return "\n".join(lines) + "\n"


def outcome(name: str, transform: str, device: str, dtype: torch.dtype) -> str:
    """What the transform does to the call: works, checked, or raises a sentence of ours."""
    if transform in EAGER:
        return outcome_of(make(name, device, dtype), transform)
    return _caught(lambda: WHOLE[transform](name, dtype, device))


def outcome_of(call: Call, transform: str) -> str:
    return _caught(lambda: EAGER[transform](call))


def _caught(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (RuntimeError, NotImplementedError) as error:
        if not any(sentence in str(error) for sentence in SENTENCES):
            raise
        return RAISES
    return WORKS
