"""The backward of operators that form the gradient together with the value."""

import torch
from torch import Tensor

from ._rules import below_autograd, register_no_derivative


def scale_gradient(grad: Tensor, gradient: Tensor, input: Tensor, dim: int = 0) -> Tensor:
    """``grad · gradient`` in the input's dtype; the upstream gradient is ``[]`` or runs along ``dim``."""
    # Skip the multiplication by 1, unless checking for it would synchronise the device, or a second derivative may
    # follow, which must raise.
    may_check = grad.is_cpu and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
    if may_check and gradient.dtype == input.dtype and grad.dim() == 0 and grad.item() == 1:
        return gradient
    with below_autograd():
        return torch.ops.dadl.scale_gradient.default(grad, gradient, input, dim)  # type: ignore[no-any-return]


@torch.library.register_fake("dadl::scale_gradient")
def _(grad: Tensor, gradient: Tensor, input: Tensor, dim: int) -> Tensor:
    return input.new_empty(input.shape)


register_no_derivative(
    "dadl::scale_gradient",
    "the gradient of this loss is formed together with its value and has no second derivative (for RankSim, ranks "
    "define none). Leave the loss out of what needs one (create_graph=True), or detach it there; dadl_ext.reference "
    "has second derivatives wherever they exist",
)
