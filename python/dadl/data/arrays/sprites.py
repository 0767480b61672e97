"""Sprites over photographs: images of a shape whose scale and position are to be predicted.

They follow dSprites (Matthey et al., 2017), with a background as in dSprites-Scream (Locatello et al., ICML 2019): a
random crop of a photograph in a random tint, and its negative inside the shape. The photographs come with the Python
package ``scikit-learn``. The published files of dSprites and MPI3D (Gondal et al., NeurIPS 2019) can be read instead.
"""

import importlib.metadata
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...errors import UserError, shown
from .memory import check_memory

ATTRIBUTION = "Photographs: china.jpg © danielbuechele, flower.jpg © vultilion, CC BY 2.0, from scikit-learn"

SHAPES, SCALES, ROTATIONS, POSITIONS = 3, 6, 40, 32
COUNTS = (SHAPES, SCALES, ROTATIONS, POSITIONS, POSITIONS)
_TARGETS = [1, 3, 4]  # scale, x and y
MPI3D_COUNTS = (6, 6, 2, 3, 3, 40, 40)

_PHOTOS = ("china.jpg", "flower.jpg")
_CHUNK = 1024  # images drawn or read at a time
_MOST_PIXELS = 256  # in height and width of the published files

# In image widths. At the largest scale every shape stays within _MARGIN of its centre, and centres stay that far from
# the border.
_MARGIN = 0.25
_HALF_SIDE = 0.17
_ELLIPSE = (0.22, 0.13)
_HEART = 0.17
_HEART_CENTROID = 0.29348  # height of the centroid of the curve below

Array = npt.NDArray[Any]


class SpriteFileError(UserError, ValueError):
    """A problem with a file of sprites."""


@dataclass(frozen=True)
class Sprites:
    """Images and their targets.

    ``images`` are ``[n, 3, size, size]``, uint8; ``target`` is ``[n, T]``, in [0, 1], with T ``names``; ``source``
    credits the images.
    """

    images: Tensor
    target: Tensor
    names: tuple[str, ...]
    source: str


def generate_sprites(n: int, size: int = 64, seed: int = 0) -> Sprites:
    """``n`` distinct sprites out of all 737280, with scale, x and y as targets."""
    rng = np.random.default_rng(seed)
    index = rng.choice(math.prod(COUNTS), n, replace=False)
    factors = np.stack(np.unravel_index(index, COUNTS), axis=1)
    masks = [draw_sprites(chunk, size) for chunk in _chunks(factors)]
    return _with_targets(over_photos(np.concatenate(masks), rng), factors)


def draw_sprites(factors: Array, size: int = 64) -> npt.NDArray[np.bool_]:
    """Sprites ``[n, size, size]`` of integer factors ``[n, 5]``: shape, scale, rotation, x and y, each from 0.

    Shapes are square, ellipse and heart; rotation is clockwise by 1/40 of a turn.
    """
    shape, scale, rotation, x, y = (column[:, None, None] for column in np.asarray(factors, dtype=np.float32).T)
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    centre = lambda position: _MARGIN + (1 - 2 * _MARGIN) * position / (POSITIONS - 1)
    right, down = pixels - centre(x), pixels[:, None] - centre(y)
    cos, sin = np.cos(rotation * (2 * np.pi / ROTATIONS)), np.sin(rotation * (2 * np.pi / ROTATIONS))
    scale = 0.5 + 0.5 * scale / (SCALES - 1)
    u, v = (cos * right + sin * down) / scale, (cos * down - sin * right) / scale
    square = np.maximum(np.abs(u), np.abs(v)) <= _HALF_SIDE
    ellipse = (u / _ELLIPSE[0]) ** 2 + (v / _ELLIPSE[1]) ** 2 <= 1
    a, b = u / _HEART, _HEART_CENTROID - v / _HEART
    heart = (a**2 + b**2 - 1) ** 3 <= a**2 * b**3
    masks: npt.NDArray[np.bool_] = np.where(shape == 0, square, np.where(shape == 1, ellipse, heart))
    return masks


def over_photos(masks: npt.NDArray[np.bool_], rng: np.random.Generator) -> Tensor:
    """Masks ``[n, size, size]`` as negatives inside random crops of the photographs, ``[n, 3, size, size]``, uint8."""
    photos = np.stack([_read_photo(name) for name in _PHOTOS])
    size = masks.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(photos, (size, size), axis=(2, 3))
    images = np.empty((len(masks), 3, size, size), dtype=np.uint8)
    for image, mask in zip(_chunks(images), _chunks(masks), strict=True):
        photo, top, left = (rng.integers(0, windows.shape[axis], len(image)) for axis in (0, 2, 3))
        tint = rng.integers(0, 256, (len(image), 3, 1, 1))
        background = ((windows[photo, :, top, left] + tint) // 2).astype(np.uint8)
        image[:] = np.where(mask[:, None], 255 - background, background)
    return torch.from_numpy(images)


def read_sprites(folder: Path, n: int, seed: int = 0) -> Sprites:
    """``n`` random images from the only npz file in ``folder``: dSprites, drawn over photographs, or MPI3D as it is.

    Targets are scale, x and y for dSprites and the two angles for MPI3D. Raises a :class:`SpriteFileError` otherwise,
    and a :class:`.TooLargeError` if so many images do not fit into memory.
    """
    rng = np.random.default_rng(seed)
    files = list(folder.glob("*.npz"))
    if len(files) != 1:
        raise SpriteFileError(f"{folder} holds {len(files)} npz files; expected one, of dSprites or MPI3D")
    (file,) = files
    try:
        with zipfile.ZipFile(file) as archive:
            if "imgs.npy" in archive.namelist():
                rows = _drawn(rng, n, COUNTS)
                masks = _read_rows(archive, "imgs.npy", rows, math.prod(COUNTS), ()).astype(bool)
                return _with_targets(over_photos(masks, rng), np.stack(np.unravel_index(rows, COUNTS), axis=1))
            if "images.npy" in archive.namelist():
                rows = _drawn(rng, n, MPI3D_COUNTS)
                images = _read_rows(archive, "images.npy", rows, math.prod(MPI3D_COUNTS), (3,))
                angles = np.stack(np.unravel_index(rows, MPI3D_COUNTS)[-2:], axis=1) / 39
                images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
                names = ("horizontal angle", "vertical angle")
                source = f"Images: {file.name}, MPI3D, Gondal et al., 2019"
                return Sprites(torch.from_numpy(images), torch.from_numpy(angles).float(), names, source)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # zipfile's for what is damaged, encrypted, or compressed in a way that it does not know
        raise SpriteFileError(f"{file}: {shown(str(error)) or 'damaged'}") from None
    raise SpriteFileError(f"{file} holds neither dSprites (imgs) nor MPI3D (images)")


def _drawn(rng: np.random.Generator, n: int, counts: tuple[int, ...]) -> Array:
    """Ascending numbers of ``n`` images."""
    total = math.prod(counts)
    if n > total:
        raise SpriteFileError(f"{n} images are to be drawn, but there are {total}")
    return np.sort(rng.choice(total, n, replace=False))


def _with_targets(images: Tensor, factors: Array) -> Sprites:
    values = (factors / (np.array(COUNTS) - 1))[:, _TARGETS]
    return Sprites(images, torch.from_numpy(values).float(), ("scale", "x", "y"), ATTRIBUTION)


def _read_photo(name: str) -> npt.NDArray[np.uint8]:
    folder = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/images")
    with Image.open(Path(str(folder)) / name) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _read_rows(archive: zipfile.ZipFile, name: str, rows: Array, total: int, colours: tuple[int, ...]) -> Array:
    """The given ascending rows of an array of ``total``, read in chunks: all of MPI3D takes 13 GB."""
    member = archive.getinfo(name)
    with archive.open(member) as stream:
        shape, fortran, dtype = _read_header(stream, name)
        sides = shape[1:3]
        square = len(sides) == 2 and sides[0] == sides[1] and 0 < sides[0] <= _MOST_PIXELS
        if fortran or dtype != np.uint8 or shape != (total, *sides, *colours) or not square:
            expected = " × ".join(map(str, (total, "side", "side", *colours)))
            raise ValueError(
                f"{name} is {dtype} {list(shape)}, expected {total} uint8 images, {expected}, of up to {_MOST_PIXELS} "
                "pixels a side"
            )
        length = math.prod(shape[1:])
        if member.file_size != stream.tell() + total * length:
            raise ValueError(f"{name} has {member.file_size} bytes, and not as many as its header says")
        check_memory(2 * len(rows) * length, f"{archive.filename}, {len(rows)} images")
        kept = []
        for first in range(0, int(rows[-1]) + 1, _CHUNK):
            count = min(_CHUNK, total - first)
            piece = np.frombuffer(stream.read(count * length), dtype).reshape(count, *shape[1:])
            kept.append(piece[rows[(rows >= first) & (rows < first + count)] - first])
    return np.concatenate(kept)


def _read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype of an npy file."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has a header of version {version[0]}.{version[1]}; numpy.savez writes 1.0")
    try:
        return readers[version](stream)
    except Exception:  # NumPy evaluates the header as Python's literals, which can fail in any way
        raise ValueError(f"{name} has a damaged header") from None


def _chunks(array: Array) -> list[Array]:
    return [array[first : first + _CHUNK] for first in range(0, len(array), _CHUNK)]
