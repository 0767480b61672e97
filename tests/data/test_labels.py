"""Imbalance and noise: exact counts, what is chosen and what it becomes, seeds."""

from typing import Any

import numpy as np
import pytest
import torch
from dadl import data
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def labels(n: int = 1000, classes: int = 10) -> Tensor:
    return torch.arange(n) % classes


@pytest.mark.parametrize(("imbalance", "total"), [(10, 20431), (20, 17023), (50, 13996), (100, 12406), (200, 11203)])
def test_the_long_tails_of_cifar10(imbalance: int, total: int) -> None:
    counts = data.long_tail_counts(5000, imbalance, 10)
    assert sum(counts) == total
    assert counts[0] == 5000
    assert counts[-1] == 5000 // imbalance


def test_a_long_tail_keeps_random_samples_of_each_class() -> None:
    given_labels = labels()
    kept = data.long_tail(given_labels, 20)
    assert torch.bincount(given_labels[kept]).tolist() == data.long_tail_counts(100, 20, 10)
    assert len(kept.unique()) == len(kept)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, data.long_tail(given_labels, 20))
    assert not torch.equal(kept, data.long_tail(given_labels, 20, seed=1))
    assert data.long_tail(given_labels, 1).tolist() == list(range(1000))
    assert torch.bincount(given_labels[data.long_tail(given_labels, 4, largest=40)])[0] == 40


def test_a_class_too_small_for_its_share_is_named() -> None:
    with pytest.raises(ValueError, match="class 1 has 3 samples and should keep 5"):
        data.long_tail([0] * 10 + [1] * 3, 2)


@given(n=st.integers(1, 200), classes=st.integers(1, 6), rate=st.floats(0, 1), seed=st.integers(0, 3))
def test_symmetric_noise_touches_an_exact_number(n: int, classes: int, rate: float, seed: int) -> None:
    clean = labels(n, classes)
    noisy = data.symmetric_noise(clean, rate, num_classes=classes, seed=seed)
    assert (noisy != clean).sum() <= int(rate * n)
    assert noisy.min() >= 0
    assert noisy.max() < classes
    assert torch.equal(noisy, data.symmetric_noise(clean, rate, num_classes=classes, seed=seed))
    assert torch.equal(clean, labels(n, classes))


def test_symmetric_noise_is_uniform_over_all_classes() -> None:
    clean = torch.zeros(20000, dtype=torch.int64)
    noisy = data.symmetric_noise(clean, 0.5, num_classes=5)
    counts = torch.bincount(noisy, minlength=5)
    assert ((counts[1:] - 2000).abs() < 200).all()  # 10000 redrawn samples, a fifth of them for each class
    assert abs(int(counts[0]) - 12000) < 200


@given(n=st.integers(2, 200), rate=st.floats(0, 1))
def test_flips_are_exact(n: int, rate: float) -> None:
    clean = labels(n, 4)
    noisy = data.flip_noise(clean, rate, num_classes=4)
    changed = noisy != clean
    assert changed.sum() == int(rate * n)
    assert torch.equal(noisy[changed], (clean[changed] + 1) % 4)


def test_asymmetric_noise_on_cifar10_maps_four_classes() -> None:
    clean = labels()
    noisy = data.flip_noise(clean, 1.0, data.CIFAR10_FLIPS)
    for old, new in enumerate([0, 1, 0, 5, 7, 5, 6, 7, 8, 1]):
        assert (noisy[clean == old] == new).all()
    chosen = data.flip_noise(clean, 0.4, {c: (c + 1) % 10 for c in range(10)}) != clean
    few = data.flip_noise(clean, 0.4, data.CIFAR10_FLIPS)
    assert torch.equal(
        few != clean, chosen & torch.isin(clean, torch.tensor([2, 4, 9, 3]))
    )  # others are chosen in vain


def posterior(n: int = 20000) -> Tensor:
    return (3 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0))).softmax(dim=1)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_pmd_keeps_the_most_probable_class_as_often_as_it_should(kind: Any) -> None:
    eta = posterior()
    noisy = data.pmd_noise(eta, kind)
    order = eta.sort(dim=1, descending=True)
    d = order.values[:, 0] - order.values[:, 1]
    keep = {1: (0.5 + d**2 / 2).clamp(min=0.5), 2: d**3, 3: (d + d**2 + d**3) / 3}[kind]
    kept, second = noisy == order.indices[:, 0], noisy == order.indices[:, 1]
    assert (kept | second).all()
    for low in (0.0, 0.25, 0.5, 0.75):
        part = (d >= low) & (d < low + 0.25)
        assert abs(kept[part].float().mean() - keep[part].mean()) < 0.03
    for rate in (0.0, 0.2, 0.35, 0.7):
        if kind == 1 and rate == 0.0:
            assert torch.equal(data.pmd_noise(eta, kind, rate), order.indices[:, 0])
        assert abs((data.pmd_noise(eta, kind, rate) != order.indices[:, 0]).float().mean() - rate) < 0.02
    assert torch.equal(noisy, data.pmd_noise(eta, kind))
    assert not torch.equal(noisy, data.pmd_noise(eta, kind, seed=1))


def test_hybrid_noise_is_one_after_the_other() -> None:
    eta = posterior(500)
    first = data.pmd_noise(eta, 2, 0.35, seed=3)
    expected = data.symmetric_noise(first, 0.3, num_classes=6, seed=4)
    assert torch.equal(data.hybrid_noise(eta, 2, "symmetric", seed=3), expected)
    expected = data.flip_noise(first, 0.3, {2: 0}, num_classes=6, seed=4)
    assert torch.equal(data.hybrid_noise(eta, 2, "flip", flips={2: 0}, seed=3), expected)
    assert (data.hybrid_noise(eta, 2, "flip", seed=3) != first).sum() == 150


@given(classes=st.integers(2, 7), q=st.floats(0, 1), seed=st.integers(0, 3))
def test_candidates_hold_the_true_label_and_a_wrong_one(classes: int, q: float, seed: int) -> None:
    clean = labels(60, classes)
    candidates = data.partial_labels(clean, q, seed=seed)
    assert candidates.shape == (60, classes)
    assert candidates.dtype == torch.bool
    assert candidates[torch.arange(60), clean].all()
    assert (candidates.sum(dim=1) >= 2).all()
    assert torch.equal(candidates, data.partial_labels(clean, q, seed=seed))


def test_wrong_candidates_have_their_probability() -> None:
    clean = labels(20000, 10)
    for q in (0.0, 0.3):
        candidates = data.partial_labels(clean, q)
        alone = (1 - q) ** 9  # one is added to those
        assert abs(candidates.sum(dim=1).float().mean() - (1 + 9 * q + alone)) < 0.05
    counts = torch.bincount((candidates.nonzero()[:, 1] - clean.repeat_interleave(candidates.sum(dim=1))) % 10)
    assert (counts[1:] > 5000).all()
    assert data.partial_labels(clean, 1.0).all()


@pytest.mark.parametrize("kind", [np.array, list, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_any_labels(kind: Any) -> None:
    noisy = data.symmetric_noise(kind([0, 1, 2, 1]), 0.5)
    assert noisy.dtype == torch.int64
    assert noisy.shape == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.symmetric_noise([], 0.5), "non-empty vector of integers"),
        (lambda: data.symmetric_noise([0.5], 0.5), "non-empty vector of integers"),
        (lambda: data.symmetric_noise([[0]], 0.5), "non-empty vector of integers"),
        (lambda: data.symmetric_noise([0, -1], 0.5), "from 0 to C - 1, got -1 to 0"),
        (lambda: data.symmetric_noise([0, 3], 0.5, num_classes=3), "from 0 to 2, got 0 to 3"),
        (lambda: data.symmetric_noise([0, 1], 1.5), "a fraction from 0 to 1, got 1.5"),
        (lambda: data.flip_noise([0, 1], 0.5, {0: 2}), "class 0 to 2; there are 2 classes"),
        (lambda: data.long_tail([0, 1], 0.5), "imbalance >= 1"),
        (lambda: data.partial_labels([0, 0], 0.5), "two classes"),
        (lambda: data.pmd_noise(torch.ones(3, 1), 1), "C >= 2"),
        (lambda: data.pmd_noise(torch.ones(3, 2), 1), "sum to 1"),
        (lambda: data.pmd_noise(torch.full((3, 2), 0.5), 4), "kind must be one of"),
        (lambda: data.pmd_noise(torch.full((3, 2), 0.5), 2, 0.1), "equally probable"),
        (lambda: data.hybrid_noise(torch.full((3, 2), 0.5), 1, "none"), "then must be"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_balanced_subsets() -> None:
    given_labels = torch.tensor([0] * 9 + [2] * 4 + [3] * 30)[torch.randperm(43)]
    chosen = data.balanced_subset(given_labels)
    assert torch.bincount(given_labels[chosen]).tolist() == [4, 0, 4, 4]
    assert torch.bincount(given_labels[data.balanced_subset(given_labels, 3)]).tolist() == [3, 0, 3, 3]
    assert torch.equal(chosen, data.balanced_subset(given_labels))
    assert not torch.equal(chosen, data.balanced_subset(given_labels, seed=1))
    with pytest.raises(ValueError, match="cannot take 5 samples of every class: class 2 has 4"):
        data.balanced_subset(given_labels, 5)


@given(n=st.integers(1, 80), classes=st.integers(1, 6), per_class=st.integers(1, 12))
def test_the_lowest_losses_of_each_class(n: int, classes: int, per_class: int) -> None:
    given_labels = torch.randint(0, classes, (n,))
    losses = torch.randint(0, 9, (n,)).float()  # with ties
    expected: list[int] = []
    for c in range(classes):
        members = [i for i in range(n) if given_labels[i] == c]
        expected += sorted(members, key=lambda i: (losses[i].item(), i))[:per_class]
    assert data.lowest_loss_subset(losses, given_labels, per_class).tolist() == sorted(expected)
    with pytest.raises(ValueError, match="per_class >= 1"):
        data.lowest_loss_subset(losses, given_labels, 0)
