"""The dropout operators: their fake kernels, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._shared.dtypes import arithmetic_dtype
from .._shared.members import MEASURES
from ._gradient import scale_gradient
from ._rules import below_autograd, register_float32_autocast, register_no_derivative

FEW_OUTPUTS = 8  # the most that dropout_disagreement takes, as in csrc/core/philox.h


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    return seed.reshape(()) if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)


def dropout_linear(
    features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: float, samples: int
) -> Tensor:
    """``[K, B, C]``, differentiable any number of times: with constant masks, the map is linear in each argument."""
    arguments = (features, weight, bias, seed, p, samples)
    wanted = features.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if wanted and torch.is_grad_enabled():
        return _DropoutLinear.apply(*arguments)  # type: ignore[no-any-return]
    return torch.ops.dadl.dropout_linear.default(*arguments)  # type: ignore[no-any-return]


class _DropoutLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: float, samples: int
    ) -> Tensor:
        ctx.save_for_backward(features, weight, seed)
        ctx.p = p
        with below_autograd():
            return torch.ops.dadl.dropout_linear.default(features, weight, bias, seed, p, samples)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, weight, seed = ctx.saved_tensors
        for_features, for_weight, for_bias = ctx.needs_input_grad[:3]
        gradients = _gradients(grad, features, weight, seed, ctx.p, for_features, for_weight)
        bias_gradient = grad.sum(dim=(0, 1), dtype=arithmetic_dtype(grad)).to(grad.dtype) if for_bias else None
        return *gradients, bias_gradient, None, None, None


def _gradients(
    grad: Tensor, features: Tensor, weight: Tensor, seed: Tensor, p: float, for_features: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    arguments = (grad, features, weight, seed, p, for_features, for_weight)
    if torch.is_grad_enabled() and (grad.requires_grad or features.requires_grad or weight.requires_grad):
        features_gradient, weight_gradient = _Gradients.apply(*arguments)
    elif for_features or for_weight:
        with below_autograd():
            features_gradient, weight_gradient = torch.ops.dadl.dropout_linear_backward.default(*arguments)
    return features_gradient if for_features else None, weight_gradient if for_weight else None


class _Gradients(torch.autograd.Function):
    """The backward is called with v and u, the upstream gradients of the features' and the weight's gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        grad, features, weight, seed, ctx.p, ctx.for_features, ctx.for_weight = arguments
        ctx.save_for_backward(grad, features, weight, seed)
        ctx.set_materialize_grads(False)
        with below_autograd():
            return torch.ops.dadl.dropout_linear_backward.default(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, features, weight, seed = ctx.saved_tensors
        v, u = v if ctx.for_features else None, u if ctx.for_weight else None
        for_grad, for_features, for_weight = ctx.needs_input_grad[:3]
        grad_gradient = features_gradient = weight_gradient = None
        if for_grad:
            for x, w in ((v, weight), (features, u)):
                if x is None or w is None:
                    continue
                term = dropout_linear(x, w, None, seed, ctx.p, len(grad))
                grad_gradient = term if grad_gradient is None else grad_gradient + term
        if for_features and u is not None:
            features_gradient, _ = _gradients(grad, features, u, seed, ctx.p, True, False)
        if for_weight and v is not None:
            _, weight_gradient = _gradients(grad, v, weight, seed, ctx.p, False, True)
        return grad_gradient, features_gradient, weight_gradient, None, None, None, None


def dropout_disagreement(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    p: float,
    samples: int,
    measure: str,
    reduction: str,
    minimax: bool,
) -> Tensor:
    """The mean or the sum of the losses, for up to FEW_OUTPUTS outputs. All gradients are formed in the same pass."""
    number, mean = MEASURES.index(measure), reduction == "mean"
    arguments = (features, weight, bias, seed, p, samples, number, mean, minimax)
    wanted = features.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if wanted and torch.is_grad_enabled():
        return _DropoutDisagreement.apply(*arguments)  # type: ignore[no-any-return]
    rows, *_ = torch.ops.dadl.dropout_disagreement.default(*arguments, False)
    return rows.sum()  # type: ignore[no-any-return]


class _DropoutDisagreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        with below_autograd():
            rows, *gradients = torch.ops.dadl.dropout_disagreement.default(features, weight, bias, *arguments, True)
            loss: Tensor = rows.sum()
        ctx.save_for_backward(*gradients, features, weight, bias)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        gradients = [
            scale_gradient(grad, gradient, input) if wanted else None
            for gradient, input, wanted in zip(saved[:3], saved[3:], ctx.needs_input_grad[:3], strict=True)
        ]
        return *gradients, *(None,) * 6


@torch.library.register_fake("dadl::dropout_linear")
def _(features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: float, samples: int) -> Tensor:
    return features.new_empty((samples, features.shape[0], weight.shape[0]))


@torch.library.register_fake("dadl::dropout_linear_backward")
def _(
    grad: Tensor, features: Tensor, weight: Tensor, seed: Tensor, p: float, for_features: bool, for_weight: bool
) -> tuple[Tensor, Tensor]:
    (rows, width), outputs = features.shape, weight.shape[0]
    return features.new_empty((rows if for_features else 0, width)), weight.new_empty(
        (outputs if for_weight else 0, width)
    )


@torch.library.register_fake("dadl::dropout_disagreement")
def _(features: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, (rows, width), outputs = arithmetic_dtype(features), features.shape, weight.shape[0]
    shapes = ((rows, width), (outputs, width), (outputs,)) if arguments[-1] else ((0, width), (0, width), (0,))
    return features.new_empty(rows, dtype=dtype), *(features.new_empty(shape, dtype=dtype) for shape in shapes)  # type: ignore[return-value]


for _operator in ("dropout_linear", "dropout_linear_backward", "dropout_disagreement"):
    register_no_derivative(f"dadl::{_operator}", "use the functions in dadl_ext.functional")
for _operator in ("dropout_linear", "dropout_disagreement"):
    register_float32_autocast(f"dadl::{_operator}")
