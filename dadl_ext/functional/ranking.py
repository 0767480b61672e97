"""Ranks with a blackbox gradient."""

from torch import Tensor

from .._library import require_device
from .._shared.checks import check_rank
from ..ops import ranking

__all__ = ["rank"]


def rank(input: Tensor, interp_strength: float = 2.0) -> Tensor:
    r"""Rank the values along the last dimension, in descending order, with a blackbox gradient.

    .. math:: \mathrm{rank}_i = 1 + \#\{j : x_j > x_i\} + \#\{j > i : x_j = x_i\}

    Among equal values the larger index has the better (smaller) rank: ``[0, -1, -1, -2, -2]`` → ``[1, 3, 2, 5, 4]``.
    ``-0`` equals ``+0``. NaN is the largest value, and all NaN are equal, as in :func:`torch.sort`.

    Ranks are piecewise constant. Their surrogate gradient comes from blackbox differentiation (Vlastelica et al., ICLR
    2020; Rolínek et al., CVPR 2020): for the upstream gradient :math:`g` and :math:`\lambda` = ``interp_strength``,

    .. math:: \frac{\partial}{\partial x} = -\frac{\mathrm{rank}(x) - \mathrm{rank}(x + \lambda g)}{\lambda + 10^{-8}}

    It is *not* linear in :math:`g`: scaling a loss (AMP, gradient accumulation) changes it. :func:`ranksim_loss` does
    not have this problem.

    Args:
        input: ``[..., n]`` with ``n`` up to 2²⁴; float32, float64, float16 or bfloat16; any strides.
        interp_strength: λ > 0. Larger values look farther and give smaller gradients.

    Returns:
        The ranks 1..n, ``[..., n]``; float64 for float64 input, else float32.

    Raises:
        TypeError: ``input`` is not a dense floating-point tensor.
        ValueError: ``input`` has no dimension, or ``interp_strength`` is not positive and finite.

    Deterministic: the same bits in every run, for any number of threads. The gradient is computed in the output's dtype
    and rounded to the input's. A second derivative raises ``RuntimeError``. Supports ``torch.compile``, ``torch.vmap``
    and autocast (ranks in float32).
    """
    check_rank(input, interp_strength)
    require_device(input)
    return ranking.rank(input, interp_strength)
