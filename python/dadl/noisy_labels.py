"""Classification with noisy or imbalanced labels on the shared loop: cross-entropy, and weights learnt on a meta set.

Source: Shu, Yuan, Meng, Xu, "CMW-Net: Learning a Class-Aware Sample Weighting Mapping for Robust Deep Learning", TPAMI
2023. With one family of classes the weights are those of Meta-Weight-Net, NeurIPS 2019.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from .cmw_net import CMWNet
from .meta_gradient import Normalize
from .meta_reweighter import MetaReweighter
from .soft_labels import SoftLabelReweighter
from .training import Method


class CrossEntropy(Method):
    """Plain cross-entropy, and what the other method has in common with it.

    Args:
        network: images ``[B, C, H, W]`` to logits.
        view: random views of images.
        lr: of SGD with momentum, which falls to 0 along a cosine.
        weight_decay: of SGD.
    """

    def __init__(self, network: nn.Module, view: nn.Module, *, lr: float, weight_decay: float = 5e-4) -> None:
        super().__init__()
        self.network, self.view, self.lr, self.weight_decay = network, view, lr, weight_decay

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        images, target = batch[:2]
        return F.cross_entropy(self.network(self.view(images)), target)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        logits: Tensor = self.network(self.view(inputs))
        return logits

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        parameters = self.network.parameters()
        optimizer = SGD(parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, total_steps)


class LearntWeights(CrossEntropy):
    """Cross-entropy weighted by :class:`dadl.CMWNet`, which learns on a meta set meanwhile.

    The first ``warm_up`` of the steps are plain cross-entropy, as weights mean little while all losses are alike. For
    one process and steps that are not accumulated.

    Args:
        class_counts: training samples per class as their labels say.
        meta_images: of the meta set, ``[M, C, H, W]``.
        meta_target: ``[M]``.
        families: of classes; 1 is Meta-Weight-Net.
        soft_labels: train by :class:`dadl.SoftLabelReweighter`.
        normalize: of the weights, as for :class:`dadl.MetaReweighter`; ``"mean"`` with soft labels.
        interval: every how many batches the weighting network takes a step.
        meta_lr: its learning rate.
        warm_up: fraction of all steps.

    The others are those of :class:`CrossEntropy`.
    """

    meta_images: Tensor
    meta_target: Tensor
    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        class_counts: Tensor,
        meta_images: Tensor,
        meta_target: Tensor,
        *,
        lr: float,
        weight_decay: float = 5e-4,
        families: int = 3,
        soft_labels: bool = False,
        normalize: Normalize = "mean",
        interval: int = 1,
        meta_lr: float = 1e-3,
        warm_up: float = 0.2,
    ) -> None:
        super().__init__(network, view, lr=lr, weight_decay=weight_decay)
        if soft_labels and normalize != "mean":
            raise ValueError(f'soft labels take normalize="mean", got {normalize!r}')
        self.weight_net = CMWNet(class_counts, families)
        self.register_buffer("meta_images", meta_images, persistent=False)
        self.register_buffer("meta_target", meta_target, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.soft_labels, self.interval, self.meta_lr, self.warm_up = soft_labels, interval, meta_lr, warm_up
        self.normalize: Normalize = normalize

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        optimizer, scheduler = super().configure_optimizer(total_steps)
        meta_optimizer = Adam(self.weight_net.parameters(), lr=self.meta_lr, weight_decay=1e-4)
        options: dict[str, Any] = {"meta_optimizer": meta_optimizer, "interval": self.interval}
        self.reweighter: MetaReweighter
        if self.soft_labels:
            self.reweighter = SoftLabelReweighter(self.network, optimizer, self.weight_net, momentum=0.99, **options)
            self.teacher = self.reweighter.teacher
        else:
            options["normalize"] = self.normalize
            self.reweighter = MetaReweighter(self.network, optimizer, self.weight_net, **options)
        self.warm_up_steps = int(self.warm_up * total_steps)
        return optimizer, scheduler

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        if self.steps < self.warm_up_steps:
            return super().forward(batch)
        images, target = batch[:2]
        chosen = torch.randint(len(self.meta_target), (len(target),), device=target.device)
        meta_batch = self.view(self.meta_images[chosen]), self.meta_target[chosen]
        return self.reweighter.loss((self.view(images), target), meta_batch).loss

    def after_step(self) -> None:
        self.steps += 1
        if isinstance(self.reweighter, SoftLabelReweighter):
            self.reweighter.update_teacher()

    def get_extra_state(self) -> dict[str, Any]:
        """What the reweighter holds besides networks, for checkpoints."""
        state = self.reweighter.state_dict()
        return {"meta_optimizer": state["meta_optimizer"], "batches": state["batches"]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.reweighter.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.reweighter.batches = state["batches"]
