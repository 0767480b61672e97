"""Random views: shapes, ranges, and that each distortion does what it says."""

import pytest
import torch
from dadl.networks.views import View

IMAGES = torch.randint(0, 256, (4, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_in_evaluation_mode_it_is_the_middle() -> None:
    view = View(16, crop_area=0.3, operations=2, cutout=0.5, flip=True).eval()
    torch.testing.assert_close(view(IMAGES), IMAGES[..., 2:18, 4:20].float() / 255)
    torch.testing.assert_close(view(IMAGES), view(IMAGES.float() / 255))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_random_and_in_range(channels: int) -> None:
    view = View(16, crop_area=0.3, operations=2, cutout=0.5)
    one, two = view(IMAGES[:, :channels]), view(IMAGES[:, :channels])
    assert one.shape == (4, channels, 16, 16)
    assert one.dtype == torch.float32
    assert 0 <= one.min() <= one.max() <= 1
    for first, second in zip(one, two, strict=True):
        assert not torch.equal(first, second)


def test_without_a_crop_everything_stays_in_its_place() -> None:
    view = View(16, crop_area=None, operations=2)
    image = IMAGES[..., 2:18, 4:20].float()
    changed = view(IMAGES[:, :1])
    assert not torch.allclose(changed, image[:, :1] / 255)
    for one, other in zip(changed.flatten(1), image[:, :1].flatten(1), strict=True):
        assert (one[other.argsort(stable=True)].diff() >= 0).all()  # brightness and contrast keep the order of pixels


def test_a_constant_image_stays_constant_under_crops_alone() -> None:
    view = View(16, crop_area=0.2, flip=True)
    constant = torch.full((8, 1, 20, 20), 0.5)
    torch.testing.assert_close(view(constant)[..., 1:-1, 1:-1], torch.full((8, 1, 14, 14), 0.5))


def test_crops_have_the_area_and_lie_inside() -> None:
    """The image is its own coordinates, so that a view tells where it was taken."""
    axis = (torch.arange(100) + 0.5) / 100
    image = torch.stack([axis.expand(100, 100), axis.expand(100, 100).T, torch.zeros(100, 100)])
    views = View(50, crop_area=0.5)(image.expand(200, 3, 100, 100))
    width = (views[:, 0, 25, -1] - views[:, 0, 25, 0]) * 50 / 49
    height = (views[:, 1, -1, 25] - views[:, 1, 0, 25]) * 50 / 49
    assert 0.45 < (width * height).min() < 0.6
    assert (width * height).max() > 0.85
    assert (width / height).min() > 0.7
    assert (width / height).max() < 1.4


def test_a_warp_samples_where_affine_grid_says(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        "torch.nn.functional.grid_sample", lambda images, grid, **how: grids.append(grid) or sample(images, grid, **how)
    )
    View(16, crop_area=0.3, operations=3, flip=True)(IMAGES)
    corners = grids[0][:, [0, 0, -1], [0, -1, 0]]  # three points say what the affine map is
    ends = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1]]) * torch.tensor([15 / 16, 15 / 16, 1])
    theta = torch.linalg.solve(ends, corners).mT
    torch.testing.assert_close(grids[0], torch.nn.functional.affine_grid(theta, [4, 3, 16, 16], align_corners=False))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_one_after_the_other(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    strengths = torch.tensor([[0.4, -0.7, 0.2, 0], [-0.5, 0.9, 0, 0.3], [0.6, -0.2, 0, 1]])
    strengths[2] *= channels == 3
    view = View(16, crop_area=None, operations=3)
    monkeypatch.setattr(View, "_draw_distortions", lambda *_: torch.cat([torch.zeros(3, 4), strengths]))
    image = IMAGES[:, :channels, 2:18, 4:20].float() / 255
    brightness, contrast, saturation = (1 + 0.6 * strengths)[..., None, None, None]
    bright = brightness * image
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    contrasted = contrast * bright + (1 - contrast) * mean
    grey = contrasted.mean(dim=1, keepdim=True)
    expected = (saturation * contrasted + (1 - saturation) * grey).clamp(0, 1)
    torch.testing.assert_close(view(IMAGES[:, :channels]), expected)


def test_flips_mirror_about_half_of_the_images() -> None:
    ramp = torch.linspace(0, 1, 32).expand(400, 1, 32, 32)
    plain, flipping = View(32, crop_area=0.9), View(32, crop_area=0.9, flip=True)
    rising = lambda views: (views[:, 0, 16, -1] > views[:, 0, 16, 0]).float().mean().item()
    assert rising(plain(ramp)) == 1
    assert 0.4 < rising(flipping(ramp)) < 0.6


def test_cutout_erases_a_square_of_at_most_its_size() -> None:
    view = View(40, crop_area=1.0, cutout=0.5)
    erased = (view(torch.ones(200, 1, 40, 40))[:, 0, 4:-4, 4:-4] == 0).float().mean(dim=(1, 2))
    assert erased.max() <= 0.5**2 * 1.7
    assert erased.max() > 0.1
    assert (erased > 0).float().mean() > 0.6


def test_each_image_gets_so_many_distortions() -> None:
    view = View(16, crop_area=1.0, operations=2)
    assert (view._draw_distortions(IMAGES) != 0).sum(dim=0).tolist() == [2] * 4
    grey = View(16, crop_area=1.0, operations=5)._draw_distortions(IMAGES[:, :1])
    assert (grey != 0).sum(dim=0).tolist() == [5] * 4
    assert grey[5].eq(0).all()  # greys have no saturation
