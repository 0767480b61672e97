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
)
from .._shared.reduction import reduce_rows
from ..ops import contrast

__all__ = ["pseudo_group_contrast", "similarity_logsumexp", "supervised_contrast"]


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

    def check() -> None:
        check_group_contrast(query, key, queue, target, slot_count, temperature, form, ignore_index, reduction)
        check_classes(target, queue.shape[0], ignore_index)
        require_device(query)

    check_no_tangent("pseudo_group_contrast", query, key, queue)
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
    loss = contrast.supervised_contrast(features, target, len(classes), temperature)
    return reduce_rows(loss, torch.ones_like(target, dtype=torch.bool), None, reduction)


class _explained_by:
    """Raises ``check``'s error, which says how to fix the arguments, where the operator has refused them.

    The operator checks anyway; to check before each call would take a tenth of a small one.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.check()
