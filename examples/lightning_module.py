"""Classification with few labels in a LightningModule: Self-Tuning's contrast, its queue in the checkpoints.

    python examples/lightning_module.py

Two samples of each class have a label, a hundred have none. Labelled samples are contrasted under their class,
unlabelled ones under the class that the classifier gives them, with a queue of keys that a momentum encoder makes. The
queue and the momentum encoder are part of the module's state: Lightning saves and restores them like any weight.
The data is made up on the spot, and everything takes seconds on a CPU.
"""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from dadl import MomentumEncoder
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dadl_ext import PseudoGroupContrastLoss

CLASSES, INPUTS, LABELS_PER_CLASS = 8, 32, 2


def make_data(seed: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Labelled, unlabelled and test samples: noise around a prototype of each class."""
    draw = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(CLASSES, INPUTS, generator=draw)

    def samples(per_class: int) -> tuple[Tensor, Tensor]:
        target = torch.arange(CLASSES).repeat(per_class)
        return prototypes[target] + 1.4 * torch.randn(len(target), INPUTS, generator=draw), target

    return TensorDataset(*samples(LABELS_PER_CLASS)), TensorDataset(samples(100)[0]), TensorDataset(*samples(100))


def random_view(inputs: Tensor) -> Tensor:
    """What does not change the class: here, each number may be missing."""
    return nn.functional.dropout(inputs, 0.3)


class SelfTuning(L.LightningModule):
    """Cross-entropy of the labelled samples and, with ``contrast``, the contrast of all.

    A batch is ``{"labelled": (inputs, target), "unlabelled": (inputs,)}``.
    """

    def __init__(self, contrast: bool = True, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, CLASSES)
        self.projector = nn.Linear(width, 16)
        self.key_encoder = MomentumEncoder(nn.Sequential(self.encoder, self.projector), momentum=0.95)
        # With several processes each enqueues the keys of all.
        self.contrast = PseudoGroupContrastLoss(CLASSES, 16, slots=16, valid_only=True, gather_distributed=True)

    def training_step(self, batch: dict[str, list[Tensor]]) -> Tensor:
        (labelled, target), (unlabelled,) = batch["labelled"], batch["unlabelled"]
        inputs = torch.cat([labelled, unlabelled])
        features = self.encoder(random_view(inputs))
        logits = self.classifier(features)
        loss = nn.functional.cross_entropy(logits[: len(target)], target)
        if self.hparams["contrast"]:
            assigned = torch.cat([target, logits[len(target) :].argmax(dim=1)])
            loss = loss + self.contrast(self.projector(features), self.key_encoder(random_view(inputs)), assigned)
        return loss

    # Not a hook of batches: under gradient accumulation a step has several.
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.key_encoder.update(nn.Sequential(self.encoder, self.projector))

    def test_step(self, batch: list[Tensor]) -> None:
        inputs, target = batch
        correct = self.classifier(self.encoder(inputs)).argmax(dim=1) == target
        self.log("accuracy", correct.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.hparams["lr"])


def train(
    data: tuple[TensorDataset, TensorDataset, TensorDataset],
    folder: Path,
    *,
    contrast: bool = True,
    epochs: int = 16,
    resume: Path | None = None,
) -> tuple[SelfTuning, float, Path]:
    """The module, its accuracy on the test samples, and the checkpoint of its last epoch in ``folder``."""
    labelled, unlabelled, test = data
    batches = {
        "labelled": DataLoader(labelled, 16, shuffle=True),
        "unlabelled": DataLoader(unlabelled, 48, shuffle=True),
    }
    module = SelfTuning(contrast)
    checkpoint = ModelCheckpoint(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # The labelled samples, which are fewer, come round again within an epoch.
    trainer.fit(module, CombinedLoader(batches, "max_size_cycle"), ckpt_path=resume)
    [metrics] = trainer.test(module, DataLoader(test, 100), verbose=False)
    return module, metrics["accuracy"], Path(checkpoint.best_model_path)


def main(folder: Path, seed: int = 0) -> dict[str, float]:
    """Test accuracies of cross-entropy alone and of Self-Tuning, stopped half-way and resumed from its checkpoint."""
    data = make_data(seed)
    torch.manual_seed(seed)
    _, plain, _ = train(data, folder / "cross-entropy", contrast=False)
    _, _, checkpoint = train(data, folder / "self-tuning", epochs=8)
    _, resumed, _ = train(data, folder / "self-tuning", resume=checkpoint)
    print(f"accuracy: cross-entropy {plain:.3f}, Self-Tuning {resumed:.3f}")
    return {"cross-entropy": plain, "Self-Tuning": resumed}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
