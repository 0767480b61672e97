"""A linear map under many dropout masks, and the disagreement of its results."""

import torch
from torch import Tensor

from .._library import require_device
from .._shared.checks import check_dropout, check_measure, check_reduction
from .._shared.reversal import reverse_gradient
from ..ops import dropout
from .disagreement import disagreement

__all__ = ["dropout_disagreement", "dropout_linear"]


def dropout_linear(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, *, p: float, samples: int, seed: int | Tensor
) -> Tensor:
    r"""A linear map of the features under K dropout masks at once.

    .. math:: P_k = \frac{h \circ m_k}{1 - p} W^\top + b, \quad m_k \sim \mathrm{Bernoulli}(1 - p)

    Each draw uses 16 bits of Philox4x32-10 (Salmon et al., SC 2011), whose key is the seed and whose counter is made of
    member, row and feature. Masks are never stored, and no ``[K, B, F]`` tensor exists: the same seed gives the same
    masks on every device, for any number of threads, and in the backward.

    Args:
        features: ``[B, F]`` or ``[..., F]``; the leading dimensions are flattened into rows.
        weight: ``[C, F]``.
        bias: ``[C]`` or None.
        p: probability that a feature is dropped, in [0, 1), rounded to a multiple of 2⁻¹⁶. Kept features are
            multiplied by exactly one over the rounded probability of being kept.
        samples: K.
        seed: an int, or a tensor of one int64 on the features' device. The host never reads the tensor, so a CUDA graph
            can fill it before each replay.

    Returns:
        ``[K, B, C]`` (``[K, ..., C]``) in the features' dtype, computed in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: dtypes, shapes or devices are not supported or do not match, ``p`` is out of range or so
            small that it rounds to 0, ``samples`` < 1, or the seed is not a 64-bit integer.

    Differentiable any number of times in features, weight and bias; the masks are constants. Forward mode raises.
    Deterministic up to the rounding of BLAS (with more than 8 outputs), which may depend on the number of threads.
    Supports ``torch.compile`` and autocast (in float32).
    """
    features, weight, bias = _out_of_autocast(features, weight, bias)
    check_dropout(features, weight, bias, p, samples, seed)
    require_device(features)
    rows = features.reshape(-1, features.shape[-1])
    result = dropout.dropout_linear(rows, weight, bias, dropout.seed_tensor(seed, rows.device), p, samples)
    return result.reshape(samples, *features.shape[:-1], weight.shape[0])


def dropout_disagreement(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float,
    samples: int,
    seed: int | Tensor,
    measure: str = "mse",
    minimax: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""The :func:`disagreement` of a linear head with itself under the K dropout masks of :func:`dropout_linear`.

    For up to 8 outputs, loss and gradients are formed together, and each mask is drawn once. For more outputs, and for
    ``reduction="none"``, the two functions run one after the other.

    Args:
        features, weight, bias, p, samples, seed: see :func:`dropout_linear`.
        measure, reduction: see :func:`disagreement`; a sample is a row of the features.
        minimax: negate the gradients of weight and bias, so that one step reduces the disagreement in the features and
            increases it in the head, as in the minimax game of the χ-Model (Wang et al., ICLR 2022).

    Returns:
        ``[]``, or ``[B]`` for ``"none"``; float64 for float64 input, else float32.

    Raises:
        TypeError, ValueError: as for the two functions.

    Determinism as for :func:`dropout_linear`. A second derivative and forward mode raise. Supports ``torch.compile``
    and autocast (in float32).
    """
    features, weight, bias = _out_of_autocast(features, weight, bias)
    check_dropout(features, weight, bias, p, samples, seed)
    check_measure(measure)
    check_reduction(reduction)
    require_device(features)
    rows = features.reshape(-1, features.shape[-1])
    seed = dropout.seed_tensor(seed, rows.device)
    if weight.shape[0] <= dropout.FEW_OUTPUTS and reduction != "none":
        return dropout.dropout_disagreement(rows, weight, bias, seed, p, samples, measure, reduction, minimax)
    if minimax:
        weight, bias = reverse_gradient(weight), None if bias is None else reverse_gradient(bias)
    predictions = dropout.dropout_linear(rows, weight, bias, seed, p, samples)
    return disagreement(predictions, measure, reduction=reduction)


def _out_of_autocast(features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, convert all to float32: features may have half precision when weights do not."""
    if not (isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type)):
        return features, weight, bias
    if features.dtype == torch.float64:
        return features, weight, bias
    return features.float(), weight.float(), None if bias is None else bias.float()
