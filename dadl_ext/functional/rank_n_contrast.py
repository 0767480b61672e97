"""Rank-N-Contrast, a contrastive loss for regression."""

from torch import Tensor

from .._library import require_device
from .._shared.checks import check_rank_n_contrast
from ..distributed import gather_batch
from ..ops import rank_n_contrast as ops

__all__ = ["rank_n_contrast"]


def rank_n_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    similarity: str = "negative_l2",
    label_distance: str = "l1",
    reduction: str = "mean",
    gather_distributed: bool = False,
    averaged_gradients: bool = False,
) -> Tensor:
    r"""Rank-N-Contrast: features of an anchor's neighbours in label space are closer to it than those farther away.

    Every other sample j is the positive of anchor i in turn, against all samples whose labels are at least as far from
    the anchor's as the label of j is. With similarities :math:`s_{ij} = -\lVert f_i - f_j \rVert_2 / \tau` and label
    distances :math:`\delta_{ij}`,

    .. math::
        \ell_i = \frac{1}{n - 1} \sum_{j \ne i} \Bigl( \log
        \sum_{k \ne i,\ \delta_{ik} \ge \delta_{ij}} e^{s_{ik}} - s_{ij} \Bigr)

    The others of an anchor are in the order of their labels once, so that the denominators are running sums: the loss
    and its gradient take :math:`O(n^2)` time beside two matrix products (:math:`O(n^2 \log n)` for vector labels), and
    :math:`O(n^2)` memory.

    Source: Zha, Cao, Son, Yang, Katabi, "Rank-N-Contrast: Learning Continuous Representations for Regression", NeurIPS
    2023 (arXiv 2210.01189).

    Args:
        features: ``[n, d]``, or ``[n, views, d]`` with all views as anchors; float32, float64, or float16/bfloat16
            (computed in float32, under autocast too).
        labels: ``[n]`` or ``[n, k]``, integer or floating-point, on the device of ``features``; views share the label
            of their sample. Distances of scalar labels are computed in the labels' own dtype, those of vectors in
            float64: equal distances share a denominator. Labels get no gradient.
        temperature: τ > 0.
        similarity: ``"negative_l2"``, or ``"cosine"``: the cosine over τ.
        label_distance: ``"l1"`` or ``"l2"``, which differ for vector labels.
        reduction: ``"mean"`` over the anchors (the authors' choice), ``"sum"`` over them, or ``"none"``, the losses
            ``[n]`` of the anchors (views concatenated view by view).
        gather_distributed: contrast the rows of all processes. Every process returns the same loss, and the gradient of
            that value with respect to its own rows.
        averaged_gradients: with ``gather_distributed``, multiply the gradient by the number of processes, because
            ``DistributedDataParallel`` and ``fully_shard`` average what the processes have. Training is then that of
            one process with the whole batch.

    Returns:
        ``[]`` or, for ``reduction="none"``, ``[n]``; float64 for float64 features, else float32.

    Raises:
        TypeError: features are not floating-point, or labels neither floating-point nor integer.
        ValueError: shapes or devices do not match, or a value is out of range.

    Fewer than two rows give 0 with a zero gradient. NaN or infinity in features or labels gives NaN. Where two features
    are equal, the subgradient of their distance is 0; of cosines, a row of zero norm follows
    ``F.normalize(eps=1e-12)``. Distances are formed in float64, from inner products or, for features that nearly
    coincide, from their difference, which also serves their part of the gradient. The rest of the gradient is a product
    in float32 (float64 for float64 features). On the CPU all is float32 for 64 rows or more, not of float64, whose
    largest distance from their mean is between τ/2 and 16 τ: as exact there. Deterministic, up to the rounding of BLAS,
    which may depend on the number of threads. A second derivative and forward mode raise. Supports ``torch.compile``
    and ``torch.vmap``. On CUDA nothing synchronises with the host, except ``gather_distributed``.
    """
    features, labels = check_rank_n_contrast(features, labels, temperature, similarity, label_distance, reduction)
    require_device(features)
    if gather_distributed:
        features, labels = gather_batch(features, labels, averaged_gradients=averaged_gradients)
    return ops.rank_n_contrast(features, labels, temperature, similarity, label_distance, reduction)
