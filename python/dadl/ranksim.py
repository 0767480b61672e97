"""Imbalanced regression with RankSim."""

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from dadl_ext import RankSimLoss

from .reweighting import weighted_l1_loss
from .training import Method


class Regression(Method):
    """Scalar regression: weighted L1, plus RankSim on the features before the last linear layer.

    A batch is ``(inputs, target [B], weight [B])``; with ``ranksim=None`` the loss is the weighted L1 alone.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, ranksim: RankSimLoss | None, lr: float = 1e-2) -> None:
        super().__init__()
        self.encoder, self.head, self.ranksim, self.lr = encoder, head, ranksim, lr

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, target, weight = batch
        features = self.encoder(inputs)
        loss = weighted_l1_loss(self.head(features).squeeze(-1), target.float(), weight)
        return loss if self.ranksim is None else loss + self.ranksim(features, target)

    def predict(self, inputs: Tensor) -> Tensor:
        prediction: Tensor = self.head(self.encoder(inputs)).squeeze(-1)
        return prediction

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        optimizer = AdamW(self.parameters(), lr=self.lr)
        return optimizer, OneCycleLR(optimizer, max_lr=self.lr, total_steps=total_steps)
