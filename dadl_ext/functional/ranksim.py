"""RankSim, a regulariser for imbalanced regression."""

import torch
from torch import Tensor

from .._library import require_device
from .._shared.checks import LabelSimilarity, check_ranksim
from .._shared.label_similarity import draw_priority, label_similarity_matrix
from .._shared.operation import batched, readable
from ..distributed import gather_batch
from ..ops import ranksim

__all__ = ["ranksim_loss"]


def ranksim_loss(
    features: Tensor,
    labels: Tensor,
    *,
    interp_strength: float = 2.0,
    weight: float = 1.0,
    reduction: str = "sum",
    label_similarity: LabelSimilarity = None,
    generator: torch.Generator | None = None,
    gather_distributed: bool = False,
    averaged_gradients: bool = False,
) -> Tensor:
    r"""RankSim: samples close in label space should be close in feature space, in the same order.

    One row of the batch is drawn for each of the :math:`m` distinct labels. With :math:`S^z` the cosine similarities
    of these rows' features, :math:`S^y` the similarities of their labels (:math:`-|y_i - y_j|`), and :math:`R` the
    row-wise :func:`rank` divided by :math:`m`,

    .. math::
        L = \gamma \sum_{i=1}^m \frac1m \sum_{j=1}^m (R^z_{ij} - R^y_{ij})^2

    and the gradient is that of blackbox differentiation at the perturbed similarities
    :math:`S^z + \lambda g,\ g = \gamma \frac2m (R^z - R^y)`. The weight γ acts *inside* the perturbation, the upstream
    gradient outside. So the gradient is linear in the upstream gradient: AMP loss scales and gradient accumulation do
    not change the method, and ``task_loss + ranksim_loss(...)`` trains as in the paper.

    Source: Gong, Mori, Tung, "RankSim: Ranking Similarity Regularization for Deep Imbalanced Regression", ICML 2022.

    Args:
        features: ``[n, d]`` or ``[n, ...]`` (flattened), the encoder's output before the last linear layer; float32,
            float64, or float16/bfloat16 (computed in float32, under autocast too).
        labels: ``[n]`` or ``[n, k]``, integer or floating-point, on the device of ``features``. Labels are equal if
            they are exactly equal (all NaN are), and distances are computed in the labels' own dtype, because ties
            decide ranks. Labels get no gradient.
        interp_strength: λ > 0 of the blackbox gradient.
        weight: γ ≥ 0, also a factor of the loss value. The paper uses 100 for ages and 3e-4 for STS-B.
        reduction: ``"sum"`` over the rows of the subset (the authors' choice), ``"mean"`` over them, or ``"none"``,
            which returns the ``[m]`` row losses in subset order (and therefore reads ``m`` on the host).
        label_similarity: ``None`` or ``"negative_l1"``: minus the L1 distance. ``"negative_l2"`` or ``"cosine"``: for
            vector labels. A callable ``labels -> matrix``, which gets one label row for each row of the subset (on CUDA
            and under ``torch.compile`` padded with repeats to ``n`` rows; the leading block counts). Or a matrix
            ``[m, m]`` for the distinct labels in ascending order (batch order if all labels differ).
        generator: draws the subset; ``None`` is the default generator of the device. It advances by ``n`` numbers.
        gather_distributed: rank the rows of all processes together. Every process returns the same loss, and the
            gradient of that value with respect to its own rows.
        averaged_gradients: with ``gather_distributed``, multiply the gradient by the number of processes, because
            ``DistributedDataParallel`` and ``fully_shard`` average what the processes have. Training is then that of
            one process with the whole batch.

    Returns:
        ``[]`` or, for ``reduction="none"``, ``[m]``; float64 for float64 features, else float32.

    Raises:
        TypeError: features are not floating-point, or labels neither floating-point nor integer.
        ValueError: shapes or devices do not match, or a value is out of range.

    An empty batch or a single distinct label gives 0 with a zero gradient. NaN or infinity anywhere in the features
    (float64 rows with norms of 1e77 and more count as infinite), or a NaN label distance, gives NaN. A row of zero norm
    follows ``F.normalize(eps=1e-12)``: its gradient is divided by 1e-12. Ranks are decided in float64, with one
    exception: the inner products of 64 or more float32 (or half-precision) rows stay in float32 if they are in its
    range and the perturbation is large, 2λγ/(3m) ≥ 1e-3 (on CUDA whatever their range, and with n for m). Nearly equal
    similarities may then swap; the cosine between the gradient and the exact one stays above .9995. Ties of
    small-integer features are always exact. Deterministic for a given ``generator`` state, up to the rounding of BLAS,
    which may depend on the number of threads. A second derivative and forward mode raise. Supports ``torch.compile``.
    On CUDA nothing synchronises with the host, except ``"none"`` and ``gather_distributed``.
    """
    features, labels = check_ranksim(features, labels, interp_strength, weight, reduction, label_similarity)
    require_device(features)
    priority = draw_priority(labels, generator)
    if gather_distributed:
        features, labels, priority = gather_batch(features, labels, priority, averaged_gradients=averaged_gradients)
    # The operators merge sorted scalar labels themselves.
    merged = labels.dim() == 1 and (
        label_similarity is None or (isinstance(label_similarity, str) and label_similarity != "cosine")
    )
    matrix = None
    if not merged or reduction == "none":
        subset = ranksim.ranksim_select(labels, priority)
        index, _, count = subset
        matrix = None if merged else _label_matrix(labels, index, count, label_similarity)
        if reduction == "none":
            rows = ranksim.ranksim_rows(features, labels, subset, matrix, interp_strength, weight)
            if batched(count):
                raise RuntimeError(
                    'with reduction="none" ranksim_loss returns one loss for each distinct label, and under vmap their '
                    'number may differ between examples; use "sum" or "mean"'
                )
            return _leading(rows, count)
    return ranksim.ranksim_loss(features, labels, priority, matrix, interp_strength, weight, reduction == "mean")


def _leading(rows: Tensor, count: Tensor) -> Tensor:
    length = count.item()
    torch._check(length >= 0)  # what a traced program cannot see
    torch._check(length <= rows.shape[0])
    return rows[:length]


def _label_matrix(labels: Tensor, index: Tensor, count: Tensor, label_similarity: LabelSimilarity) -> Tensor:
    """The similarity matrix of the subset's labels."""
    padded = not readable(count)
    chosen = labels[index if padded else _leading(index, count)]
    matrix = label_similarity_matrix(chosen, label_similarity, padded)
    # float64 is exact for half-precision numbers and for integers up to 2^53.
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.double()
