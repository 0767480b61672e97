"""Rules that every family registers in the same way."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch


def below_autograd() -> AbstractContextManager[object]:
    """Calls operators without their autograd rules, which a ``torch.autograd.Function`` needs only to raise on second
    derivatives: 20 µs less each."""
    needed = torch.compiler.is_compiling() or torch.is_grad_enabled()
    return nullcontext() if needed else torch._C._AutoDispatchBelowAutograd()


def register_no_derivative(operator: str, reason: str) -> None:
    """Make differentiating an operator raise: without a rule it would only warn and give no gradient."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{operator} cannot be differentiated: {reason}.")

    torch.library.register_autograd(operator, backward)


def register_float32_autocast(operator: str) -> None:
    """Under autocast the operator computes in float32 (float64 inputs stay); gradients return in the inputs' dtype."""
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(operator, device_type, torch.float32)
