"""Contrast between queries and many keys."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._library import require_device
from .._shared.checks import (
    check_classes,
    check_contrast,
    check_group_contrast,
    check_no_tangent,
    check_reduction,
    check_sample_weight,
    check_supervised_contrast,
    class_labels,
)
from .._shared.reduction import reduce_rows
from ..distributed import gather_batch
from ..ops import contrast

__all__ = ["pseudo_group_contrast", "similarity_logsumexp", "supervised_contrast"]


def similarity_logsumexp(
    query: Tensor, key: Tensor, *, scale: float = 1.0, key_mask: Tensor | None = None, exclude_self: bool = False
) -> Tensor:
    r"""Log-sum-exp of scaled similarities, without storing the ``[B, N]`` similarities.

    .. math:: \mathrm{lse}_i = \log \sum_j \exp(\mathrm{scale} \cdot q_i^\top k_j)

    Args:
        query: ``[B, d]``; float32, float64, float16 or bfloat16.
        key: ``[N, d]``; any of these dtypes, but float64 only with a float64 query.
        scale: factor of the similarities, for example one over a temperature.
        key_mask: ``[N]`` bool, True for the keys that take part; by default all do.
        exclude_self: leave key i out for query i (``N == B``).

    Returns:
        ``[B]``; float64 for float64 input, else float32 (also the arithmetic). -inf with a zero gradient if no key
        takes part. NaN in a query, or in a key that takes part, gives NaN, and so does a similarity of +infinity; one
        of -infinity has no weight. A key that is left out for its own query only may still make that query's gradient
        NaN, if it is NaN.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices are not supported or do not match.

    Both query and key get a gradient. On CUDA, if query and key share float16 or bfloat16, tensor cores form it from
    weights in that dtype. Deterministic for a given number of threads, which may change the rounding; on CUDA, for a
    given GPU model. A second derivative raises ``RuntimeError``.
    """

    def check() -> None:
        check_contrast(query, key, scale, key_mask, exclude_self)
        require_device(query)

    check_no_tangent("similarity_logsumexp", query, key)
    with _explained_by(check):
        return contrast.similarity_logsumexp(query, key, key_mask, scale, exclude_self)


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

    For query i with label or pseudo-label y, the positives are its own key and the keys of class y in the queue. The
    denominator has its own key and all keys of the queue. With :math:`s = q^\top k / \tau` and P positives,

    .. math:: \ell_i = \log \sum_j e^{s_{ij}} - \frac{1}{P} \Bigl(s_{i,\mathrm{own}} + \sum_{j \in y} s_{ij}\Bigr)

    and :math:`\ell_i - \log P` for ``form="kl"``, which has the same gradient. One pass over the queue gives the loss
    and its gradient, :math:`\frac{1}{\tau}(\sum_j p_{ij} k_j - \text{mean of the positive keys})`.

    Args:
        query: ``[B, d]``, not normalised here; :class:`dadl_ext.PseudoGroupContrastLoss` normalises.
        key: ``[B, d]``, the queries' own keys; they get no gradient.
        queue: ``[C, D, d]``, D keys for each of C classes, possibly in float16 or bfloat16; they get no gradient.
        target: ``[B]`` (or ``[B, 1]``), of any integer dtype: classes, or ``ignore_index`` for rows that give 0.
        temperature: τ > 0.
        form: ``"cross_entropy"`` or ``"kl"``.
        ignore_index: the target of rows that do not count; must not be a class.
        sample_weight: ``[B]``, multiplies the row losses.
        slot_count: ``[C]`` integers, the number of valid leading slots of each class; by default all are valid.
        reduction: ``"mean"`` over the rows that count, whatever their weights (0 without any), ``"sum"`` or ``"none"``.

    Returns:
        ``[]``, or ``[B]`` for ``"none"``; float64 for float64 input, else float32 (also the arithmetic).

    Raises:
        TypeError, ValueError: dtypes, shapes or devices are not supported or do not match, or a target is not a class
            (on CUDA the loss of its row is NaN instead, because checking would synchronise the device).

    On CUDA, if query and queue share float16 or bfloat16, tensor cores form the gradient from weights in that dtype.
    Deterministic for a given number of threads, which may change the rounding; on CUDA, for a given GPU model. A second
    derivative raises ``RuntimeError``.
    """

    def check() -> None:
        check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction)
        check_classes(target, queue.shape[0], ignore_index)
        require_device(query)

    check_no_tangent("pseudo_group_contrast", query, key, queue)
    target = class_labels(target)
    slot_count = None if slot_count is None else class_labels(slot_count)
    row_reduction = reduction if sample_weight is None else "none"
    with _explained_by(check):
        loss = contrast.pseudo_group_contrast(
            query, key, queue, target, slot_count, temperature, form, ignore_index, row_reduction
        )
    if sample_weight is None:
        return loss
    check_sample_weight(sample_weight, target)
    check_reduction(reduction)
    return reduce_rows(loss, target != ignore_index, sample_weight, reduction)


def supervised_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    reduction: str = "mean",
    gather_distributed: bool = False,
    averaged_gradients: bool = False,
) -> Tensor:
    r"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, :math:`\mathcal{L}^{\mathrm{sup}}_{\mathrm{out}}`).

    .. math:: \ell_i = \log \sum_{j \ne i} e^{z_i^\top z_j / \tau}
        - \frac{1}{|P_i|} \sum_{j \in P_i} z_i^\top z_j / \tau

    where :math:`P_i` are the other samples of the anchor's class. The loss of an anchor without any is 0.

    Args:
        features: ``[n, d]``, or ``[n, views, d]`` with all views as anchors; not normalised here,
            :class:`dadl_ext.SupervisedContrastLoss` normalises.
        labels: ``[n]`` (or ``[n, 1]``), of any integer dtype.
        temperature: τ > 0.
        reduction: ``"mean"`` over all anchors, ``"sum"``, or ``"none"`` (the views concatenated view by view).
        gather_distributed: contrast the rows of all processes. Every process returns the same loss, and the gradient of
            that value with respect to its own rows.
        averaged_gradients: with ``gather_distributed``, multiply the gradient by the number of processes, because
            ``DistributedDataParallel`` and ``fully_shard`` average what the processes have. Training is then that of
            one process with the whole batch.

    Returns:
        ``[]``, or a loss for each anchor; float64 for float64 input, else float32. The similarities are never stored.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices are not supported or do not match.

    A second derivative raises ``RuntimeError``. ``index_add`` forms the sums of each class; on CUDA it is deterministic
    only under ``torch.use_deterministic_algorithms(True)``. With ``gather_distributed`` the batch sizes are read on the
    host.
    """
    features, labels = check_supervised_contrast(features, labels, temperature, reduction)
    require_device(features)
    if gather_distributed:
        features, labels = gather_batch(features, labels, averaged_gradients=averaged_gradients)
    # To number the classes one by one would synchronise with the device.
    rows = contrast.supervised_contrast(features, *_classes(labels), temperature)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / max(labels.shape[0], 1)


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each label's class among all labels in order, and how many others the class has."""
    labels = labels.contiguous()  # searchsorted warns of others
    ordered = labels.sort().values
    first = torch.searchsorted(ordered, labels)
    return first, torch.searchsorted(ordered, labels, right=True) - first - 1


class _explained_by:
    """If the operator refuses its arguments, raises the error of ``check``, which says how to fix them.

    The operator checks in any case. Checking before every call would take a tenth of the time of a small one.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.check()
