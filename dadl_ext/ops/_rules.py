"""Rules that every family registers in the same way."""

from typing import Any, NoReturn

import torch


def register_no_derivative(operator: str, reason: str) -> None:
    """Make differentiating an operator raise: without a rule it would only warn and give no gradient."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{operator} cannot be differentiated: {reason}.")

    torch.library.register_autograd(operator, backward)


def register_float32_autocast(operator: str) -> None:
    """Under autocast the operator computes in float32 (float64 inputs stay); gradients return in the inputs' dtype."""
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(operator, device_type, torch.float32)
