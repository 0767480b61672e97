"""Self-Tuning and its baselines: the losses by hand, what trains and how fast, pairs of samples, resume, processes."""

import copy
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.networks.views import View
from dadl.self_tuning import UNLABELLED, FineTuning, FixMatch, PairedRows, SelfTuning, paired_loader
from dadl.training import fit, predict, tensor_loader
from lightning_fabric import Fabric

CLASSES = 4


class Plain(View):
    """The image itself, so that losses can be computed by hand."""

    def __init__(self) -> None:
        super().__init__(6, crop_area=1.0)

    def forward(self, images: Tensor) -> Tensor:
        return images


def backbone() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU())


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 6, 6]`` of noisy class patterns, and their classes."""
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES, (n,), generator=generator)
    return patterns[target] + 0.5 * torch.randn(n, 1, 6, 6, generator=generator), target


def hidden(target: Tensor, labelled: int) -> Tensor:
    """Targets of which the first ``labelled`` are known."""
    return torch.where(torch.arange(len(target)) < labelled, target, UNLABELLED)


def make(method: type[FineTuning], **options: Any) -> Any:
    torch.manual_seed(0)
    defaults: dict[type[FineTuning], dict[str, Any]] = {
        FixMatch: {"weak_view": Plain()},
        SelfTuning: {"projection_size": 8, "slots": 5, "temperature": 0.3, "momentum": 0.9},
    }
    view = options.pop("view", Plain())
    return method(backbone(), 16, CLASSES, view, lr=0.02, **(defaults.get(method, {}) | options))


def sharpen(method: FineTuning) -> None:
    """A classifier whose confidences differ."""
    nn.init.normal_(method.classifier.weight, std=2.0)


def fill(method: SelfTuning) -> list[Tensor]:
    """A queue with none, some and all slots of a class written, and the written keys of each class."""
    queue = method.contrast.queue
    target = torch.tensor([1, 2, 2, 3, 3, 3, 3, 3])
    queue.enqueue(F.normalize(torch.randn(len(target), queue.keys.shape[2]), dim=1), target)
    return [keys[:count].clone() for keys, count in zip(queue.keys, queue.slot_count, strict=True)]


def expected_contrast(query: Tensor, key: Tensor, queue: list[Tensor], target: Tensor, temperature: float) -> Tensor:
    """Pseudo group contrast of each row with the written keys of each class, by loops."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    losses = []
    for q, k, y in zip(query, key, target.tolist(), strict=True):
        positives = torch.cat([k[None], queue[y]]) @ q / temperature
        negatives = torch.cat([queue[c] for c in range(CLASSES) if c != y]) @ q / temperature
        losses.append(torch.cat([positives, negatives]).logsumexp(0) - positives.mean())
    return torch.stack(losses)


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("labelled", [5, 12])
def test_the_loss_of_self_tuning_is_three_terms(labelled: int) -> None:
    method = make(SelfTuning)
    sharpen(method)
    images, target = samples(12)
    given = hidden(target, labelled)
    queue = fill(method)
    loss = method((images, given))

    features = method.backbone(images)
    logits = method.classifier(features)
    assigned = torch.where(given >= 0, given, logits.argmax(dim=1))
    assert torch.equal(method.assigned, assigned)
    query = method.projector(features)
    keys = copy.deepcopy(nn.Sequential(method.backbone, method.projector))(images)  # nothing has moved yet
    contrast = expected_contrast(query, keys, queue, assigned, 0.3)
    expected = F.cross_entropy(logits[:labelled], target[:labelled]) + contrast[:labelled].mean()
    if labelled < 12:
        expected = expected + contrast[labelled:].mean()
    torch.testing.assert_close(loss, expected)


def test_keys_are_queued_under_labels_and_pseudo_labels() -> None:
    method = make(SelfTuning)
    images, target = samples(12)
    method((images, hidden(target, 4)))
    assert method.assigned[:4].tolist() == target[:4].tolist()
    written = torch.bincount(method.assigned, minlength=CLASSES).clamp(max=5)
    assert method.contrast.queue.slot_count.tolist() == written.tolist()


def test_below_the_threshold_a_sample_is_neither_contrasted_nor_queued() -> None:
    method = make(SelfTuning, threshold=0.7)
    sharpen(method)
    images, target = samples(16)
    given = hidden(target, 4)
    queue = fill(method)
    loss = method((images, given))

    features = method.backbone(images)
    logits = method.classifier(features)
    confidence, pseudo_label = logits.softmax(dim=1).max(dim=1)
    confident = confidence[4:] >= 0.7
    assert 0 < confident.sum() < 12
    assert torch.equal(method.assigned[4:], torch.where(confident, pseudo_label[4:], UNLABELLED))
    assert method.contrast.queue.slot_count.sum() <= sum(map(len, queue)) + 4 + confident.sum()
    query = method.projector(features)
    contrast = expected_contrast(query, query, queue, method.assigned.clamp(min=0), 0.3)
    expected = F.cross_entropy(logits[:4], target[:4]) + contrast[:4].mean() + contrast[4:][confident].mean()
    torch.testing.assert_close(loss, expected)


def test_pseudo_labels_carry_no_gradient() -> None:
    """The classifier learns from the labelled samples alone, the projector from the contrast."""
    method = make(SelfTuning)
    fill(method)
    images, target = samples(12)
    method((images, hidden(target, 4))).backward()
    weight = method.classifier.weight.detach().requires_grad_()
    logits = F.linear(method.backbone(images).detach(), weight, method.classifier.bias.detach())
    F.cross_entropy(logits[:4], target[:4]).backward()
    torch.testing.assert_close(method.classifier.weight.grad, weight.grad)
    assert method.projector.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in method.key_encoder.parameters())


def test_the_key_encoder_moves_once_per_step() -> None:
    method = make(SelfTuning)
    images, target = samples(12)
    start = method.key_encoder.network[0][1].weight.clone()
    with torch.no_grad():
        method.backbone[1].weight += 1
    method.after_step()
    torch.testing.assert_close(method.key_encoder.network[0][1].weight, start + 0.1)
    fit(cpu(), method, paired_loader(images, hidden(target, 6), batch_size=6), epochs=1)
    lag = (method.key_encoder.network[0][1].weight - method.backbone[1].weight).abs().mean()
    assert 0.5 < lag < 1  # one more step of a tenth


def test_the_loss_of_fixmatch_is_by_hand() -> None:
    method = make(FixMatch, threshold=0.95)
    sharpen(method)
    images, target = samples(16)
    loss = method((images, hidden(target, 4)))
    logits = method.classifier(method.backbone(torch.cat([images, images[4:]])))  # strong views, then weak ones
    confidence, pseudo_label = logits[16:].softmax(dim=1).max(dim=1)
    assert 0 < (confidence >= 0.95).sum() < 12
    consistency = F.cross_entropy(logits[4:16], pseudo_label, reduction="none") * (confidence >= 0.95)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:4], target[:4]) + consistency.sum() / 12)


@pytest.mark.parametrize("kind", [FineTuning, FixMatch])
def test_baselines_without_unlabelled_samples_are_cross_entropy(kind: type[FineTuning]) -> None:
    method = make(kind)
    images, target = samples(12)
    expected = F.cross_entropy(method.classifier(method.backbone(images)), target)
    torch.testing.assert_close(method((images, target)), expected)


def test_the_classifier_starts_small_and_learns_ten_times_as_fast() -> None:
    method = make(SelfTuning)
    assert 0.005 < method.classifier.weight.std() < 0.015
    assert method.classifier.bias.eq(0).all()
    optimizer, _ = method.configure_optimizer(10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = [*method.backbone.parameters(), *method.projector.parameters()]
    assert {rates.pop(id(p)) for p in trained} == {0.02}
    assert {rates.pop(id(p)) for p in method.classifier.parameters()} == {0.2}
    assert not rates  # not the key encoder's


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_nothing() -> None:
    optimizer, scheduler = make(FineTuning).configure_optimizer(200)
    rates = []
    for _ in range(200):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    backbone, classifier = torch.tensor(rates).T
    torch.testing.assert_close(classifier, 10 * backbone)
    assert backbone.argmax() == 19
    assert backbone[0] == pytest.approx(0.02 / 20)
    assert 0.019 < backbone.max() < 0.02
    assert backbone[100] == pytest.approx(0.01)
    assert 0 < backbone[-1] < 1e-5


@pytest.mark.parametrize("kind", [FineTuning, FixMatch, SelfTuning])
def test_training_learns_the_classes(kind: type[FineTuning]) -> None:
    images, target = samples(120)
    method = make(kind)
    loader = paired_loader(images, hidden(target, 24), batch_size=12)
    history = fit(cpu(), method, loader, epochs=8)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    test_images, test_target = samples(200, seed=1)
    predicted = predict(cpu(), method, tensor_loader(test_images, batch_size=50)).argmax(dim=1)
    assert (predicted == test_target).float().mean() > 0.8


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Queue, key encoder and augmentation continue as if there had been no break."""
    images, target = samples(60)
    images = images.sigmoid()
    loader = paired_loader(images, hidden(target, 20), batch_size=10)
    whole, resumed, broken = (make(SelfTuning, view=View(6, crop_area=0.5, operations=1)) for _ in range(3))
    history = fit(cpu(), whole, loader, epochs=3)

    class Interrupted(Exception):
        pass

    steps: list[int] = []

    def interrupt_in_the_third_epoch() -> None:
        steps.append(1)
        if len(steps) == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(cpu(), broken, loader, epochs=3, folder=tmp_path, on_step=interrupt_in_the_third_epoch)
    assert fit(cpu(), resumed, loader, epochs=3, folder=tmp_path) == history
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def batches(rows: PairedRows, size: int) -> list[Sequence[Tensor]]:
    return [rows.__getitems__(range(start, start + size)) for start in range(0, len(rows), size)]


def test_pairs_are_one_to_one_and_cover_everything() -> None:
    target = hidden(torch.arange(22) % 3, 6)
    rows = PairedRows(torch.arange(22.0), target, torch.arange(22))
    assert len(rows) == 16
    seen: list[int] = []
    for images, given, others in batches(rows, 4):
        assert (given[:4] >= 0).all()
        assert (given[4:] == UNLABELLED).all()
        assert torch.equal(images.long(), others)
        assert len(set(others.tolist())) == 8  # no sample twice in one batch
        seen += others[:4].tolist()
    assert sorted(set(seen)) == list(range(6))


def test_partners_change_from_batch_to_batch() -> None:
    rows = PairedRows(torch.arange(40.0), hidden(torch.zeros(40, dtype=torch.int64), 20))
    partners = {tuple(rows.__getitems__(range(5))[0][5:].tolist()) for _ in range(20)}
    assert len(partners) > 5


def test_pairs_without_unlabelled_samples_are_the_labelled_ones() -> None:
    rows = PairedRows(torch.arange(6.0), torch.arange(6), pairs=12)
    images, target = rows.__getitems__(range(12))
    assert images.tolist() == [*range(6), *range(6)]
    assert target.tolist() == [*range(6), *range(6)]


def test_pairs_without_a_label_are_an_error() -> None:
    with pytest.raises(ValueError, match="no sample has a label"):
        PairedRows(torch.zeros(3), torch.full((3,), UNLABELLED))


@pytest.mark.slow
def test_two_processes_hold_one_queue_and_one_key_encoder(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from lightning_fabric import Fabric
            from test_method import SelfTuning, hidden, make, samples
            from dadl.networks.views import View
            from dadl.self_tuning import paired_loader
            from dadl.training import fit

            def job(fabric):
                torch.set_num_threads(1)
                method = make(SelfTuning, view=View(6, crop_area=0.5))
                images, target = samples(64)
                drawn = []
                method.view.register_forward_hook(lambda module, inputs, views: drawn.append(views))
                fit(fabric, method, paired_loader(images, hidden(target, 32), batch_size=4), epochs=2)
                torch.save((method.state_dict(), drawn[0]), f"{sys.argv[1]}/{fabric.global_rank}.pt")
                fabric.barrier()
                torch.distributed.destroy_process_group()

            if __name__ == "__main__":
                Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(job)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    job = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert job.returncode == 0, job.stderr
    (first, first_views), (second, second_views) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    same = [name for name in first if "running" not in name]  # batch statistics are each process's until the next step
    assert any("queue" in name for name in same)
    for name in same:
        assert torch.equal(first[name], second[name]), name
    assert first["contrast.queue.slot_count"].sum() > 0
    assert not torch.equal(first_views, second_views)
