"""What learnt weights are used for: partial labels, pseudo-labels, rejection, and another data set."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dadl import CMWNet, MetaReweighter, candidate_confidence, disambiguate, pseudo_label, risk_coverage
from dadl.data import flip_noise, partial_labels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn


@given(n=st.integers(1, 8), classes=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_confidence_is_a_softmax_over_the_candidates(n: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(n, classes, dtype=torch.float64)
    truth = torch.randint(classes, (n,))
    candidates = partial_labels(truth, 0.4, num_classes=classes, seed=seed)
    confidence = candidate_confidence(logits, candidates)
    exp = logits.exp() * candidates
    torch.testing.assert_close(confidence, exp / exp.sum(dim=1, keepdim=True))
    chosen = disambiguate(logits, candidates)
    assert candidates[torch.arange(n), chosen].all()
    assert torch.equal(chosen, confidence.argmax(dim=1))


def test_bad_candidates_and_logits() -> None:
    with pytest.raises(ValueError, match="row 1 has no candidate"):
        disambiguate(torch.randn(2, 3), torch.tensor([[True, False, True], [False] * 3]))
    with pytest.raises(ValueError, match="boolean candidates"):
        candidate_confidence(torch.randn(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\[n, C\]"):
        pseudo_label(torch.randn(3))
    with pytest.raises(ValueError, match="threshold"):
        pseudo_label(torch.randn(3, 2), 1.5)


def test_pseudo_labels_are_the_sure_predictions() -> None:
    logits = torch.tensor([[0.0, 4.0], [0.0, 0.1], [3.0, 0.0]], requires_grad=True)
    target, sure = pseudo_label(logits, 0.9)
    assert target.tolist() == [1, 1, 0]
    assert sure.tolist() == [True, False, True]
    assert not target.requires_grad


@given(scores=st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.5, 0.9]), min_size=1, max_size=12), seed=st.integers(0, 2**31))
def test_risk_coverage_counts_the_accepted(scores: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    score, correct = torch.tensor(scores), torch.rand(len(scores)) < 0.6
    curve = risk_coverage(score, correct)
    assert curve.coverage[-1] == 1
    ordered = score.sort(descending=True).values
    for i, threshold in enumerate(ordered):
        accepted = score >= threshold
        assert curve.coverage[i].item() == pytest.approx(accepted.double().mean().item())
        assert curve.risk[i].item() == pytest.approx((~correct[accepted]).double().mean().item())
    assert curve.area == pytest.approx(curve.risk.mean().item())


def test_risk_coverage_of_a_perfect_and_of_no_ranking() -> None:
    correct = torch.tensor([True] * 6 + [False] * 4)
    perfect = risk_coverage(correct.float(), correct)
    assert perfect.coverage_at(0.0) == pytest.approx(0.6)
    assert risk_coverage(torch.zeros(10), correct).risk.tolist() == pytest.approx([0.4] * 10)
    assert risk_coverage(torch.zeros(10), correct).coverage_at(0.3) == 0
    assert math.isnan(risk_coverage([], []).area)
    with pytest.raises(ValueError, match="NaN"):
        risk_coverage([math.nan], [1])
    with pytest.raises(ValueError, match=r"\[N\]"):
        risk_coverage([1.0, 2.0], [1])


# ---- on a problem of known answer: six Gaussian classes on a ring ----

CLASSES = 6


def ring(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % CLASSES
    angle = target * (2 * math.pi / CLASSES)
    points = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * torch.randn(n, 2, generator=generator)
    return points, target


def learner(counts: list[int]) -> tuple[nn.Module, torch.optim.Optimizer, MetaReweighter]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    weight_net = CMWNet(counts, families=1)
    meta_optimizer = torch.optim.Adam(weight_net.parameters(), lr=1e-3)
    return model, optimizer, MetaReweighter(model, optimizer, weight_net, meta_optimizer=meta_optimizer)


def accuracy(model: nn.Module, points: Tensor, target: Tensor) -> float:
    return (model(points).argmax(dim=1) == target).double().mean().item()


def test_weights_on_disambiguated_partial_labels() -> None:
    points, truth = ring(300, 0)
    candidates = partial_labels(truth, 0.5, num_classes=CLASSES, seed=1)
    meta, test = ring(30, 2), ring(600, 3)
    model, optimizer, reweighter = learner([50] * CLASSES)
    for _ in range(40):
        logits = model(points)
        loss = -(candidate_confidence(logits, candidates).detach() * logits.log_softmax(dim=1)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for _ in range(110):
        reweighter.step((points, disambiguate(model(points), candidates)), meta)
    assert accuracy(model, *test) > 0.9
    assert (disambiguate(model(points), candidates) == truth).double().mean() > 0.9


def test_weights_on_pseudo_labels_beside_labelled_samples() -> None:
    unlabelled, truth = ring(300, 0)
    labelled, test = ring(24, 1), ring(600, 3)
    model, optimizer, reweighter = learner([50] * CLASSES)
    for _ in range(150):
        target, sure = pseudo_label(model(unlabelled), 0.5)
        loss = F.cross_entropy(model(labelled[0]), labelled[1])
        if sure.any():
            loss = loss + reweighter.loss((unlabelled[sure], target[sure]), labelled).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy(model, *test) > 0.9
    assert accuracy(model, unlabelled, truth) > 0.9


def test_weights_reject_wrong_labels_and_go_on_to_another_data_set(tmp_path: Path) -> None:
    points, truth = ring(600, 0)
    noisy = flip_noise(truth, 0.4, num_classes=CLASSES, seed=1)
    model, _, reweighter = learner([100] * CLASSES)
    for _ in range(200):
        reweighter.step((points, noisy), ring(60, 2))
    losses = F.cross_entropy(model(points), noisy, reduction="none").detach()
    clean = noisy == truth
    by_weight = risk_coverage(reweighter.weight_net(losses, noisy).detach(), clean)
    assert by_weight.area < 0.5 * (~clean).double().mean()

    # Frozen, on a ring with other class sizes, in an ordinary loop.
    reweighter.weight_net.save(tmp_path / "weights.safetensors")
    other, other_truth = ring(300, 5)
    other_noisy = flip_noise(other_truth, 0.4, num_classes=CLASSES, seed=6)
    weigh = CMWNet.load(tmp_path / "weights.safetensors").bind(torch.bincount(other_noisy, minlength=CLASSES))
    results = {}
    for name in ("plain", "weighed"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
        for _ in range(200):
            loss = F.cross_entropy(network(other), other_noisy, reduction="none")
            weights = weigh(loss.detach(), other_noisy).detach() if name == "weighed" else torch.ones_like(loss)
            optimizer.zero_grad()
            (weights * loss).mean().backward()
            optimizer.step()
        sure = F.softmax(network(other), dim=1)[torch.arange(len(other)), other_truth]
        results[name] = sure.mean().item()
    assert results["weighed"] > results["plain"] + 0.05
