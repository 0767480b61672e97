"""Classification with noisy or imbalanced labels: cross-entropy, plain or with weights learnt on a meta set.

Source: Shu, Yuan, Meng, Xu, "CMW-Net: Learning a Class-Aware Sample Weighting Mapping for Robust Deep Learning", TPAMI
2023. With one family of classes the weights are those of Meta-Weight-Net, NeurIPS 2019.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from dadl_ext.distributed import gather_batch

from ..data.labels import lowest_loss_subset
from ..data.rows import Rows, TensorRows, as_fetched
from ..networks.momentum_encoder import MomentumEncoder
from ..processes.sums import process_count, process_rank
from ..training.checkpoints import check_optimizer
from ..training.method import Method
from .meta_gradient import Normalize
from .reweighter import MetaReweighter
from .soft_labels import SoftLabelReweighter
from .weight_net import CMWNet

TEACHER_MOMENTUM = 0.99


class CrossEntropy(Method):
    """Plain cross-entropy; the base of the other methods.

    Args:
        network: images ``[B, C, H, W]`` to logits.
        view: random views of images.
        lr: of SGD with momentum, decaying to 0 along a cosine.
        weight_decay: of SGD.
        class_weights: of the classes in the loss, ``[C]``, a weighted mean; ``None`` is 1.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        *,
        lr: float,
        weight_decay: float = 5e-4,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.network, self.view, self.lr, self.weight_decay = network, view, lr, weight_decay

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        images, target = batch[:2]
        return F.cross_entropy(self.network(self.view(images)), target, weight=self.class_weights)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        logits: Tensor = self.module()(inputs)
        return logits

    def module(self) -> nn.Module:
        return nn.Sequential(self.view, self.network)

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        parameters = self.network.parameters()
        optimizer = SGD(parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, total_steps)


class LearntWeights(CrossEntropy):
    """Cross-entropy weighted by :class:`dadl.CMWNet`, which is trained on a meta set at the same time.

    The first ``warm_up`` of the steps use plain cross-entropy, because weights mean little while all losses are alike.
    Gradients must not be accumulated over batches.

    With several processes the weighting network learns from the rows of all, see :class:`dadl.MetaReweighter`. Each
    process draws its own meta samples and, with soft labels, mixes its own rows. All must start from equal networks.

    Args:
        class_counts: training samples per class, by their given labels.
        meta_images: of the meta set, ``[M, C, H, W]``; ``None`` if batches contain meta samples, see
            :func:`meta_loader`.
        meta_target: ``[M]``, or ``None``.
        families: of classes; 1 is Meta-Weight-Net.
        soft_labels: train by :class:`dadl.SoftLabelReweighter`.
        normalize: of the weights, as for :class:`dadl.MetaReweighter`; ``"mean"`` with soft labels.
        interval: batches between steps of the weighting network.
        meta_lr: its learning rate.
        warm_up: fraction of all steps.

    The other arguments are those of :class:`CrossEntropy`.
    """

    meta_images: Tensor | None
    meta_target: Tensor | None
    teacher: MomentumEncoder | None
    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        class_counts: Tensor,
        meta_images: Tensor | None = None,
        meta_target: Tensor | None = None,
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
        self.teacher = MomentumEncoder(network, TEACHER_MOMENTUM, buffers="copied") if soft_labels else None

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        optimizer, scheduler = super().configure_optimizer(total_steps)
        meta_optimizer = Adam(self.weight_net.parameters(), lr=self.meta_lr, weight_decay=1e-4)
        # The weighting network is trained inside a step, with gradients already summed over the processes, and the meta
        # set is too large to be broadcast in every step.
        own = [*(f"weight_net.{name}" for name in self.weight_net.state_dict()), "meta_images", "meta_target"]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, own)
        options: dict[str, Any] = {"meta_optimizer": meta_optimizer, "interval": self.interval}
        self.reweighter: MetaReweighter
        if self.soft_labels:
            options["teacher"] = self.teacher  # it is in the checkpoint
            self.reweighter = SoftLabelReweighter(self.network, optimizer, self.weight_net, **options)
        else:
            options["normalize"] = self.normalize
            self.reweighter = MetaReweighter(self.network, optimizer, self.weight_net, **options)
        self.warm_up_steps = int(self.warm_up * total_steps)
        return optimizer, scheduler

    @property
    def warming_up(self) -> bool:
        """Whether the next step uses plain cross-entropy."""
        return bool(self.steps < self.warm_up_steps)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        if self.warming_up:
            return super().forward(batch)
        images, target = batch[:2]
        meta_batch = None
        if self.reweighter.needs_meta_batch:
            meta_images, meta_target = self._meta_samples(batch)
            meta_batch = self.view(meta_images), meta_target
        samples = self.view(images), target
        return self.reweighter.loss(samples, meta_batch, averaged_gradients=True).loss

    def _meta_samples(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """The meta samples of the batch, or equally many drawn from the meta set."""
        if self.meta_images is None or self.meta_target is None:
            return batch[2:4]
        chosen = torch.randint(len(self.meta_target), (len(batch[1]),), device=batch[1].device)
        return self.meta_images[chosen], self.meta_target[chosen]

    def after_step(self) -> None:
        self.steps += 1
        if self.teacher is not None:
            self.teacher.update(self.network)

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the reweighter besides its networks, for checkpoints."""
        state = self.reweighter.state_dict()
        return {"meta_optimizer": state["meta_optimizer"], "batches": state["batches"]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "reweighter"):
            return  # loaded for prediction, not for training
        optimizer, batches = self.reweighter.meta_optimizer, state["batches"]
        groups = [dict(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(state["meta_optimizer"])
        check_optimizer(optimizer, groups)
        if not (isinstance(batches, int) and 0 <= batches < 2**63):
            raise ValueError("the number of batches is no such number")
        self.reweighter.batches = batches


class LowestLossMeta(LearntWeights):
    """Weights learnt without clean samples, on the training samples with the lowest losses of their class.

    Wrong labels seldom have low losses. After each epoch the samples are chosen again by a moving average of the
    network, up to ``per_class`` of each class; before the first choice, training uses plain cross-entropy. Several
    processes choose from the samples of all, counting each once.

    Args:
        image_shape: ``[C, H, W]`` of the images from the loader, which are uint8.
        per_class: largest number of samples of each class.

    The other arguments are those of :class:`LearntWeights`. The chosen images are in the ``state_dict``.
    """

    meta_images: Tensor
    meta_target: Tensor
    teacher: MomentumEncoder

    def __init__(
        self,
        network: nn.Module,
        view: nn.Module,
        class_counts: Tensor,
        image_shape: Sequence[int],
        *,
        per_class: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(network, view, class_counts, **options)
        chosen = int(class_counts.clamp(max=per_class).sum())
        self.register_buffer("meta_images", torch.zeros(chosen, *image_shape, dtype=torch.uint8))
        self.register_buffer("meta_target", torch.full((chosen,), -1))
        self.per_class = per_class
        if not self.soft_labels:
            self.teacher = MomentumEncoder(network, TEACHER_MOMENTUM, buffers="copied")

    @property
    def warming_up(self) -> bool:
        return super().warming_up or bool(self.meta_target[0] < 0)

    @torch.no_grad()
    def after_epoch(self, epoch: int, loader: DataLoader[Any]) -> None:
        self.eval()
        # Process r of w gets samples r, r + w, ...; the last one may be repeated to give all equally many.
        left = len(range(process_rank(), len(loader.dataset), process_count()))  # type: ignore[arg-type]
        kept: list[Tensor] = []  # losses, images and labels
        for images, target in loader:
            losses = F.cross_entropy(self.teacher(self.view(images)), target, reduction="none")
            new = [part[:left] for part in (losses, images, target)]
            left -= len(new[0])
            kept = self._lowest([torch.cat(parts) for parts in zip(kept, new, strict=True)] if kept else new)
        _, images, target = self._lowest(gather_batch(*kept))
        self.meta_images.copy_(images)
        self.meta_target.copy_(target)
        self.train()

    def _lowest(self, candidates: Sequence[Tensor]) -> list[Tensor]:
        """The losses, images and labels with the lowest losses of each class."""
        losses, _, target = candidates
        lowest = lowest_loss_subset(losses, target, self.per_class).to(target.device)
        return [part[lowest] for part in candidates]


class MetaRows(Dataset[tuple[Tensor, ...]]):
    """Training samples together with random samples of a meta set.

    A batch is ``(images, target, meta images, meta target)``, equally many of each. Meta samples are drawn with
    replacement in proportion to ``meta_weights`` ``[M]``, by default uniformly.
    """

    def __init__(
        self,
        images: Rows,
        target: Tensor,
        meta_images: Rows,
        meta_target: Tensor,
        meta_weights: Tensor | None = None,
    ) -> None:
        self.rows, self.meta = TensorRows(images, target), TensorRows(meta_images, meta_target)
        self.meta_weights = torch.ones(len(meta_target)) if meta_weights is None else meta_weights

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        drawn = self.meta_weights.multinomial(len(indices), replacement=True)
        return self.rows.__getitems__(indices) + self.meta.__getitems__(drawn)  # type: ignore[arg-type]


def meta_loader(
    images: Rows,
    target: Tensor,
    meta_images: Rows,
    meta_target: Tensor,
    meta_weights: Tensor | None = None,
    *,
    batch_size: int,
) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of ``batch_size`` training and as many meta samples, see :class:`MetaRows`."""
    rows = MetaRows(images, target, meta_images, meta_target, meta_weights)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=as_fetched)
