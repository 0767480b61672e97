"""Heatmaps and what is read from them."""

import pytest
import torch
from dadl.chi_model.key_points import from_heatmaps, heatmap_cross_entropy, pck, to_heatmaps


def test_a_heatmap_is_a_distribution_whose_mean_is_the_point() -> None:
    points = torch.rand(50, 4, 2) * (1 - 1 / 12) + 0.5 / 12  # within the centres of the border's cells
    heatmaps = to_heatmaps(points, 12)
    assert heatmaps.shape == (50, 4, 12, 12)
    torch.testing.assert_close(heatmaps.sum(dim=(-2, -1)), torch.ones(50, 4))
    assert ((heatmaps > 0).sum(dim=(-2, -1)) <= 4).all()
    torch.testing.assert_close(from_heatmaps(heatmaps), points)


def test_x_is_the_column_and_y_the_row() -> None:
    heatmap = to_heatmaps(torch.tensor([0.9, 0.3]), 5)  # centres of the cells: .1, .3, .5, .7, .9
    assert heatmap[1, 4] == pytest.approx(1)


def test_points_at_the_border_stay_inside() -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(from_heatmaps(to_heatmaps(corners, 10)), torch.tensor([[0.05, 0.05], [0.95, 0.95]]))


def test_the_likelier_of_two_places_is_read() -> None:
    here, there = torch.tensor([0.2, 0.2]), torch.tensor([0.8, 0.7])
    mixture = 0.7 * to_heatmaps(there, 10) + 0.3 * to_heatmaps(here, 10)
    torch.testing.assert_close(from_heatmaps(mixture), there)


def test_cross_entropy_is_that_over_all_cells() -> None:
    logits, target = torch.randn(3, 2, 4, 4), to_heatmaps(torch.rand(3, 2, 2), 4)
    expected = torch.nn.functional.cross_entropy(logits.view(6, 16), target.view(6, 16))
    torch.testing.assert_close(heatmap_cross_entropy(logits, target), expected)


def test_pck_counts_points_within_the_radius() -> None:
    target = torch.full((4, 1, 2), 0.5)
    offset = torch.tensor([[0.0, 0.0], [0.04, 0.0], [0.03, 0.035], [0.04, 0.04]]).unsqueeze(1)
    assert pck(target + offset, target) == 75
