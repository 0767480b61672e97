"""The gradients of losses that form them with their values."""

import torch
from torch import Tensor

from ._rules import below_autograd, register_no_derivative


def scale_gradient(grad: Tensor, gradient: Tensor, input: Tensor, dim: int = 0) -> Tensor:
    """``grad · gradient`` in the input's dtype, for upstream gradients ``[]`` or along ``dim``."""
    # A gradient times 1 is passed on as it is: not where looking would stop the device, nor where a second derivative
    # may be asked for, which must raise.
    looking = grad.is_cpu and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
    if looking and gradient.dtype == input.dtype and grad.dim() == 0 and grad.item() == 1:
        return gradient
    with below_autograd():
        return torch.ops.dadl.scale_gradient.default(grad, gradient, input, dim)  # type: ignore[no-any-return]


@torch.library.register_fake("dadl::scale_gradient")
def _(grad: Tensor, gradient: Tensor, input: Tensor, dim: int) -> Tensor:
    return input.new_empty(input.shape)


register_no_derivative(
    "dadl::scale_gradient",
    "this loss's gradient is formed with its value and has no second derivative (RankSim's passes through ranks, which "
    "define none). Leave the loss out of what needs one (create_graph=True), or detach it there; dadl_ext.reference "
    "has second derivatives where the mathematics does",
)
