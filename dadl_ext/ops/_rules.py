"""Rules that all families register in the same way."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_libraries: list[torch.library.Library] = []  # what is registered through a library lives as long as the library


def below_autograd() -> AbstractContextManager[object]:
    """Call operators without their autograd rules, which saves 20 µs for each.

    Inside a ``torch.autograd.Function`` these rules are only needed to raise on second derivatives.
    """
    needed = torch.compiler.is_compiling() or torch.is_grad_enabled()
    return nullcontext() if needed else torch._C._AutoDispatchBelowAutograd()


def register_no_derivative(operator: str, reason: str) -> None:
    """Raise when an operator is differentiated. Without a rule PyTorch would only warn and return no gradient."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{operator} cannot be differentiated: {reason}.")

    torch.library.register_autograd(operator, backward)


def register_autocast(operator: str, rule: Callable[..., tuple[Any, ...]]) -> None:
    """Under autocast, call an operator with what ``rule`` makes of its arguments."""
    name = operator.removeprefix("dadl::")
    overload = getattr(torch.ops.dadl, name).default
    library = torch.library.Library("dadl", "FRAGMENT")
    _libraries.append(library)

    def below_autocast(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return overload(*rule(*arguments))

    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(name, below_autocast, key)


def register_float32_autocast(operator: str) -> None:
    """Compute in float32 under autocast (float64 inputs stay float64). Gradients have the dtypes of the inputs."""
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(operator, device_type, torch.float32)
