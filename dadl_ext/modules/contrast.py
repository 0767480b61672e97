"""Contrastive losses as modules."""

import torch
from torch import Tensor, nn

from .. import functional as F
from .._shared.checks import FORMS, check_reduction, check_temperature, class_labels
from ..distributed import of_all_processes, sum_of_all_processes
from .class_queue import ClassQueue

__all__ = ["PseudoGroupContrastLoss", "SupervisedContrastLoss"]


class PseudoGroupContrastLoss(nn.Module):
    r"""Pseudo group contrast with its class queue, as in Self-Tuning (Wang et al., ICML 2021).

    >>> contrast = PseudoGroupContrastLoss(num_classes=200, dim=1024)
    >>> loss = cross_entropy(logits, labels) + contrast(query, key, labels)

    Scores a batch against the current queue. Then, in training mode, adds the keys to the queue under their targets.

    Args:
        num_classes: C.
        dim: d, the length of queries and keys.
        slots: D, keys per class.
        temperature: τ.
        form: ``"cross_entropy"`` or ``"kl"``.
        ignore_index: the target of rows that give 0 and are not enqueued.
        normalize: divide queries and keys by their L2 norms; the gradient includes the division.
        valid_only: leave out the random keys in slots that were never written.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        queue_dtype: the dtype of the queue.
        gather_distributed: enqueue the keys of all processes; see :class:`ClassQueue`. The sum and the mean are then
            over the rows of all processes: every process returns the same loss, with the gradient for its own rows.
        averaged_gradients: set it with ``gather_distributed`` inside ``DistributedDataParallel`` or ``fully_shard``.

    Shape:
        query, key ``[B, d]``, target ``[B]`` → ``[]`` (``[B]`` for ``"none"``).

    See :func:`dadl_ext.functional.pseudo_group_contrast` for the formula, dtypes, errors, determinism and second
    derivatives. The queue is in ``state_dict``.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        slots: int = 32,
        temperature: float = 0.07,
        form: str = "cross_entropy",
        ignore_index: int = -1,
        normalize: bool = True,
        valid_only: bool = False,
        reduction: str = "mean",
        queue_dtype: torch.dtype = torch.float32,
        gather_distributed: bool = False,
        averaged_gradients: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        self.queue = ClassQueue(num_classes, dim, slots, dtype=queue_dtype, gather_distributed=gather_distributed)
        self.temperature = temperature
        self.form = form
        self.ignore_index = ignore_index
        self.normalize = normalize
        self.valid_only = valid_only
        self.reduction = reduction
        self.averaged_gradients = averaged_gradients

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        update: bool = True,
    ) -> Tensor:
        """The loss. With ``update=False``, or in evaluation mode, no key is enqueued."""
        key, target = key.detach(), class_labels(target)
        if self.normalize:
            query, key = nn.functional.normalize(query, dim=-1), nn.functional.normalize(key, dim=-1)
        together = self.queue.gather_distributed and self.reduction != "none"
        loss = F.pseudo_group_contrast(
            query,
            key,
            self.queue.keys,
            target,
            temperature=self.temperature,
            form=self.form,
            ignore_index=self.ignore_index,
            sample_weight=sample_weight,
            slot_count=self.queue.slot_count if self.valid_only else None,
            reduction="sum" if together else self.reduction,
        )
        if together:
            loss = self._of_all_processes(loss, target)
        if update and self.training:
            self.queue.enqueue(key, target, target != self.ignore_index)
        return loss

    def _of_all_processes(self, total: Tensor, target: Tensor) -> Tensor:
        if self.averaged_gradients:
            total = of_all_processes(total)
        counted = (target != self.ignore_index).sum()
        total, counted = sum_of_all_processes(torch.stack([total, counted.to(total.dtype)])).unbind()
        return total if self.reduction == "sum" else total / counted.detach().clamp_min(1)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, form={self.form!r}, ignore_index={self.ignore_index}, "
            f"normalize={self.normalize}, valid_only={self.valid_only}, reduction={self.reduction!r}, "
            f"averaged_gradients={self.averaged_gradients}"
        )


class SupervisedContrastLoss(nn.Module):
    r"""Supervised contrastive loss (Khosla et al., NeurIPS 2020), without storing the ``[n, n]`` similarities.

    Args:
        temperature: τ.
        normalize: divide features by their L2 norms; the gradient includes the division.
        reduction: ``"mean"`` over all anchors, ``"sum"`` or ``"none"``.
        gather_distributed: contrast the rows of all processes together.
        averaged_gradients: set it with ``gather_distributed`` inside ``DistributedDataParallel`` or ``fully_shard``.

    Shape:
        features ``[n, d]`` or ``[n, views, d]``, labels ``[n]``, integers → ``[]`` (one per anchor for ``"none"``).

    See :func:`dadl_ext.functional.supervised_contrast` for the formula, dtypes, errors, determinism and second
    derivatives.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        normalize: bool = True,
        reduction: str = "mean",
        gather_distributed: bool = False,
        averaged_gradients: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        self.temperature = temperature
        self.normalize = normalize
        self.reduction = reduction
        self.gather_distributed = gather_distributed
        self.averaged_gradients = averaged_gradients

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.normalize:
            features = nn.functional.normalize(features, dim=-1)
        return F.supervised_contrast(
            features,
            labels,
            temperature=self.temperature,
            reduction=self.reduction,
            gather_distributed=self.gather_distributed,
            averaged_gradients=self.averaged_gradients,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, normalize={self.normalize}, reduction={self.reduction!r}, "
            f"gather_distributed={self.gather_distributed}, averaged_gradients={self.averaged_gradients}"
        )
