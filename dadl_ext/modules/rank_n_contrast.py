"""Rank-N-Contrast as a module."""

from torch import Tensor, nn

from .. import functional as F
from .._shared.checks import check_rank_n_contrast_settings

__all__ = ["RankNContrastLoss"]


class RankNContrastLoss(nn.Module):
    r"""Rank-N-Contrast, :func:`dadl_ext.functional.rank_n_contrast` as a module.

    >>> contrast = RankNContrastLoss(temperature=2.0)
    >>> views = torch.stack([encoder(view(images)), encoder(view(images))], dim=1)
    >>> loss = contrast(views, labels)

    Args:
        temperature: τ.
        similarity: ``"negative_l2"`` or ``"cosine"``.
        label_distance: ``"l1"`` or ``"l2"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        gather_distributed: contrast the rows of all processes.
        averaged_gradients: set it with ``gather_distributed`` inside ``DistributedDataParallel`` or ``fully_shard``.

    Shape:
        features ``[n, d]`` or ``[n, views, d]``, labels ``[n]`` or ``[n, k]`` → ``[]`` (one per anchor for ``"none"``).

    See the function for the formula, dtypes, errors, determinism and second derivatives. The module has no parameters
    or buffers.
    """

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        similarity: str = "negative_l2",
        label_distance: str = "l1",
        reduction: str = "mean",
        gather_distributed: bool = False,
        averaged_gradients: bool = False,
    ) -> None:
        super().__init__()
        check_rank_n_contrast_settings(temperature, similarity, label_distance, reduction)
        self.temperature = temperature
        self.similarity = similarity
        self.label_distance = label_distance
        self.reduction = reduction
        self.gather_distributed = gather_distributed
        self.averaged_gradients = averaged_gradients

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.rank_n_contrast(
            features,
            labels,
            temperature=self.temperature,
            similarity=self.similarity,
            label_distance=self.label_distance,
            reduction=self.reduction,
            gather_distributed=self.gather_distributed,
            averaged_gradients=self.averaged_gradients,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, similarity={self.similarity!r}, label_distance={self.label_distance!r}, "
            f"reduction={self.reduction!r}, gather_distributed={self.gather_distributed}, "
            f"averaged_gradients={self.averaged_gradients}"
        )
