"""Classification with few labels: Self-Tuning, and fine-tuning and pseudo-labelling as its baselines.

Source: Wang, Gao, Long, Wang, "Self-Tuning for Data-Efficient Deep Learning", ICML 2021. FixMatch: Sohn et al.,
"FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020.

Every method takes batches ``(images [B, C, H, W], target [B])`` of labelled and unlabelled samples together; a target
of −1 (``UNLABELLED``) means that the label is unknown.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from dadl_ext import PseudoGroupContrastLoss

from ..data.rows import Rows, TensorRows, as_fetched, side_by_side
from ..networks.momentum_encoder import MomentumEncoder
from ..networks.views import View
from ..training.method import Method

UNLABELLED = -1
WARM_UP = 0.1  # of the steps


class FineTuning(Method):
    """Cross-entropy on the labelled samples with a pre-trained backbone; the base of the other methods.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, feature_size]``, pre-trained; trained further in place.
        feature_size: of the backbone.
        num_classes: of the labels.
        view: random views of images.
        lr: of the backbone; the classifier, which is trained from scratch, has ten times as much. It rises linearly
            over the first tenth of the steps and then follows a cosine to zero.
    """

    def __init__(self, backbone: nn.Module, feature_size: int, num_classes: int, view: View, *, lr: float) -> None:
        super().__init__()
        self.backbone, self.view, self.lr = backbone, view, lr
        self.classifier = nn.Linear(feature_size, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        images, target = batch[:2]
        return self.cross_entropy(self.classifier(self.backbone(self.view(images))), target)

    @staticmethod
    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        """The mean over the labelled samples; there must be at least one."""
        return nn.functional.cross_entropy(logits, target, ignore_index=UNLABELLED)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        logits: Tensor = self.module()(inputs)
        return logits

    def module(self) -> nn.Module:
        return nn.Sequential(self.view, self.backbone, self.classifier)

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        from_scratch = set(self.classifier.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and p not in from_scratch]},
            {"params": list(from_scratch), "lr": 10 * self.lr},
        ]
        optimizer = SGD(groups, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
        warm_up = math.ceil(WARM_UP * total_steps)
        rate = lambda step: min((step + 1) / warm_up, 1) * (1 + math.cos(math.pi * step / total_steps)) / 2
        return optimizer, LambdaLR(optimizer, rate)


class FixMatch(FineTuning):
    """Fine-tuning plus cross-entropy on unlabelled samples with confident pseudo-labels.

    The pseudo-label is the prediction on a weak view, kept if its probability reaches ``threshold``. The loss is taken
    on another, strong view and averaged over all unlabelled samples.

    Args:
        weak_view: views for the pseudo-labels.
        threshold: lowest probability of a pseudo-label.

    The other arguments are those of :class:`FineTuning`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        num_classes: int,
        view: View,
        *,
        lr: float,
        weak_view: View,
        threshold: float = 0.95,
    ) -> None:
        super().__init__(backbone, feature_size, num_classes, view, lr=lr)
        self.weak_view, self.threshold = weak_view, threshold

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        images, target = batch[:2]
        unlabelled = images[target == UNLABELLED]
        # One pass, so that batch normalisation sees weak and strong views together.
        views = torch.cat([self.view(images), self.weak_view(unlabelled)])
        strong, weak = self.classifier(self.backbone(views)).split([len(images), len(unlabelled)])
        loss = self.cross_entropy(strong, target)
        if len(unlabelled) == 0:
            return loss
        confidence, pseudo_label = weak.detach().softmax(dim=1).max(dim=1)
        consistency = nn.functional.cross_entropy(strong[target == UNLABELLED], pseudo_label, reduction="none")
        return loss + torch.where(confidence >= self.threshold, consistency, 0).mean()


class SelfTuning(FineTuning):
    """Fine-tuning plus pseudo group contrast on labelled and on unlabelled samples.

    The loss is CE(labelled) + PGC(labelled) + PGC(unlabelled). A sample's query is the projected feature of one view,
    its key that of another view by a momentum encoder. The class of an unlabelled sample is predicted on the query
    view, without a gradient. If a batch has no unlabelled samples, the third term is 0.

    The random keys that the queue starts with do not count; in the paper they do. With few labels, a rare class can
    keep them for hundreds of steps, and they pull its queries in random directions.

    Args:
        projection_size: of queries and keys.
        slots: keys per class in the queue.
        temperature: of the contrast.
        momentum: of the key encoder.
        threshold: lowest probability of a pseudo-label; samples below it are neither contrasted nor queued.

    The other arguments are those of :class:`FineTuning`. After each batch, ``assigned`` ``[B]`` holds the labels and
    pseudo-labels used for the contrast and the queue.
    """

    assigned: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_size: int,
        num_classes: int,
        view: View,
        *,
        lr: float,
        projection_size: int = 1024,
        slots: int = 32,
        temperature: float = 0.07,
        momentum: float = 0.999,
        threshold: float = 0.0,
    ) -> None:
        super().__init__(backbone, feature_size, num_classes, view, lr=lr)
        self.projector = nn.Linear(feature_size, projection_size)
        self.key_encoder = MomentumEncoder(nn.Sequential(backbone, self.projector), momentum)
        self.contrast = PseudoGroupContrastLoss(
            num_classes,
            projection_size,
            slots=slots,
            temperature=temperature,
            ignore_index=UNLABELLED,
            valid_only=True,
            reduction="none",
            gather_distributed=True,
        )
        self.threshold = threshold

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        images, target = batch[:2]
        features = self.backbone(self.view(images))
        logits = self.classifier(features)
        confidence, pseudo_label = logits.detach().softmax(dim=1).max(dim=1)
        labelled = target != UNLABELLED
        pseudo_label = torch.where(confidence >= self.threshold, pseudo_label, UNLABELLED)
        self.assigned = torch.where(labelled, target, pseudo_label)
        # One call for both terms, so that the queue is read once.
        losses = self.contrast(self.projector(features), self.key_encoder(self.view(images)), self.assigned)
        contrast = _mean_where(losses, labelled) + _mean_where(losses, ~labelled & (self.assigned != UNLABELLED))
        return self.cross_entropy(logits, target) + contrast

    def after_step(self) -> None:
        self.key_encoder.update(nn.Sequential(self.backbone, self.projector))


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, 0 if there are none, without synchronising to count them."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)


class PairedRows(Dataset[tuple[Tensor, ...]]):
    """Labelled and unlabelled samples in pairs; within an epoch the smaller part repeats.

    A batch is ``(images, target, *others)``, first the labelled samples and then as many unlabelled ones, whose target
    is −1. Without unlabelled samples it holds only labelled ones.

    Args:
        images: all samples, ``[N, ...]``.
        target: their classes, ``[N]``; −1 for unlabelled.
        others: further tensors for the batches, ``[N, ...]`` each.
        pairs: pairs per epoch; by default the size of the larger part.
    """

    def __init__(self, images: Rows, target: Tensor, *others: Tensor, pairs: int | None = None) -> None:
        self.rows = TensorRows(images, target, *others)
        self.labelled, self.unlabelled = (part.nonzero()[:, 0] for part in (target >= 0, target == UNLABELLED))
        if len(self.labelled) == 0:
            raise ValueError("no sample has a label")
        self.pairs = max(len(self.labelled), len(self.unlabelled)) if pairs is None else pairs

    def __len__(self) -> int:
        return self.pairs

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        if len(self.unlabelled) > 0:
            labelled, unlabelled = side_by_side(indices, len(self.labelled), len(self.unlabelled))
            rows = torch.cat([self.labelled[labelled], self.unlabelled[unlabelled]])
        else:
            rows = self.labelled[torch.as_tensor(indices) % len(self.labelled)]
        return tuple(tensor[rows] for tensor in self.rows.tensors)


def paired_loader(
    images: Rows, target: Tensor, *others: Tensor, batch_size: int, pairs: int | None = None
) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of ``batch_size`` labelled and as many unlabelled samples, see :class:`PairedRows`."""
    rows = PairedRows(images, target, *others, pairs=pairs)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=as_fetched)
