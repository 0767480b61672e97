"""The weighting network: families of classes, weights by hand, files, other data sets."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from dadl import CMWNet
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def by_hand(net: CMWNet, loss: float, target: int) -> Tensor:
    hidden = (net.shared.weight[:, 0] * loss + net.shared.bias).clamp(min=0)
    family = int(net.family[target])
    return net.floor + (1 - net.floor) / (1 + torch.exp(-(hidden @ net.heads.weight[family] + net.heads.bias[family])))


def test_weights_by_hand() -> None:
    net = CMWNet([1000, 900, 30, 100, 20], hidden=100, floor=0.1)
    losses, targets = torch.rand(40) * 5, torch.randint(0, 5, (40,))
    expected = torch.stack([by_hand(net, loss, y) for loss, y in zip(losses.tolist(), targets.tolist(), strict=True)])
    torch.testing.assert_close(net(losses, targets), expected)
    curves = net.curves(losses)
    torch.testing.assert_close(curves.gather(1, net.family[targets, None])[:, 0], expected)
    assert not curves.requires_grad
    assert sum(p.numel() for p in net.parameters()) == 2 * 100 + 3 * 101


def test_losses_are_constants_and_parameters_are_not() -> None:
    net = CMWNet([10, 5, 1])
    losses = torch.rand(6, requires_grad=True)
    net(losses, torch.arange(6) % 3).sum().backward()
    assert losses.grad is None
    assert all(p.grad is not None for p in net.parameters())


def test_families_are_ordered_and_their_centres_kept() -> None:
    net = CMWNet([30, 1000, 400, 980, 20])
    torch.testing.assert_close(net.centers, torch.tensor([0.025, 0.4, 0.99], dtype=torch.float64))
    assert net.family.tolist() == [0, 2, 1, 2, 0]


def test_one_family_is_meta_weight_net() -> None:
    net = CMWNet([30, 1000, 100], families=1)
    assert net.family.tolist() == [0, 0, 0]
    losses = torch.rand(3)
    weights = [net(losses, torch.full((3,), y)) for y in range(3)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 4))
def test_families_are_the_best_clustering(counts: list[int], families: int) -> None:
    """Against every way to cut the sorted sizes into intervals."""
    net = CMWNet(counts, families)
    sizes = np.sort(np.array(counts) / max(counts))
    k = min(families, len(set(counts)))
    assert len(net.centers) == k

    def spread(cuts: tuple[int, ...]) -> float:
        parts = np.split(sizes, cuts)
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    best = min(spread(cuts) for cuts in combinations(range(1, len(sizes)), k - 1))
    distances = np.abs(sizes[:, None] - net.centers.numpy()).min(axis=1)
    np.testing.assert_allclose((distances**2).sum(), best, atol=1e-12)
    assert (np.diff(net.centers.numpy()) > 0).all()


def test_a_class_without_samples_is_of_the_smallest_family() -> None:
    net = CMWNet([1000, 0, 20, 100])
    torch.testing.assert_close(net.centers, torch.tensor([0.02, 0.1, 1.0], dtype=torch.float64))
    assert net.family.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(("counts", "families"), [([7], 1), ([5, 3], 2), ([9, 9, 9, 9], 1)])
def test_there_are_no_more_families_than_class_sizes(counts: list[int], families: int) -> None:
    net = CMWNet(torch.tensor(counts))
    assert net.curves(torch.rand(2)).shape == (2, families)
    assert net(torch.rand(len(counts)), torch.arange(len(counts))).shape == (len(counts),)


def test_a_file_holds_everything(tmp_path: Path) -> None:
    net = CMWNet([1000, 0, 20, 100], families=2, hidden=7, floor=0.2)
    net.save(tmp_path / "net.safetensors")
    loaded = CMWNet.load(tmp_path / "net.safetensors")
    losses, targets = torch.rand(8), torch.arange(8) % 4
    assert torch.equal(loaded(losses, targets), net(losses, targets))
    assert torch.equal(loaded.centers, net.centers)
    assert loaded.floor == 0.2
    assert all(p.requires_grad for p in loaded.parameters())


def test_another_file_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold a CMWNet"):
        CMWNet.load(tmp_path / "other.safetensors")


def test_bound_to_other_classes_it_compares_relative_sizes(tmp_path: Path) -> None:
    net = CMWNet([1000, 980, 400, 20])
    net.save(tmp_path / "net.safetensors")
    bound = CMWNet.load(tmp_path / "net.safetensors").bind([3, 200, 80, 150, 0, 190])
    assert bound.family.tolist() == [0, 2, 1, 2, 0, 2]
    losses = torch.rand(3)
    torch.testing.assert_close(bound(losses, torch.tensor([0, 2, 1])), net(losses, torch.tensor([3, 2, 0])))
    assert net.family.tolist() == [2, 2, 1, 0]  # is what it was

    logits = torch.randn(6, 6, requires_grad=True)
    target = torch.arange(6)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (bound(losses, target) * losses).mean().backward()
    assert logits.grad is not None


def test_autocast_does_not_round_the_weights() -> None:
    net = CMWNet([10, 5, 1])
    losses, targets = torch.rand(30), torch.arange(30) % 3
    expected = net(losses, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(losses, targets), expected)
    assert net(losses.bfloat16(), targets).dtype == torch.float32


def test_copies_and_state_dicts_hold_the_families() -> None:
    net, other = CMWNet([10, 5, 1]), CMWNet([1, 5, 10])
    other.load_state_dict(net.state_dict())
    losses, targets = torch.rand(6), torch.arange(6) % 3
    assert torch.equal(other(losses, targets), net(losses, targets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_counts": []}, "must be a vector"),
        ({"class_counts": [[1, 2]]}, "must be a vector"),
        ({"class_counts": [0, 0]}, "all zero"),
        ({"class_counts": [3, -1]}, "integers from 0"),
        ({"class_counts": [3, 1.5]}, "integers from 0"),
        ({"class_counts": [3, float("nan")]}, "integers from 0"),
        ({"class_counts": [3], "families": 0}, "families >= 1"),
        ({"class_counts": [3], "hidden": 0}, "hidden >= 1"),
        ({"class_counts": [3], "floor": 1.0}, r"floor must be in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CMWNet(**options)  # type: ignore[arg-type]


def test_bad_batches_are_named() -> None:
    net = CMWNet([3, 2])
    with pytest.raises(ValueError, match=r"got shapes \[2\] and \[3\]"):
        net(torch.rand(2), torch.zeros(3, dtype=torch.int64))
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"batch row 1 is {wrong}; there are 2 classes"):
            net(torch.rand(3), torch.tensor([0, wrong, 1]))


def test_a_centre_is_the_mean_of_classes_not_of_sizes() -> None:
    sizes = [100, 100, 100, 100, 50, 10]
    assert CMWNet(sizes, families=1).centers.tolist() == pytest.approx([4.6 / 6])
    assert CMWNet([*sizes, 0], families=2).centers.tolist() == pytest.approx([0.3, 1.0])


def test_bind_leaves_the_network_as_it_is() -> None:
    network = CMWNet([100, 10, 1], families=3)
    family = network.family.clone()
    bound = network.bind([1, 100, 10, 10])
    assert bound is not network
    assert torch.equal(network.family, family)
    assert len(bound.family) == 4
