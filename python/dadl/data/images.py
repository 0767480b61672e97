"""Images from files, decoded once into memory or the user's cache. Every unreadable image is reported."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from ..errors import ProblemsError, shown
from .cache import Store, kept_images
from .fingerprint import fingerprint, pixel_digest
from .pixels import PixelsError, check_pixels, read_pixels
from .rows import ChosenRows
from .text import NamedImages

KEPT_IN_MEMORY = 64 * 2**20

DECODING = 2  # to be raised when read_pixels decodes files differently

_latest: dict[str, tuple[Tensor, Tensor]] = {}
"""The images, and their digests, that this process decoded last: a comparison trains on them again and again."""

AT_A_TIME = 10_000  # a million tasks in a pool would take a gigabyte


class ImageRow(Protocol):
    """Names an image: its path in the data folder, and the file and line that say so."""

    @property
    def where(self) -> str: ...

    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class _FoundImage:
    where: str
    path: str


def load_images(
    folder: Path, rows: Sequence[ImageRow], size: int, on_loaded: Callable[[], None], *, channels: int = 3
) -> tuple[ChosenRows, Tensor]:
    """Decode every image, see :func:`.read_pixels`: ``[N, channels, size, size]``, uint8, in 3 colours or 1 grey.

    Also returns the :func:`.pixel_digest` of each image, ``[N]``, int64.

    More than ``KEPT_IN_MEMORY`` bytes (``channels · N · size²``) are kept in a file of the user's cache, see
    :func:`.kept_images`; fewer stay in memory until others are loaded. They are decoded again only if a file changes,
    and must not be changed in place. ``on_loaded`` is called after each image. A warning tells of images with several
    frames, of which the first is used. Raises :class:`.ProblemsError` with all images that cannot be read.
    """
    shape = (len(rows), channels, size, size)
    # Sorted by path, so that one file serves every order that a seed or a percentage of labels leads to.
    order = sorted(range(len(rows)), key=lambda i: rows[i].path)
    positions = dict(zip(order, range(len(rows)), strict=True))
    chosen = torch.tensor([positions[i] for i in range(len(rows))])

    def decode(store: Store) -> npt.NDArray[np.int64]:
        digests = np.empty(len(rows), dtype=np.int64)
        animated: list[int] = []

        def load(index: int) -> str | None:
            try:
                pixels, frames_follow = read_pixels(folder / rows[index].path, size, channels)
            except PixelsError as error:
                return _unreadable(folder, rows[index], error)
            store(positions[index], pixels)
            # Of the pixels one after the other, as digests have always been taken.
            digests[positions[index]] = pixel_digest(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            if frames_follow:
                animated.append(index)
            return None

        if problems := _problems(len(rows), load, on_loaded):
            raise ProblemsError(problems)
        if animated:
            first = rows[min(animated)]
            warnings.warn(
                f"of {len(animated)} images with several frames the first frame is used, e.g. of {shown(first.path)} "
                f"({first.where})",
                stacklevel=2,
            )
        return digests

    def count_all() -> None:
        for _ in rows:
            on_loaded()

    key = _key(folder, [rows[i] for i in order], shape)
    if math.prod(shape) > KEPT_IN_MEMORY:
        images, digests = kept_images(key, shape, decode, count_all)
    elif key in _latest:
        images, digests = _latest[key]
        count_all()
    else:
        pixels = np.empty(shape, dtype=np.uint8)
        digests = torch.from_numpy(decode(pixels.__setitem__))
        images = torch.from_numpy(pixels)
        _latest.clear()
        _latest[key] = images, digests
    return ChosenRows(images, chosen), digests[chosen]


def _key(folder: Path, rows: Sequence[ImageRow], shape: tuple[int, ...]) -> str:
    """A digest of everything that the decoded images depend on, without reading the files."""
    whole = folder.resolve()

    def states() -> Iterator[tuple[str, int, int, int]]:
        for row in rows:
            file = whole / row.path
            with contextlib.suppress(OSError):  # decoding reports missing files
                status = file.stat()
                # Including the change time of the inode: the modification time can be set back.
                yield str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns

    return fingerprint([DECODING, PIL.__version__, shape], states())


def find_images(
    folder: Path, rows: Sequence[ImageRow], on_checked: Callable[[], None], *, outside: bool = False
) -> Sequence[ImageRow]:
    """The rows with the paths of their files, see :class:`.NamedImages`, as :func:`load_images` takes them.

    If an image is not there or, unless ``outside`` is set, not in the folder, raises :class:`.ProblemsError` with
    everything that :func:`image_problems` finds.
    """
    images = NamedImages(folder, outside=outside)
    try:
        return [_FoundImage(row.where, images.find(row.path)) for row in rows]
    except ValueError:
        raise ProblemsError(image_problems(folder, rows, on_checked, outside=outside)) from None


def image_problems(
    folder: Path, rows: Sequence[ImageRow], on_checked: Callable[[], None], *, outside: bool = False
) -> list[str]:
    """Decode every image and discard it: a line for each that is not there, not in the folder, or cannot be read.

    ``on_checked`` is called after each image.
    """
    images = NamedImages(folder, outside=outside)

    def check(index: int) -> str | None:
        row = rows[index]
        try:
            check_pixels(folder / images.find(row.path))
        except PixelsError as error:
            return _unreadable(folder, row, error)
        except ValueError as error:
            return f"{row.where}: {error}"
        return None

    return _problems(len(rows), check, on_checked)


def _problems(count: int, check: Callable[[int], str | None], on_checked: Callable[[], None]) -> list[str]:
    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, count, AT_A_TIME):
            for problem in pool.map(check, range(start, min(start + AT_A_TIME, count))):
                problems += [problem] if problem else []
                on_checked()
    return problems


def _unreadable(folder: Path, row: ImageRow, error: PixelsError) -> str:
    return f"{row.where}: cannot read {shown(str(folder / row.path))}: {error}"
