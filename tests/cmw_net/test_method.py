"""The methods for noisy labels on the shared loop: warm-up, meta steps, learning, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.cmw_net import soft_labels
from dadl.cmw_net.method import CrossEntropy, LearntWeights
from dadl.cmw_net.soft_labels import SoftLabelReweighter
from dadl.data import symmetric_noise
from dadl.training import fit, predict, tensor_loader
from lightning_fabric import Fabric

CLASSES = 4


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 6, 6]`` of noisy class patterns, and their classes."""
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % CLASSES
    return patterns[target] + 0.7 * torch.randn(n, 1, 6, 6, generator=generator), target


def cpu(**options: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **options)


def make(labels: Tensor, **options: Any) -> LearntWeights:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
    meta_images, meta_target = samples(32, seed=7)
    counts = torch.bincount(labels, minlength=CLASSES)
    defaults = {"lr": 0.1, "meta_lr": 0.05, "warm_up": 0.1}
    return LearntWeights(network, nn.Identity(), counts, meta_images, meta_target, **(defaults | options))


def test_corrupted_samples_get_smaller_weights() -> None:
    images, truth = samples(400)
    labels = symmetric_noise(truth, 0.5)
    method = make(labels, families=1, lr=0.03)
    fit(cpu(), method, tensor_loader(images, labels, batch_size=40, shuffle=True), epochs=15)
    assert method.steps == 150
    assert method.reweighter.batches == 135  # but those of the warm-up
    logits = predict(cpu(), method, tensor_loader(images, batch_size=100))
    weights = method.weight_net(nn.functional.cross_entropy(logits, labels, reduction="none"), labels)
    assert weights[labels == truth].mean() > weights[labels != truth].mean() + 0.2
    test_images, test_target = samples(400, seed=1)
    predicted = predict(cpu(), method, tensor_loader(test_images, batch_size=100)).argmax(dim=1)
    assert (predicted == test_target).float().mean() > 0.9


@pytest.mark.parametrize("options", [{"soft_labels": True}, {"families": 1, "normalize": "sum"}, {"interval": 3}])
def test_variants_learn(options: dict[str, Any]) -> None:
    images, target = samples(160)
    method = make(target, **options)
    history = fit(cpu(), method, tensor_loader(images, target, batch_size=16, shuffle=True), epochs=4)
    assert history[-1]["loss"] < history[0]["loss"]
    assert isinstance(method.reweighter, SoftLabelReweighter) == bool(options.get("soft_labels"))
    predicted = predict(cpu(), method, tensor_loader(samples(80, seed=1)[0], batch_size=40)).argmax(dim=1)
    assert (predicted == samples(80, seed=1)[1]).float().mean() > 0.8


def test_warm_up_is_cross_entropy() -> None:
    images, target = samples(80)
    warm = make(target, warm_up=1.0)
    plain = CrossEntropy(make(target).network, nn.Identity(), lr=0.1)
    loader = tensor_loader(images, target, batch_size=16, shuffle=True)
    assert fit(cpu(), warm, loader, epochs=2) == fit(cpu(), plain, loader, epochs=2)
    assert warm.reweighter.batches == 0


@pytest.mark.parametrize("soft_labels", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, soft_labels: bool) -> None:
    images, target = samples(80)
    loader = tensor_loader(images, target, batch_size=16, shuffle=True)
    whole, broken, resumed = (make(target, soft_labels=soft_labels, interval=2) for _ in range(3))
    history = fit(cpu(), whole, loader, epochs=4)

    class Interrupted(Exception):
        pass

    steps: list[int] = []

    def interrupt_in_the_third_epoch() -> None:
        steps.append(1)
        if len(steps) == 13:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(cpu(), broken, loader, epochs=4, folder=tmp_path, on_step=interrupt_in_the_third_epoch)
    assert fit(cpu(), resumed, loader, epochs=4, folder=tmp_path) == history
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items() if isinstance(value, Tensor))


def test_the_reweighter_has_the_teacher_of_the_checkpoint_and_copies_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(torch.arange(CLASSES), soft_labels=True)
    monkeypatch.setattr(soft_labels, "MomentumEncoder", None)  # to make one would fail
    method.configure_optimizer(10)
    assert isinstance(method.reweighter, SoftLabelReweighter)
    assert method.reweighter.teacher is method.teacher


def test_soft_labels_are_averaged_over_samples() -> None:
    with pytest.raises(ValueError, match='soft labels take normalize="mean"'):
        make(torch.arange(CLASSES), soft_labels=True, normalize="sum")
