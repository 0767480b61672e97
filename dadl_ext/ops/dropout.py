"""The dropout operators: their fake kernels, autograd and autocast rules."""

from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from .._shared.dtypes import arithmetic_dtype
from .._shared.members import MEASURES
from .._shared.operation import Operation, apply, differentiated, keep, kept
from ._gradient import save_gradients, scale_gradient
from ._numbers import as_numbers, overload, register_numbers
from ._rules import below_autograd, register_float32_autocast, register_no_derivative

FEW_OUTPUTS = 8  # the most that dropout_disagreement takes, as in csrc/core/philox.h


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    return seed.reshape(()) if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)


def dropout_linear(features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: Any, samples: int) -> Tensor:
    """``[K, B, C]``, differentiable any number of times: with constant masks, the map is linear in each argument."""
    if not isinstance(p, Tensor):
        (p,) = as_numbers(p)
    arguments = (features, weight, bias, seed, p, samples)
    if differentiated(features, weight, bias):
        return apply(_DropoutLinear, *arguments)  # type: ignore[no-any-return]
    return overload(ops.dropout_linear, p)(*arguments)  # type: ignore[no-any-return]


class _DropoutLinear(Operation):
    @staticmethod
    def forward(  # type: ignore[override]
        features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: Any, samples: int
    ) -> Tensor:
        with below_autograd():
            return overload(ops.dropout_linear, p)(features, weight, bias, seed, p, samples)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, weight, _, seed, p, _ = inputs
        keep(ctx, features, weight, seed, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        for_features, for_weight, for_bias = ctx.needs_input_grad[:3]
        features, weight, seed, p = kept(ctx)
        gradients = _gradients(grad, features, weight, seed, p, for_features, for_weight)
        bias_gradient = grad.sum(dim=(0, 1), dtype=arithmetic_dtype(grad)).to(grad.dtype) if for_bias else None
        return *gradients, bias_gradient, None, None, None


def _gradients(
    grad: Tensor, features: Tensor, weight: Tensor, seed: Tensor, p: Any, for_features: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not (for_features or for_weight):
        return None, None
    arguments = (grad, features, weight, seed, p, for_features, for_weight)
    # A compiled backward is not differentiated again.
    if not torch.compiler.is_compiling() and differentiated(grad, features, weight):
        features_gradient, weight_gradient = apply(_Gradients, *arguments)
    else:
        with below_autograd():
            features_gradient, weight_gradient = overload(ops.dropout_linear_backward, p)(*arguments)
    return features_gradient if for_features else None, weight_gradient if for_weight else None


class _Gradients(Operation):
    """The backward is called with v and u, the upstream gradients of the features' and the weight's gradients."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            return overload(ops.dropout_linear_backward, arguments[4])(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, features, weight, seed, p, with_v, with_u = kept(ctx)
        v, u = v if with_v else None, u if with_u else None
        for_grad, for_features, for_weight = ctx.needs_input_grad[:3]
        grad_gradient = features_gradient = weight_gradient = None
        if for_grad:
            for x, w in ((v, weight), (features, u)):
                if x is None or w is None:
                    continue
                term = dropout_linear(x, w, None, seed, p, grad.shape[0])
                grad_gradient = term if grad_gradient is None else grad_gradient + term
        if for_features and u is not None:
            features_gradient, _ = _gradients(grad, features, u, seed, p, True, False)
        if for_weight and v is not None:
            _, weight_gradient = _gradients(grad, v, weight, seed, p, False, True)
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
    (p,) = as_numbers(p)
    number, mean = MEASURES.index(measure), reduction == "mean"
    arguments = (features, weight, bias, seed, p, samples, number, mean, minimax)
    if differentiated(features, weight, bias):
        loss, *_ = apply(_DropoutDisagreement, *arguments)
        return loss  # type: ignore[no-any-return]
    rows, *_ = overload(ops.dropout_disagreement, p)(*arguments, False)
    return rows.sum()  # type: ignore[no-any-return]


class _DropoutDisagreement(Operation):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        with below_autograd():
            rows, *gradients = overload(ops.dropout_disagreement, arguments[4])(*arguments, True)
            return rows.sum(), *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        save_gradients(ctx, output[1:], inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        gradients = [
            scale_gradient(grad, gradient, input) if wanted else None
            for gradient, input, wanted in zip(saved[:3], saved[3:], ctx.needs_input_grad[:3], strict=True)
        ]
        return *gradients, *(None,) * 6


@torch.library.register_fake(add_op_namespace_prefix("dropout_linear"))
def _(features: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, p: float, samples: int) -> Tensor:
    return features.new_empty((samples, features.shape[0], weight.shape[0]))


@torch.library.register_fake(add_op_namespace_prefix("dropout_linear_backward"))
def _(
    grad: Tensor, features: Tensor, weight: Tensor, seed: Tensor, p: float, for_features: bool, for_weight: bool
) -> tuple[Tensor, Tensor]:
    (rows, width), outputs = features.shape, weight.shape[0]
    return features.new_empty((rows if for_features else 0, width)), weight.new_empty(
        (outputs if for_weight else 0, width)
    )


@torch.library.register_fake(add_op_namespace_prefix("dropout_disagreement"))
def _(features: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, (rows, width), outputs = arithmetic_dtype(features), features.shape, weight.shape[0]
    shapes = ((rows, width), (outputs, width), (outputs,)) if arguments[-1] else ((0, width), (0, width), (0,))
    return features.new_empty(rows, dtype=dtype), *(features.new_empty(shape, dtype=dtype) for shape in shapes)  # type: ignore[return-value]


for _operator in ("dropout_linear", "dropout_linear_backward", "dropout_disagreement"):
    register_no_derivative(_operator, "use the functions in dadl_ext.functional")
    register_numbers(_operator)
for _operator in ("dropout_linear", "dropout_disagreement"):
    register_float32_autocast(_operator)
