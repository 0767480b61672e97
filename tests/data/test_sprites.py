"""Generated sprites lie where their targets say, and published files are read as they are."""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.chi_model.recipe import ChiModelRecipe
from dadl.data.arrays import sprites
from dadl.data.arrays.memory import TooLargeError
from dadl.data.arrays.sprites import COUNTS, SpriteFileError, draw_sprites, generate_sprites, read_sprites
from dadl.errors import SettingsError
from dadl.output import JobProgress
from dadl.runs.recipe import RecipeData
from rich.console import Console


def test_all_factors_are_as_many_as_in_dsprites() -> None:
    assert math.prod(COUNTS) == 737280


def test_sprites_repeat_for_a_seed_and_targets_are_fractions() -> None:
    one, two, other = (generate_sprites(2000, 16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.target, two.target)
    assert not torch.equal(one.target, other.target)
    assert one.images.shape == (2000, 3, 16, 16)
    assert one.images.dtype == torch.uint8
    assert one.names == ("scale", "x", "y")
    for column, count in zip(one.target.T, (6, 32, 32), strict=True):
        expected = torch.arange(count) / (count - 1)
        torch.testing.assert_close(column.unique(), expected)


def factors(**chosen: int) -> np.ndarray:
    """All shapes at some rotations, otherwise in the middle."""
    base = {"scale": 5, "x": 16, "y": 16} | chosen
    return np.array([[s, base["scale"], r, base["x"], base["y"]] for s in range(3) for r in (0, 3, 10, 27)])


@pytest.mark.parametrize(("x", "y"), [(0, 0), (31, 0), (7, 25), (31, 31)])
@pytest.mark.parametrize("scale", [0, 5])
def test_a_sprite_lies_at_its_position(x: int, y: int, scale: int) -> None:
    masks = draw_sprites(factors(x=x, y=y, scale=scale), 128)
    pixels = (np.arange(128) + 0.5) / 128
    area = masks.sum(axis=(1, 2))
    found_x, found_y = (masks * pixels).sum(axis=(1, 2)) / area, (masks * pixels[:, None]).sum(axis=(1, 2)) / area
    np.testing.assert_allclose(found_x, 0.25 + 0.5 * x / 31, atol=0.004)
    np.testing.assert_allclose(found_y, 0.25 + 0.5 * y / 31, atol=0.004)


def test_no_sprite_is_cut_off() -> None:
    for x, y in ((0, 0), (31, 31)):
        masks = draw_sprites(factors(x=x, y=y), 64)
        for border in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
            assert not border.any()


def test_area_grows_with_the_square_of_the_scale() -> None:
    areas = np.array([draw_sprites(factors(scale=scale), 256).sum(axis=(1, 2)) for scale in range(6)])
    scale = (0.5 + 0.1 * np.arange(6)) ** 2
    np.testing.assert_allclose(areas / areas[-1], np.broadcast_to(scale[:, None], areas.shape), rtol=0.04)


def test_shapes_are_what_they_are_called() -> None:
    square, ellipse, heart = draw_sprites(np.array([[shape, 5, 0, 16, 16] for shape in range(3)]), 256)
    assert square.sum() == pytest.approx((2 * 0.17 * 256) ** 2, rel=0.03)
    assert ellipse.sum() == pytest.approx(math.pi * 0.22 * 0.13 * 256**2, rel=0.02)
    rows = heart.sum(axis=1)[heart.any(axis=1)]
    assert rows[len(rows) // 4] > 2 * rows[3 * len(rows) // 4 + 10]  # wide above, pointed below
    assert (heart == heart[:, ::-1]).mean() > 0.97


def test_quarter_turns_of_a_square_are_the_square_and_a_heart_turns() -> None:
    square = draw_sprites(np.array([[0, 5, r, 16, 16] for r in (0, 10, 20, 30)]), 64)
    assert all((turned == square[0]).mean() > 0.98 for turned in square)
    upright, turned = draw_sprites(np.array([[2, 5, 0, 16, 16], [2, 5, 10, 16, 16]]), 64)
    assert (upright != turned).mean() > 0.005


def test_a_sprite_is_the_negative_of_its_background() -> None:
    masks = np.zeros((2, 32, 32), dtype=bool)
    drawn = masks.copy()
    drawn[:, 8:20, 8:20] = True
    plain, sprite = (sprites.over_photos(m, np.random.default_rng(3)).numpy() for m in (masks, drawn))
    inside = np.broadcast_to(drawn[:, None], plain.shape)
    np.testing.assert_array_equal(sprite[inside], 255 - plain[inside])
    np.testing.assert_array_equal(sprite[~inside], plain[~inside])
    assert (plain[0] != plain[1]).any()


def npz(file: Path, name: str, array: np.ndarray) -> None:
    np.savez_compressed(file, **{name: array})


def test_dsprites_are_read_over_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "COUNTS", (3, 6, 2, 8, 8))
    monkeypatch.setattr(sprites, "_CHUNK", 100)
    drawn = np.random.default_rng(0).integers(0, 2, (2304, 8, 8), dtype=np.uint8)
    npz(tmp_path / "dsprites.npz", "imgs", drawn)
    read = read_sprites(tmp_path, 50, seed=1)
    rows = np.sort(np.random.default_rng(1).choice(2304, 50, replace=False))
    values = np.stack(np.unravel_index(rows, (3, 6, 2, 8, 8)), axis=1)[:, [1, 3, 4]] / [5, 7, 7]
    np.testing.assert_allclose(read.target, values, rtol=1e-6)
    rng = np.random.default_rng(1)
    rng.choice(2304, 50, replace=False)
    assert torch.equal(read.images, sprites.over_photos(drawn[rows].astype(bool), rng))


def test_mpi3d_is_read_with_its_angles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    images = np.random.default_rng(0).integers(0, 256, (3200, 4, 4, 3), dtype=np.uint8)
    npz(tmp_path / "mpi3d.npz", "images", images)
    read = read_sprites(tmp_path, 20, seed=2)
    rows = np.sort(np.random.default_rng(2).choice(3200, 20, replace=False))
    np.testing.assert_array_equal(read.images, images[rows].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(read.target, np.stack([rows // 40 % 40, rows % 40], axis=1) / 39, rtol=1e-6)
    assert read.names == ("horizontal angle", "vertical angle")


def test_dadl_train_reads_sprites_and_splits_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    images = np.random.default_rng(0).integers(0, 256, (3200, 4, 4, 3), dtype=np.uint8)
    npz(tmp_path / "mpi3d.npz", "images", images)

    def task(**settings: Any) -> RecipeData:
        recipe = ChiModelRecipe(data=tmp_path, labels=10, images=100, image_size=32, split_seed=3, **settings)
        return recipe.read(JobProgress(Console(quiet=True)))

    both = task()
    assert both.sizes == {"labelled": 7, "unlabelled": 63, "validation": 10, "test": 20}
    assert both.facts == {"values": 2}
    read = read_sprites(tmp_path, 100, seed=3)
    rows = torch.tensor([int(name) for name in both.test.names])
    table = both.test.score(read.target[rows] + torch.tensor([0.1, 0.3]))
    assert table["all"]["MAE %"] == pytest.approx(20)
    assert table["column 1"]["MAE %"] == pytest.approx(30)
    (shown,) = next(iter(both.test.loader))
    assert shown.shape == (20, 3, 37, 37)
    assert float((shown.float().mean() - read.images[rows].float().mean()).abs()) < 2
    parts = [both.test.names, both.validation.names if both.validation else []]
    assert not set(parts[0]) & set(parts[1])
    second = task(columns=(1,))
    assert second.test.score(read.target[rows][:, 1:] + 0.3)["column 1"]["MAE %"] == pytest.approx(30)
    with pytest.raises(
        SettingsError, match="there is no column 2: the columns, numbered from 0, are horizontal angle, vertical angle"
    ):
        task(columns=(2,))
    with pytest.raises(SettingsError, match="augment 'nowhere:view' cannot be used"):
        task(augment="nowhere:view")


def test_other_files_are_refused(tmp_path: Path) -> None:
    def refuses(message: str) -> None:
        with pytest.raises(SpriteFileError, match=message):
            read_sprites(tmp_path, 5)

    refuses("holds 0 npz files")
    file = tmp_path / "a.npz"
    file.write_text("no archive")
    refuses("zip")
    npz(file, "x", np.zeros(3))
    refuses("neither dSprites")
    npz(file, "imgs", np.zeros((10, 4, 4), dtype=np.uint8))
    refuses("expected 737280 uint8 images")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refuses(r"a\.npz")
    npz(tmp_path / "b.npz", "x", np.zeros(3))
    refuses("holds 2 npz files")


def member(file: Path, content: bytes, name: str = "images.npy", method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)


def header(text: str, version: int = 1) -> bytes:
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


STATED = "{'descr': '|u1', 'fortran_order': False, 'shape': (3200, 4, 4, 3)}\n"
IMAGES = np.zeros((3200, 4, 4, 3), dtype=np.uint8)
ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no array": (lambda file: member(file, b"text"), "magic"),
    "empty": (lambda file: member(file, b""), r"a\.npz: "),
    "version 3": (lambda file: member(file, header(STATED, 3) + bytes(3200 * 48)), r"header of version 3\.0"),
    "shape ()": (lambda file: member(file, npy(np.uint8(1))), r"uint8 \[\], expected 3200"),
    "grey": (lambda file: member(file, npy(IMAGES[..., 0])), "expected 3200 uint8 images, 3200 × side × side × 3"),
    "oblong": (lambda file: member(file, npy(IMAGES[:, :2])), "expected 3200 uint8 images"),
    "large": (lambda file: member(file, npy(np.zeros((3200, 257, 257, 3), np.uint8)[:, :0])), "expected 3200"),
    "huge": (lambda file: member(file, header(STATED.replace("4, 4", "9" * 30 + ", 4")) + b"x"), "expected 3200"),
    "negative": (lambda file: member(file, header(STATED.replace("4, 4", "-4, -4")) + b"x"), "expected 3200"),
    "objects": (lambda file: member(file, header(STATED.replace("|u1", "|O")) + b"x"), "object .*expected 3200"),
    "fortran": (lambda file: member(file, header(STATED.replace("False", "True")) + bytes(3200 * 48)), "expected 3200"),
    "a call": (lambda file: member(file, header("__import__('os').getpid()\n")), "damaged header"),
    "deep": (lambda file: member(file, header("(" * 5000 + "\n")), "damaged header"),
    "minus signs": (lambda file: member(file, header("-" * 9000 + "1\n")), "damaged header"),
    "short": (lambda file: member(file, npy(IMAGES)[:-1]), "bytes, and not as many as its header says"),
    "long": (lambda file: member(file, npy(IMAGES) + b"x"), "bytes, and not as many as its header says"),
    "bzip2 cut": (lambda file: member(file, b"x" * 99, method=zipfile.ZIP_BZIP2), "magic"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_arrays_are_refused_with_a_sentence(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    write, message = ODD[kind]
    write(tmp_path / "a.npz")
    with pytest.raises(SpriteFileError, match=message):
        read_sprites(tmp_path, 20)


def test_archives_that_lie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    file = tmp_path / "a.npz"
    member(file, npy(IMAGES))
    whole = file.read_bytes()
    (tmp_path / "a.npz").write_bytes(whole)
    with zipfile.ZipFile(file) as archive:
        (info,) = archive.infolist()
    size, directory = info.file_size.to_bytes(4, "little"), whole.rindex(b"PK\1\2")
    for place, changed in (
        (whole.index(size, directory), bytes([255] * 3)),  # another length
        (directory + 8, b"\1"),  # encrypted
        (directory + 10, b"\x63"),  # an unknown compression
        (len(whole) // 3, b"\0\0\0\0"),
    ):
        file.write_bytes(whole[:place] + changed + whole[place + len(changed) :])
        with pytest.raises(SpriteFileError, match=r"a\.npz: ."):
            read_sprites(tmp_path, 3200)


def test_too_many_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    member(tmp_path / "a.npz", npy(IMAGES))
    with pytest.raises(SpriteFileError, match="3201 images are to be drawn, but there are 3200"):
        read_sprites(tmp_path, 3201)
    monkeypatch.setattr("dadl.data.arrays.memory.available_memory", lambda: 10_000)
    with pytest.raises(TooLargeError, match="200 images: "):
        read_sprites(tmp_path, 200)
