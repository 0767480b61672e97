"""RankSim as a module."""

import torch
from torch import Tensor, nn

from .. import functional as F
from .._shared.checks import LabelSimilarity, check_ranksim_settings

__all__ = ["RankSimLoss"]


class RankSimLoss(nn.Module):
    r"""The RankSim regulariser, :func:`dadl_ext.functional.ranksim_loss` as a module.

    >>> ranksim = RankSimLoss(weight=100.0)
    >>> features = encoder(images)
    >>> loss = l1(head(features), labels) + ranksim(features, labels)

    Args:
        interp_strength: λ of the blackbox gradient.
        weight: γ, inside the perturbation. Multiplying the loss instead would only change the step size.
        reduction: ``"sum"``, ``"mean"`` or ``"none"``.
        label_similarity: ``None``, ``"negative_l1"``, ``"negative_l2"``, ``"cosine"``, a callable, or a matrix.
        gather_distributed: rank the rows of all processes together.
        averaged_gradients: set it with ``gather_distributed`` inside ``DistributedDataParallel`` or ``fully_shard``.

    Shape:
        features ``[n, d]`` or ``[n, ...]``, labels ``[n]`` or ``[n, k]`` → ``[]`` (``[m]`` for ``"none"``).

    See the function for the formula, dtypes, errors, determinism and second derivatives. The module has no parameters
    or buffers; a similarity matrix is not saved.
    """

    def __init__(
        self,
        *,
        interp_strength: float = 2.0,
        weight: float = 1.0,
        reduction: str = "sum",
        label_similarity: LabelSimilarity = None,
        gather_distributed: bool = False,
        averaged_gradients: bool = False,
    ) -> None:
        super().__init__()
        check_ranksim_settings(interp_strength, weight, reduction, label_similarity)
        self.interp_strength = interp_strength
        self.weight = weight
        self.reduction = reduction
        self.label_similarity = label_similarity
        self.gather_distributed = gather_distributed
        self.averaged_gradients = averaged_gradients

    def forward(self, features: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return F.ranksim_loss(
            features,
            labels,
            interp_strength=self.interp_strength,
            weight=self.weight,
            reduction=self.reduction,
            label_similarity=self.label_similarity,
            generator=generator,
            gather_distributed=self.gather_distributed,
            averaged_gradients=self.averaged_gradients,
        )

    def extra_repr(self) -> str:
        similarity = self.label_similarity
        shown = similarity if similarity is None or isinstance(similarity, str) else type(similarity).__name__
        return (
            f"interp_strength={self.interp_strength}, weight={self.weight}, reduction={self.reduction!r}, "
            f"label_similarity={shown!r}, gather_distributed={self.gather_distributed}, "
            f"averaged_gradients={self.averaged_gradients}"
        )
