"""Imbalanced regression with RankSim and the methods it is combined with."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from dadl_ext import RankNContrastLoss, RankSimLoss

from ..training.method import Method
from .feature_smoothing import FeatureDistributionSmoothing
from .gradient_share import GradientShare
from .labels.bins import LabelBins
from .labels.transform import TargetTransform
from .losses import BalancedMSE
from .retraining import FrozenEncoder
from .reweighting import weighted_l1_loss

SHARE = "RankSim share"
"""In the log: the norm of RankSim's gradient at the features over that of the task's."""

SIGMA = "sigma"
"""In the log: the deviation of the errors that Balanced MSE reckons with."""

RegressionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean loss of predictions ``[B]``, targets ``[B]`` and weights ``[B]``."""


class Regression(Method):
    """Scalar regression: a loss on predictions, plus RankSim on the features before the last linear layer.

    A batch is ``(inputs, target [B], weight [B])``. RankSim gets the features before smoothing, and the unscaled
    targets, so that scaling cannot round their distances. Predictions have the units of the targets. The log of an
    epoch says how large RankSim's gradient was beside the task's, see :class:`.GradientShare`.

    Args:
        encoder: inputs to features ``[B, d]``.
        head: the last linear layer, ``[B, d]`` to ``[B, 1]``.
        ranksim: the regulariser, or ``None``.
        lr: peak learning rate.
        loss: of predictions and scaled targets; if it is a module with parameters, they are learnt with ten times the
            learning rate. The log tells the σ of :class:`dadl.BalancedMSE`, times ``scale``.
        smoothing: feature distribution smoothing, in the units of the targets; from the second epoch on, with
            statistics of the features after the previous epoch.
        bins: label bins for the smoothing that are not of equal width; its buckets are then their numbers.
        transform: of the targets, before RankSim and the loss see them, or ``None``.
        centre: the head learns ``(target - centre) / scale`` of the transformed target.
        scale: positive.
        rnc: weight of Rank-N-Contrast on the features that RankSim gets.

    Sources: Gong, Mori, Tung, "RankSim: Ranking Similarity Regularization for Deep Imbalanced Regression", ICML 2022;
    Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        ranksim: RankSimLoss | None,
        lr: float = 1e-2,
        *,
        loss: RegressionLoss = weighted_l1_loss,
        smoothing: FeatureDistributionSmoothing | None = None,
        bins: LabelBins | None = None,
        transform: TargetTransform | None = None,
        centre: float = 0.0,
        scale: float = 1.0,
        rnc: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.ranksim, self.lr = encoder, head, ranksim, lr
        self.loss, self.smoothing, self.bins, self.transform = loss, smoothing, bins, transform
        self.share = None if ranksim is None else GradientShare()
        self.rnc, self.contrast = rnc, RankNContrastLoss(gather_distributed=True, averaged_gradients=True)
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, target, weight = batch
        features = self.encoder(inputs)
        if self.ranksim is None or self.share is None:
            loss = self.task(features, target, weight)
        else:
            branch, ranksim_branch = self.share.branches(features)
            loss = self.task(branch, target, weight) + self.ranksim(ranksim_branch, self.labels(target))
        return loss + self.rnc * self.contrast(features, self.labels(target)) if self.rnc else loss

    def task(self, features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The loss of the predictions."""
        smoothed = features if self.smoothing is None else self.smoothing(features, self._buckets(target))
        scaled = ((self.labels(target) - self.centre) / self.scale).float()
        return self.loss(self.head(smoothed).squeeze(-1), scaled, weight)

    def labels(self, target: Tensor) -> Tensor:
        """The targets as RankSim and the loss see them."""
        return target if self.transform is None else self.transform(target)

    def _buckets(self, target: Tensor) -> Tensor:
        """The labels of feature smoothing."""
        return target if self.bins is None else self.bins.numbers(target).float()

    def predict(self, inputs: Tensor) -> Tensor:
        prediction: Tensor = self.module()(inputs)
        return prediction

    def module(self) -> nn.Module:
        return RegressionNetwork(self.encoder, self.head, self.centre, self.scale, self.transform)

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        optimizer = AdamW([p for part in (self.encoder, self.head) for p in _learnt(part)], lr=self.lr)
        if own := _learnt(self.loss):
            # These few parameters have far to go, and weight decay would pull them towards one.
            optimizer.add_param_group({"params": own, "lr": 10 * self.lr, "weight_decay": 0.0})
        return optimizer, OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps)

    @torch.no_grad()
    def after_epoch(self, epoch: int, loader: DataLoader[Any]) -> None:
        """Gather the statistics of the features, for the smoothing of the next epoch."""
        if self.smoothing is None:
            return
        for inputs, target, _ in loader:
            self.smoothing.observe(self.encoder(inputs), self._buckets(target))
        self.smoothing.end_epoch()

    def after_step(self) -> None:
        if self.share is not None:
            self.share.end_step()

    def epoch_log(self) -> Mapping[str, float]:
        """RankSim's share of the gradient, and σ of Balanced MSE in the unit of the labels."""
        log = {} if self.share is None else {SHARE: self.share.take()}
        return log | ({SIGMA: self.loss.sigma * float(self.scale)} if isinstance(self.loss, BalancedMSE) else {})


class RegressionNetwork(nn.Module):
    """The network of a :class:`Regression`: inputs to predictions ``[B]`` in the unit of the targets."""

    centre: Tensor
    scale: Tensor

    def __init__(
        self, encoder: nn.Module, head: nn.Linear, centre: Tensor, scale: Tensor, transform: TargetTransform | None
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.transform = encoder, head, transform
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        prediction: Tensor = self.head(self.encoder(inputs)).squeeze(-1)
        prediction = prediction.to(self.scale.dtype) * self.scale + self.centre  # large targets overflow half precision
        return prediction if self.transform is None else self.transform.inverse(prediction).to(self.scale.dtype)


class ContrastedEncoder(Regression):
    """The encoder learns from Rank-N-Contrast alone, on two passes over each batch, whose random views differ.

    The head learns from the features of the first without changing them, so that epochs can be compared. The first
    stage of Rank-N-Contrast's protocol, before :class:`Retraining`.

    Source: Zha, Cao, Son, Yang, Katabi, "Rank-N-Contrast: Learning Continuous Representations for Regression", NeurIPS
    2023.
    """

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, target, weight = batch
        views = torch.stack([self.encoder(inputs), self.encoder(inputs)], dim=1)
        contrast: Tensor = self.contrast(views, self.labels(target))
        return self.task(views[:, 0].detach(), target, weight) + contrast


class Retraining(Regression):
    """Regressor retraining (RRT): the encoder of an earlier run is frozen, and the head is trained from scratch.

    ``restore`` loads the earlier weights into the encoder it is given. It is called only as training begins:
    checkpoints hold the encoder and no longer need the earlier run. Other arguments as for :class:`Regression`.
    """

    def __init__(
        self, restore: Callable[[nn.Module], None], encoder: nn.Module, head: nn.Linear, **options: Any
    ) -> None:
        frozen = FrozenEncoder(encoder)
        super().__init__(frozen, head, None, **options)
        self.restore = partial(restore, frozen.encoder)

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        self.restore()
        return super().configure_optimizer(total_steps)


def _learnt(part: object) -> list[nn.Parameter]:
    return [p for p in part.parameters() if p.requires_grad] if isinstance(part, nn.Module) else []
