"""Disagreement between the predictions of several members."""

from torch import Tensor

from .._library import require_device
from .._shared.checks import check_disagreement
from .._shared.members import as_members
from ..ops import disagreement as operator

__all__ = ["disagreement"]


def disagreement(predictions: Tensor, measure: str = "l1", *, reduction: str = "mean") -> Tensor:
    r"""How far the predictions of K members are apart, in one pass over them.

    The mean over all ordered pairs of members :math:`i \ne j` of

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
    information of BALD), also summed over classes. No tensor of pairs is formed. The cost per element is O(K), except
    for ``l1``: up to 32 members are compared with each other, more are sorted. Such disagreements are used in the
    χ-Model (Wang et al., ICLR 2022), MCD (Saito et al., CVPR 2018: ``softmax_l1``) and R-Drop (Liang et al., NeurIPS
    2021: ``symmetric_kl``).

    Args:
        predictions: ``[K, B, ...]``. The measures over classes take logits, with classes in the last dimension, or
            heatmaps ``[K, B, J, H, W]``, where the H·W places are the classes of a joint.
        measure: see above.
        reduction: ``"mean"`` over the batch, ``"sum"`` or ``"none"``.

    Returns:
        ``[]``, or ``[B]`` for ``"none"``; float64 for float64 input, else float32 (also the arithmetic). A single
        member or an empty batch gives 0.

    Raises:
        TypeError: ``predictions`` is not a dense floating-point tensor.
        ValueError: too few dimensions, no member or output, or an unknown measure or reduction.

    The gradient is exact; the slope of ``l1`` between equal members is 0. Finite logits give finite results:
    log-probabilities are bounded at -1e37 (-1e300 in float64). NaN stays visible. Deterministic: the same bits in every
    run, for any number of threads. A second derivative and forward mode raise; :mod:`dadl_ext.reference` has them.
    Supports ``torch.compile`` and autocast (in float32).
    """
    check_disagreement(predictions, measure, reduction)
    require_device(predictions)
    return operator.disagreement(as_members(predictions, measure), measure, reduction)
