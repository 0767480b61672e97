"""The backward of operators that form the gradient together with the value."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._operators import add_op_namespace_prefix, ops
from ._rules import call, register_no_derivative


def save_gradients(ctx: Any, gradients: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> None:
    """Of an operation's results, save the gradients, and its inputs for :func:`scale_gradient`."""
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients, *inputs)


def scale_gradient(grad: Tensor | None, gradient: Tensor, input: Tensor, dim: int = 0) -> Tensor | None:
    """``grad · gradient`` in the input's dtype; the upstream gradient is ``[]`` or runs along ``dim``."""
    if grad is None:  # nothing flows back
        return None
    if gradient.dtype == input.dtype and grad.dim() == 0 and _is_last_use(grad) and grad.item() == 1:
        return gradient  # skips the multiplication by 1
    return call(ops.scale_gradient.default, grad, gradient, input, dim)  # type: ignore[no-any-return]


def _is_last_use(grad: Tensor) -> bool:
    """Whether the graph is freed after this backward, so that what it saved may be given away.

    False where a look at the upstream gradient would synchronise the device or where a second derivative may follow,
    which must raise.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not grad.is_cpu:
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()


@torch.library.register_fake(add_op_namespace_prefix("scale_gradient"))
def _(grad: Tensor, gradient: Tensor, input: Tensor, dim: int) -> Tensor:
    return input.new_empty(input.shape)


register_no_derivative(
    "scale_gradient",
    "the gradient of this loss is formed together with its value and has no second derivative (for RankSim, ranks "
    "define none). Leave the loss out of what needs one (create_graph=True), or detach it there; dadl_ext.reference "
    "has second derivatives wherever they exist",
)
