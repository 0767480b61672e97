"""CMW-Net-SL: labels blended, by the sample's weight, with predictions of a moving average of the network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta
from torch.optim import Optimizer

from ..networks.momentum_encoder import MomentumEncoder
from .meta_gradient import Batch, BatchObjective, MetaMethod, WeightedLosses
from .reweighter import MetaReweighter, Reweighted


class SoftLabelReweighter(MetaReweighter):
    r"""Trains a classifier on mixed samples whose labels are trusted according to their weights.

    For a batch :math:`(x, y)`, a random permutation :math:`\pi`, a share :math:`\lambda = \max(b, 1 - b)` with
    :math:`b \sim \mathrm{Beta}(a, a)`, and mixed inputs :math:`\tilde x = \lambda x + (1 - \lambda) x_\pi`, the loss is
    the mean of

    .. math:: \lambda \left[ v \,\mathrm{CE}(y) + (1 - v) \,\mathrm{CE}(z) \right]
              + (1 - \lambda) \left[ v' \,\mathrm{CE}(y_\pi) + (1 - v') \,\mathrm{CE}(z_\pi) \right],

    the cross-entropies of the network's prediction for :math:`\tilde x`. The soft labels z are the probabilities that a
    moving average of the network predicts for the unmixed samples; v and v' are the weights of the losses CE(y) and
    CE(y_π). The meta loss is the plain cross-entropy of the meta batch.

    Otherwise this is :class:`MetaReweighter`, with weights ``[2n]``, v followed by v'. A loop that calls :meth:`loss`
    must call :meth:`update_teacher` after each step of its optimiser.

    With several processes each mixes its own rows, with its own λ and permutation.

    Args:
        mixup: a of the Beta distribution.
        momentum: of the moving average.
        teacher: an existing moving average, with its own momentum, e.g. one that is in the checkpoints of a loop.

    The other arguments are those of :class:`MetaReweighter`. Random numbers come from PyTorch's default generator.

    Source: Shu, Yuan, Meng, Xu, "CMW-Net", TPAMI 2023; mixup: Zhang et al., ICLR 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        weight_net: nn.Module,
        *,
        meta_optimizer: Optimizer,
        mixup: float = 1.0,
        momentum: float = 0.997,
        teacher: MomentumEncoder | None = None,
        method: MetaMethod = "jvp",
        interval: int = 1,
    ) -> None:
        super().__init__(model, optimizer, weight_net, meta_optimizer=meta_optimizer, method=method, interval=interval)
        if not mixup > 0:
            raise ValueError(f"mixup must be positive, got {mixup}")
        self.mixup = mixup
        self.teacher = MomentumEncoder(model, momentum, buffers="copied") if teacher is None else teacher

    def step(self, batch: Any, meta_batch: Batch | None = None) -> Reweighted:
        result = super().step(batch, meta_batch)
        self.update_teacher()
        return result

    def update_teacher(self) -> None:
        self.teacher.update(self.model)

    def objective(self, batch: Any) -> BatchObjective:
        inputs, targets = batch
        b = float(Beta(self.mixup, self.mixup).sample())
        share = max(b, 1 - b)
        partner = torch.randperm(len(targets)).to(targets.device)
        soft_labels = self.teacher.eval()(inputs).softmax(dim=1)  # a parent's train() also reaches the teacher
        return mixed_objective(inputs, targets, soft_labels, share, partner)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])


def mixed_objective(
    inputs: Tensor, targets: Tensor, soft_labels: Tensor, share: float, partner: Tensor
) -> BatchObjective:
    """The loss of :class:`SoftLabelReweighter` for given soft labels ``[n, C]``, λ and permutation ``[n]``."""
    both_targets = torch.cat([targets, targets[partner]])
    both_soft = torch.cat([soft_labels, soft_labels[partner]])
    shares = torch.cat([torch.full_like(soft_labels[:, 0], s) for s in (share, 1 - share)])

    def evaluate(output: Tensor) -> WeightedLosses:
        both = output.log_softmax(dim=1).repeat(2, 1)
        hard = F.nll_loss(both, both_targets, reduction="none")
        soft = -(both_soft * both).sum(dim=1)
        return WeightedLosses(hard, both_targets, shares * (hard - soft), shares * soft)

    return BatchObjective(share * inputs + (1 - share) * inputs[partner], evaluate)
