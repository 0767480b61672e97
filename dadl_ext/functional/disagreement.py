"""Disagreement between the predictions of several members."""

from torch import Tensor

from .._library import require_device
from .._shared.checks import check_disagreement
from .._shared.members import as_members
from ..ops import disagreement as operator

__all__ = ["disagreement"]


def disagreement(predictions: Tensor, measure: str = "l1", *, reduction: str = "mean") -> Tensor:
    r"""How far the predictions of K members lie apart, in one pass over them.

    The mean over ordered pairs of members :math:`i \ne j` of

    ================  =================================================  ==============================
    ``measure``       distance of two members                            over the outputs of a sample
    ================  =================================================  ==============================
    ``l1``            :math:`|p_i - p_j|`                                mean
    ``mse``           :math:`(p_i - p_j)^2`                              mean
    ``variance``      :math:`(p_i - p_j)^2 / 2`, the unbiased variance   mean
    ``softmax_l1``    :math:`|q_i - q_j|`, q = softmax(p)                mean
    ``symmetric_kl``  :math:`\mathrm{KL}(q_i \Vert q_j)`                 sum over classes, mean of rest
    ================  =================================================  ==============================

    and ``js``, the generalised Jensen-Shannon divergence :math:`H(\bar q) - \frac1K \sum_i H(q_i)` (the mutual
    information of BALD), summed over classes likewise. None of them forms the pairs: O(K) per element (``l1`` of more
    than 32 members O(K log K), of fewer by comparing them). Disagreements as in the χ-Model (Wang et al., ICLR 2022),
    MCD (Saito et al., CVPR 2018: ``softmax_l1``) and R-Drop (Liang et al., NeurIPS 2021: ``symmetric_kl``).

    Args:
        predictions: ``[K, B, ...]``; the last three take logits, with classes in the last dimension, or heatmaps
            ``[K, B, J, H, W]``, where the H·W places of a joint are its classes.
        measure: see above.
        reduction: ``"mean"`` over the batch, ``"sum"`` or ``"none"``.

    Returns:
        ``[]``, or ``[B]`` for ``"none"``; float64 for float64 input, else float32 (also the arithmetic). One member
        gives 0, and an empty batch.

    Raises:
        TypeError: ``predictions`` is not a dense floating-point tensor.
        ValueError: too few dimensions, no member or output, an unknown measure or reduction.

    The gradient is exact; ``l1`` takes 0 for the slope between equal members. Finite for any finite logits: distances
    of logarithms end at 1e37 (1e300 in float64). NaN stays visible. Deterministic: the same bits on every run and
    thread count. A second derivative and forward mode raise; :mod:`dadl_ext.reference` has them. Supports
    ``torch.compile`` and autocast (in float32).
    """
    check_disagreement(predictions, measure, reduction)
    require_device(predictions)
    return operator.disagreement(as_members(predictions, measure), measure, reduction)
