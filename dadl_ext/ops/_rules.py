"""Rules that all families register in the same way."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch

from .._operators import add_op_namespace_prefix, ops
from .._shared.operation import Operation, apply, transformed

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_HALF = (torch.float16, torch.bfloat16)
_libraries: list[torch.library.Library] = []  # what is registered through a library lives as long as the library


def below_autograd() -> AbstractContextManager[object]:
    """Call operators without their autograd rules, which saves 20 µs for each.

    Inside a ``torch.autograd.Function`` these rules are only needed to raise on second derivatives.
    """
    needed = torch.compiler.is_compiling() or torch.is_grad_enabled()
    return nullcontext() if needed else torch._C._AutoDispatchBelowAutograd()


reasons: dict[str, str] = {}  # why an operator, by its name with the namespace, has no derivative


def register_no_derivative(name: str, reason: str) -> None:
    """Raise when an operator is differentiated. Without a rule PyTorch would only warn and return no gradient."""
    operator = add_op_namespace_prefix(name)
    reasons[operator] = reason
    torch.library.register_autograd(operator, lambda ctx, *grads: _refuse(operator))


def _refuse(operator: str) -> NoReturn:
    raise RuntimeError(f"{operator} cannot be differentiated: {reasons[operator]}.")


class Underivable(Operation):
    """An operator that raises when it is differentiated. Rules of the dispatcher do not work behind transforms."""

    @staticmethod
    def forward(operator: Any, *arguments: Any) -> Any:  # type: ignore[override]
        with below_autograd():
            return operator(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator = inputs[0]._schema.name

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        _refuse(ctx.operator)


def call(operator: Any, *arguments: Any, operation: type[Underivable] = Underivable) -> Any:
    """Call an operator that was registered without a derivative."""
    if transformed():
        return apply(operation, operator, *arguments)
    with below_autograd():
        return operator(*arguments)


def register_autocast(name: str, rule: Callable[..., tuple[Any, ...]]) -> None:
    """Under autocast, call an operator with what ``rule`` makes of its arguments."""
    packet = getattr(ops, name)
    library = torch.library.Library(ops.name, "FRAGMENT")
    _libraries.append(library)

    def below_autocast(overload: Any, *arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return overload(*rule(*arguments))

    for overload in packet.overloads():
        for key in ("AutocastCPU", "AutocastCUDA"):
            kernel = functools.partial(below_autocast, getattr(packet, overload))
            library.impl(name if overload == "default" else f"{name}.{overload}", kernel, key)


def register_float32_autocast(name: str) -> None:
    """Compute in float32 under autocast (float64 inputs stay float64). Gradients have the dtypes of the inputs."""

    def in_float32(*arguments: Any) -> tuple[Any, ...]:
        return tuple(v.float() if isinstance(v, torch.Tensor) and v.dtype in _HALF else v for v in arguments)

    register_autocast(name, in_float32)
