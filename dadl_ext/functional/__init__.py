"""Differentiable functions over the compiled operators."""

import torch
from torch import Tensor

from .._shared.checks import (
    FORMS,
    REDUCTIONS,
    LabelSimilarity,
    check_classes,
    check_contrast,
    check_disagreement,
    check_dropout,
    check_group_contrast,
    check_measure,
    check_no_tangent,
    check_rank,
    check_ranksim,
    check_reduction,
    check_sample_weight,
    check_supervised_contrast,
)
from ..distributed import gather_batch
from .._shared.label_similarity import draw_priority, label_similarity_matrix
from .._library import require_device
from .._shared.members import as_members
from .._shared.reduction import reduce_rows
from .._shared.reversal import reverse_gradient
from ..ops import contrast, dropout, ranking, ranksim
from ..ops import disagreement as disagreement_operator

__all__ = [
    "disagreement",
    "dropout_disagreement",
    "dropout_linear",
    "pseudo_group_contrast",
    "rank",
    "ranksim_loss",
    "reverse_gradient",
    "similarity_logsumexp",
    "supervised_contrast",
]


def rank(input: Tensor, interp_strength: float = 2.0) -> Tensor:
    r"""Rank the values along the last dimension, descending, with a blackbox gradient.

    .. math:: \mathrm{rank}_i = 1 + \#\{j : x_j > x_i\} + \#\{j > i : x_j = x_i\}

    Among equal values the larger index has the better (smaller) rank: ``[0, -1, -1, -2, -2]`` → ``[1, 3, 2, 5, 4]``.
    ``-0`` equals ``+0``; NaN orders as the largest value and every NaN equals every other, as in :func:`torch.sort`.

    Ranks are piecewise constant. Their surrogate gradient is that of blackbox differentiation
    (Vlastelica et al., ICLR 2020; Rolínek et al., CVPR 2020): for the upstream gradient :math:`g` and
    :math:`\lambda` = ``interp_strength``,

    .. math:: \frac{\partial}{\partial x} = -\frac{\mathrm{rank}(x) - \mathrm{rank}(x + \lambda g)}{\lambda + 10^{-8}}

    It is *not* linear in :math:`g`: scaling a loss (AMP, gradient accumulation) changes it. :func:`ranksim_loss`
    is free of this.

    Args:
        input: ``[..., n]``; float32, float64, float16 or bfloat16; any strides; ``n`` up to 2²⁴.
        interp_strength: λ > 0. Larger values see farther and give smaller gradients.

    Returns:
        ``[..., n]``, the ranks 1..n; float64 for float64 input, else float32.

    Raises:
        TypeError: ``input`` is not a dense floating-point tensor.
        ValueError: ``input`` has no dimension, or ``interp_strength`` is not positive and finite.

    Deterministic: the same bits on every run and thread count. The gradient is computed in the output's dtype and
    rounded to the input's. A second derivative raises ``RuntimeError``. Supports ``torch.compile``, ``torch.vmap`` and
    autocast (which ranks in float32).
    """
    check_rank(input, interp_strength)
    require_device(input)
    return ranking.rank(input, interp_strength)


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
) -> Tensor:
    r"""RankSim: samples that are near in label space shall be near in feature space, in the same order.

    From the batch one row is drawn for each of the :math:`m` distinct labels. With :math:`S^z` the cosine similarities
    of their features, :math:`S^y` the similarities of their labels (:math:`-|y_i - y_j|`), and :math:`R` row-wise
    :func:`rank` divided by :math:`m`,

    .. math::
        L = \gamma \sum_{i=1}^m \frac1m \sum_{j=1}^m (R^z_{ij} - R^y_{ij})^2

    and the gradient is that of blackbox differentiation at the perturbed similarities
    :math:`S^z + \lambda g,\ g = \gamma \frac2m (R^z - R^y)`. The weight γ acts *inside* the perturbation and the
    upstream gradient outside, so the gradient is linear in the upstream gradient: AMP loss scales and gradient
    accumulation leave the method unchanged, and ``task_loss + ranksim_loss(...)`` trains as in the paper.

    Source: Gong, Mori, Tung, "RankSim: Ranking Similarity Regularization for Deep Imbalanced Regression", ICML 2022.

    Args:
        features: ``[n, d]`` or ``[n, ...]`` (flattened), the encoder's output before the last linear layer; float32,
            float64, or float16/bfloat16 (computed in float32, under autocast too).
        labels: ``[n]`` or ``[n, k]``, integer or floating-point, on the device of ``features``. Equal labels are found
            by exact equality, and distances are computed in the labels' own dtype, because ties decide ranks. No
            gradient flows to them.
        interp_strength: λ > 0 of the blackbox gradient.
        weight: γ ≥ 0. Part of the loss value. The paper uses 100 for ages and 3e-4 for STS-B.
        reduction: ``"sum"`` over the rows of the subset (the authors' choice), ``"mean"`` over them, or ``"none"``,
            which returns the ``[m]`` row losses in subset order (and so reads ``m`` on the host).
        label_similarity: ``None`` or ``"negative_l1"``: minus the L1 distance. ``"negative_l2"``, ``"cosine"``: for
            vector labels. A callable ``labels -> matrix``, called with one label row per subset row (on CUDA and
            under ``torch.compile`` padded with repeats to ``n`` rows; the leading block counts). Or a ready matrix
            ``[m, m]`` for the distinct labels in ascending order (batch order if all labels differ).
        generator: draws the subset; ``None`` is the default generator of the device. It advances by ``n`` numbers.
        gather_distributed: rank the rows of all processes together. Every process returns the same loss, and the
            gradient of that value with respect to its own rows. DistributedDataParallel averages gradients, so
            multiply the loss by the number of processes to train as one process would on the whole batch.

    Returns:
        ``[]`` or, for ``reduction="none"``, ``[m]``; float64 for float64 features, else float32.

    Raises:
        TypeError: features are not floating-point, labels neither floating-point nor integer.
        ValueError: shapes or devices that do not match, values out of range.

    An empty batch, or a single distinct label, gives 0 with a zero gradient. NaN or infinity anywhere in the features,
    or a NaN label distance, gives NaN. A row of zero norm follows ``F.normalize(eps=1e-12)``: its gradient is divided
    by 1e-12. Ranks are decided in float64, except that on the CPU the inner products of 64 or more float32 (or
    half-precision) rows stay in float32 where the perturbation is large, 2λγ/(3m) ≥ 1e-3: nearly equal similarities may
    then swap, which leaves the gradient's cosine to the exact one above .9995. Ties of small-integer features are
    always exact. Deterministic for a given ``generator`` state, up to the rounding of the BLAS, which may depend on
    the number of threads. A second derivative and forward mode raise. Supports ``torch.compile`` and, without host
    synchronisation, CUDA (``"none"`` and ``gather_distributed`` synchronise).
    """
    features, labels = check_ranksim(features, labels, interp_strength, weight, reduction, label_similarity)
    require_device(features)
    priority = draw_priority(labels, generator)
    if gather_distributed:
        features, labels, priority = gather_batch(features, labels, priority)
    # Sorted scalar labels the operators merge themselves.
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
            return rows[: int(count)]
    return ranksim.ranksim_loss(features, labels, priority, matrix, interp_strength, weight, reduction == "mean")


def _label_matrix(labels: Tensor, index: Tensor, count: Tensor, label_similarity: LabelSimilarity) -> Tensor:
    """The similarity matrix of the subset's labels."""
    padded = labels.device.type != "cpu" or torch.compiler.is_compiling()
    chosen = labels[index if padded else index[: int(count)]]
    matrix = label_similarity_matrix(chosen, label_similarity, padded)
    # float64 holds the halves, and integers up to 2^53, exactly.
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.double()


def similarity_logsumexp(
    query: Tensor, key: Tensor, *, scale: float = 1.0, key_mask: Tensor | None = None, exclude_self: bool = False
) -> Tensor:
    r"""Log-sum-exp of scaled similarities, without holding the ``[B, N]`` similarities.

    .. math:: \mathrm{lse}_i = \log \sum_j \exp(\mathrm{scale} \cdot q_i^\top k_j)

    Args:
        query: ``[B, d]``; float32, float64, float16 or bfloat16.
        key: ``[N, d]``; any of these dtypes, but float64 only together with a float64 query.
        scale: factor of the similarities, e.g. one over a temperature.
        key_mask: ``[N]`` bool, True for the keys that take part; all by default.
        exclude_self: leave key i out for query i (``N == B``).

    Returns:
        ``[B]``; float64 for float64 input, else float32 (also the arithmetic). -inf with a zero gradient where no key
        takes part. NaN in a query or in a key that takes part shows as NaN.

    Raises:
        TypeError, ValueError: unsupported dtypes, shapes that do not fit, tensors on different devices.

    The gradient goes to both sides. On CUDA, where query and key share float16 or bfloat16, tensor cores form it from
    weights in that dtype. Deterministic for a number of threads, which may change the rounding; on CUDA for
    a GPU model. A second derivative raises ``RuntimeError``.
    """
    try:
        return contrast.SimilarityLogsumexp.apply(  # type: ignore[no-any-return, no-untyped-call]
            query, key, key_mask, scale, exclude_self, torch.is_grad_enabled()
        )
    except Exception:
        # What the operator has refused, this tells with what to do about it.
        check_contrast(query, key, scale, key_mask, exclude_self)
        check_no_tangent("similarity_logsumexp", query, key)
        require_device(query)
        raise


def pseudo_group_contrast(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.07,
    form: str = "cross_entropy",
    ignore_index: int = -1,
    sample_weight: Tensor | None = None,
    slot_count: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Pseudo group contrast of Self-Tuning (Wang et al., ICML 2021, arXiv 2102.12903).

    For query i with label or pseudo-label y, its own key and the keys of class y in the queue are positives, all keys
    of the queue and its own are in the denominator; :math:`s = q^\top k / \tau`, P positives:

    .. math:: \ell_i = \log \sum_j e^{s_{ij}} - \frac{1}{P} \Bigl(s_{i,\mathrm{own}} + \sum_{j \in y} s_{ij}\Bigr)

    and :math:`\ell_i - \log P` for ``form="kl"``, which has the same gradient. One pass over the queue gives the loss
    and the gradient, :math:`\frac{1}{\tau}(\sum_j p_{ij} k_j - \text{mean of the positive keys})`.

    Args:
        query: ``[B, d]``, as given: normalise it, or use :class:`dadl_ext.PseudoGroupContrastLoss`, which does.
        key: ``[B, d]``, the queries' own keys; without gradient.
        queue: ``[C, D, d]``, D keys of each of C classes; without gradient; may be stored in float16 or bfloat16.
        target: ``[B]`` int64, classes, or ``ignore_index`` for rows that are to give 0.
        temperature: τ > 0.
        form: ``"cross_entropy"`` or ``"kl"``.
        ignore_index: the target of rows that do not count; not a class.
        sample_weight: ``[B]``, multiplies the row losses.
        slot_count: ``[C]`` int64, the number of valid leading slots of each class; all by default.
        reduction: ``"mean"`` (over the rows that count, whatever their weights; 0 without any), ``"sum"``, ``"none"``.

    Returns:
        ``[]``, or ``[B]`` for ``"none"``; float64 for float64 input, else float32 (also the arithmetic).

    Raises:
        TypeError, ValueError: unsupported dtypes, shapes that do not fit, tensors on different devices, a target that
            is no class (on CUDA such a row is NaN instead, because looking would stop the device).

    On CUDA, where query and queue share float16 or bfloat16, tensor cores form the gradient from weights in that dtype.
    Deterministic for a number of threads, which may change the rounding; on CUDA for a GPU model. A second
    derivative raises ``RuntimeError``.
    """
    row_reduction = reduction if sample_weight is None else "none"
    check_no_tangent("pseudo_group_contrast", query, key, queue)
    try:
        numbers = temperature, FORMS.index(form), ignore_index, REDUCTIONS.index(row_reduction)
        with_slope = query.requires_grad and torch.is_grad_enabled()
        loss: Tensor = contrast.PseudoGroupContrast.apply(  # type: ignore[no-untyped-call]
            query, (key, queue, target, slot_count, *numbers, with_slope)
        )
    except Exception:
        # What the operator has refused, this tells with what to do about it.
        check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction)
        check_classes(target, queue.shape[0], ignore_index)
        require_device(query)
        raise
    if sample_weight is None:
        return loss
    check_sample_weight(sample_weight, target)
    check_reduction(reduction)
    return reduce_rows(loss, target != ignore_index, sample_weight, reduction)


def supervised_contrast(
    features: Tensor, labels: Tensor, *, temperature: float = 0.07, reduction: str = "mean"
) -> Tensor:
    r"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, :math:`\mathcal{L}^{\mathrm{sup}}_{\mathrm{out}}`).

    .. math:: \ell_i = \log \sum_{j \ne i} e^{z_i^\top z_j / \tau}
        - \frac{1}{|P_i|} \sum_{j \in P_i} z_i^\top z_j / \tau

    with :math:`P_i` the other samples of the anchor's class; 0 for anchors without any.

    Args:
        features: ``[n, d]``, or ``[n, views, d]``, all views then being anchors; as given, normalise them before.
        labels: ``[n]`` int64.
        temperature: τ > 0.
        reduction: ``"mean"`` over all anchors, ``"sum"``, or ``"none"``
            (``[n]``; views follow each other view by view).

    Returns:
        ``[]`` or a loss per anchor; float64 for float64 input, else float32. The similarities are never held.

    Raises:
        TypeError, ValueError: unsupported dtypes, shapes that do not fit, tensors on different devices.

    A second derivative raises ``RuntimeError``. The sums of each class are formed with ``index_add``, which on CUDA is
    deterministic only under ``torch.use_deterministic_algorithms(True)``; the number of classes is read on the host.
    """
    features, labels = check_supervised_contrast(features, labels, temperature, reduction)
    require_device(features)
    classes, target = torch.unique(labels, return_inverse=True)
    loss = contrast.SupervisedContrast.apply(features, target, len(classes), temperature, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return reduce_rows(loss, torch.ones_like(target, dtype=torch.bool), None, reduction)


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
    return disagreement_operator.disagreement(as_members(predictions, measure), measure, reduction)


def dropout_linear(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, *, p: float, samples: int, seed: int | Tensor
) -> Tensor:
    r"""A linear map of the features under K dropout masks at once.

    .. math:: P_k = \frac{h \circ m_k}{1 - p} W^\top + b, \quad m_k \sim \mathrm{Bernoulli}(1 - p)

    Masks are drawn from 16 bits each of Philox4x32-10 (Salmon et al., SC 2011), keyed by the seed and counted by
    member, row and feature. They are never stored: the same seed gives the same masks on every device, for any number
    of threads and in the backward, and no ``[K, B, F]`` tensor exists.

    Args:
        features: ``[B, F]`` or ``[..., F]``; rows are counted through the leading dimensions.
        weight: ``[C, F]``.
        bias: ``[C]`` or None.
        p: probability that a feature is dropped, in [0, 1), rounded to a multiple of 2⁻¹⁶. Kept features are
            multiplied by exactly one over the probability so rounded.
        samples: K.
        seed: an int, or one int64 in a tensor on the features' device, which nothing reads on the host: a CUDA graph
            may fill it before each replay.

    Returns:
        ``[K, B, C]`` (``[K, ..., C]``) in the features' dtype, computed in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: unsupported or different dtypes, shapes that do not fit, different devices, ``p`` out of
            range or so small that it rounds to 0, ``samples`` < 1, a seed that is no 64-bit integer.

    Differentiable any number of times in features, weight and bias, the masks being constants; forward mode raises.
    Deterministic up to the rounding of BLAS (more than 8 outputs), which may depend on the number of threads. Supports
    ``torch.compile`` and autocast (in float32).
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
    r"""The :func:`disagreement` of a linear head with itself under K dropout masks, as for :func:`dropout_linear`.

    For up to 8 outputs loss and gradients come from one pass over the features, in which each mask is drawn once. For
    more, and for ``reduction="none"`` with a gradient, it is the two functions in turn.

    Args:
        features, weight, bias, p, samples, seed: see :func:`dropout_linear`.
        measure, reduction: see :func:`disagreement`; a sample is a row of the features.
        minimax: negate the gradients of weight and bias, so that one step makes the features agree and the head
            disagree, as in the game of the χ-Model (Wang et al., ICLR 2022).

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
    """Under autocast features may be of half precision and weights not: all become float32."""
    if not (isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type)):
        return features, weight, bias
    if features.dtype == torch.float64:
        return features, weight, bias
    return features.float(), weight.float(), None if bias is None else bias.float()
