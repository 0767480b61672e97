"""The χ-Model and its baselines as methods: the losses by hand, what trains, uneven rows, resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.chi_model import (
    CLASSIFICATION,
    KEY_POINTS,
    MCD,
    REGRESSION,
    ChiModel,
    FewLabels,
    LabelsOnly,
    MeanTeacher,
    Objective,
    PiModel,
    RDrop,
    UnevenRows,
    mlp_head,
    uneven_loader,
)
from dadl.networks.views import View
from dadl.training import fit, predict, tensor_loader
from lightning_fabric import Fabric

METHODS = (LabelsOnly, PiModel, RDrop, MeanTeacher, MCD, ChiModel)
ETA = 0.3


class Ordinal(View):
    """The n-th view of a batch is the batch times n, so that losses can be computed by hand."""

    def __init__(self) -> None:
        super().__init__(6, crop_area=1.0)
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        self.count += self.training
        return images * self.count if self.training else images


class Halves(nn.Module):
    """Dropout by hand: the n-th pass keeps one half of the features, the next one the other."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, features: Tensor) -> Tensor:
        self.count += 1
        return features * (torch.arange(features.shape[1]) % 2 == self.count % 2)


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh())


def make(method: type[FewLabels], objective: Objective = REGRESSION, outputs: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    bounded = objective is REGRESSION
    head = options.pop("head", lambda: mlp_head(8, 6, outputs, bounded=bounded, dropout=0.0))
    return method(encoder(), head, options.pop("view", Ordinal()), objective, lr=0.02, **({"eta": ETA} | options))


def batch(objective: Objective = REGRESSION, outputs: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.rand(5, outputs) if objective is REGRESSION else torch.randint(0, outputs, (5,))
    return torch.randn(5, 1, 6, 6), target, torch.randn(7, 1, 6, 6)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of softmaxes, averaged over the batch."""
    p, q = p.softmax(1), q.softmax(1)
    entropy = lambda x: -(x * x.log()).sum(1)
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).mean()


@pytest.mark.parametrize(
    ("objective", "loss", "d"), [(REGRESSION, F.l1_loss, F.l1_loss), (CLASSIFICATION, F.cross_entropy, js)]
)
def test_losses_by_hand(objective: Objective, loss: Any, d: Any) -> None:
    x, y, u = batch(objective)
    for kind in (LabelsOnly, PiModel, MeanTeacher):
        method = make(kind, objective)
        f = nn.Sequential(method.encoder, method.head)
        expected = {
            LabelsOnly: lambda f=f: loss(f(x), y),
            PiModel: lambda f=f: loss(f(x), y) + ETA * d(f(2 * u), f(3 * u)),
            MeanTeacher: lambda f=f: loss(f(x), y) + ETA * d(f(2 * u), f(3 * u)),  # nothing has moved yet
        }[kind]()
        torch.testing.assert_close(method((x, y, u)), expected)
    for kind in (MCD, ChiModel):
        method = make(kind, objective)
        a, b = (nn.Sequential(method.encoder, head) for head in (method.chi.head_a, method.chi.head_b))
        if kind is MCD:
            disagreement = (d(a(2 * u), b(2 * u)) + d(a(3 * u), b(3 * u))) / 2
        else:
            disagreement = d(a(2 * u), b(3 * u))
        torch.testing.assert_close(method((x, y, u)), loss(a(x), y) + loss(b(x), y) + ETA * disagreement)
        torch.testing.assert_close(method.disagreement, disagreement.detach())


def test_r_drop_takes_two_dropout_passes_over_one_view() -> None:
    x, y, u = batch()
    method = make(RDrop, head=lambda: nn.Sequential(Halves(), nn.Linear(8, 2)))
    loss = method((x, y, u))
    features = method.encoder(torch.cat([x, 2 * u]))
    even, odd = (method.head[1](features * (torch.arange(8) % 2 == k)) for k in (0, 1))
    expected = F.l1_loss(even[:5], y) + F.l1_loss(odd[:5], y) + ETA * F.mse_loss(even, odd)
    torch.testing.assert_close(loss, expected)


def test_features_lower_the_disagreement_and_heads_raise_it() -> None:
    x, y, u = batch()
    method = make(ChiModel)
    method((x, y, u)).backward()
    a, b = method.chi.head_a, method.chi.head_b
    features, view_1, view_2 = (method.encoder(inputs) for inputs in (x, 2 * u, 3 * u))
    supervised = F.l1_loss(a(features), y) + F.l1_loss(b(features), y)
    disagreement = F.l1_loss(a(view_1), b(view_2))
    for module, sign in ((method.encoder, 1), (a, -1), (b, -1)):
        parameters = list(module.parameters())
        expected = torch.autograd.grad(supervised + sign * ETA * disagreement, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_the_teacher_is_the_plain_average_of_the_first_students_and_predicts() -> None:
    method = make(MeanTeacher)
    weights = []
    for _ in range(3):
        with torch.no_grad():
            method.encoder[1].weight.normal_()
        method.after_step()
        weights.append(method.encoder[1].weight.clone())
    torch.testing.assert_close(method.teacher.network[0][1].weight, sum(weights) / 3)
    inputs = batch()[0]
    torch.testing.assert_close(method.eval().predict(inputs), method.teacher(inputs))
    method.steps += 10**6
    method.after_step()
    assert method.teacher.momentum == MeanTeacher.momentum
    trained = {id(p) for group in method.configure_optimizer(10)[0].param_groups for p in group["params"]}
    assert trained == {id(p) for part in (method.encoder, method.head) for p in part.parameters()}


@pytest.mark.parametrize("kind", METHODS)
def test_predictions_are_probabilities_averaged_over_heads(kind: type[FewLabels]) -> None:
    method = make(kind, CLASSIFICATION, outputs=4).eval()
    inputs = batch()[0]
    predicted = method.predict(inputs)
    torch.testing.assert_close(predicted.sum(dim=1), torch.ones(5))
    heads = [method.chi.head_a, method.chi.head_b] if isinstance(method, ChiModel) else [method.head]
    expected = sum(head(method.encoder(inputs)).softmax(dim=1) for head in heads) / len(heads)
    torch.testing.assert_close(predicted, expected)


@pytest.mark.parametrize("kind", METHODS)
def test_training_learns_and_resumes(kind: type[FewLabels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MeanTeacher, "momentum", 0.9)  # the training is short
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(240, 1, generator=generator)  # how bright the image is
    images = 0.7 * target.view(-1, 1, 1, 1) + 0.3 * torch.rand(240, 1, 6, 6, generator=generator)

    def method() -> FewLabels:
        return make(kind, outputs=1, view=View(6, crop_area=None), eta=0.05)

    loader = uneven_loader(images[:60], target[:60], images[60:], batch_size=20)
    fabric, whole, resumed = Fabric(accelerator="cpu", devices=1), method(), method()
    history = fit(fabric, whole, loader, epochs=10, folder=tmp_path / "whole")
    error = (predict(fabric, whole, tensor_loader(images[60:], batch_size=64)) - target[60:]).abs().mean()
    assert error < 0.6 * (target[60:] - target.mean()).abs().mean()

    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        nonlocal steps
        steps += 1
        if steps == 40:
            raise Interrupted

    steps = 0
    with pytest.raises(Interrupted):
        fit(fabric, method(), loader, epochs=10, folder=tmp_path / "part", on_step=interrupt)
    assert fit(fabric, resumed, loader, epochs=10, folder=tmp_path / "part") == history
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_heatmaps_train_with_every_method() -> None:
    target = torch.rand(5, 3, 6, 6)
    target /= target.sum(dim=(2, 3), keepdim=True)
    for kind in METHODS:
        method = kind(
            nn.Conv2d(1, 4, 3, padding=1), lambda: nn.Conv2d(4, 3, 1), View(6, crop_area=None), KEY_POINTS, lr=0.1
        )
        method((torch.rand(5, 1, 6, 6), target, torch.rand(5, 1, 6, 6))).backward()
        assert method.encoder.weight.grad.isfinite().all()
        predicted = method.eval().predict(torch.rand(2, 1, 6, 6))
        torch.testing.assert_close(predicted.sum(dim=(2, 3)), torch.ones(2, 3))


def test_uneven_rows_repeat_the_fewer_samples() -> None:
    inputs, target, unlabelled = torch.arange(3), torch.arange(3) * 10, 100 + torch.arange(8)
    rows = UnevenRows(inputs, target, unlabelled)
    assert len(rows) == 8
    x, y, u = rows.__getitems__(range(8))
    assert torch.bincount(x).tolist() == [3, 3, 2]
    assert torch.equal(y, 10 * x)
    assert sorted(u.tolist()) == unlabelled.tolist()
    assert [len(part) for part in next(iter(uneven_loader(inputs, target, unlabelled, batch_size=4)))] == [4, 4, 4]
    alone = UnevenRows(inputs, target, unlabelled[:0])
    assert sorted(alone.__getitems__(range(3))[2].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="no sample has a label"):
        UnevenRows(inputs[:0], target[:0], unlabelled)
