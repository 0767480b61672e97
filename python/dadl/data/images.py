"""Images from files, decoded once into memory or the user's cache. Every unreadable image is reported."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ProblemsError
from .fingerprint import fingerprint, pixel_digest
from .image_cache import Store, kept_on_disk
from .rows import ChosenRows

DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

KEPT_IN_MEMORY = 64 * 2**20

DECODING = 1  # to be raised when load_images decodes files differently

AT_A_TIME = 10_000  # a million tasks in a pool would take a gigabyte


class ImageRow(Protocol):
    """Names an image: its path in the data folder, and the file and line that say so."""

    @property
    def where(self) -> str: ...

    @property
    def path(self) -> str: ...


def load_images(
    folder: Path, rows: Sequence[ImageRow], size: int, on_loaded: Callable[[], None], *, channels: int = 3
) -> tuple[ChosenRows, Tensor]:
    """Decode every image and resize it to a square: ``[N, channels, size, size]``, uint8, in 3 colours or 1 grey.

    Also returns the :func:`.pixel_digest` of each image, ``[N]``, int64.

    More than ``KEPT_IN_MEMORY`` bytes (``channels · N · size²``) are kept in a file of the user's cache, see
    :func:`.kept_on_disk`, and decoded again only if a file changes; the tensor is then read-only. ``on_loaded`` is
    called after each image. Raises :class:`.ProblemsError` with all images that cannot be read.
    """
    shape = (len(rows), channels, size, size)
    # Sorted by path, so that one file serves every order that a seed or a percentage of labels leads to.
    order = sorted(range(len(rows)), key=lambda i: rows[i].path)
    positions = dict(zip(order, range(len(rows)), strict=True))
    chosen = torch.tensor([positions[i] for i in range(len(rows))])
    mode = "RGB" if channels == 3 else "L"

    def decode(store: Store) -> npt.NDArray[np.int64]:
        digests = np.empty(len(rows), dtype=np.int64)

        def load(index: int) -> str | None:
            try:
                with Image.open(folder / rows[index].path) as image:
                    pixels = np.array(image.convert(mode).resize((size, size), Image.Resampling.BILINEAR))
            except DECODING_ERRORS as error:
                return _unreadable(folder, rows[index], error)
            store(positions[index], pixels.reshape(size, size, channels).transpose(2, 0, 1))
            digests[positions[index]] = pixel_digest(pixels)
            return None

        if problems := _problems(len(rows), load, on_loaded):
            raise ProblemsError(problems)
        return digests

    def count_all() -> None:
        for _ in rows:
            on_loaded()

    if math.prod(shape) > KEPT_IN_MEMORY:
        key = _key(folder, [rows[i] for i in order], shape)
        images, digests = kept_on_disk(key, shape, decode, count_all)
    else:
        pixels = np.empty(shape, dtype=np.uint8)
        digests = torch.from_numpy(decode(pixels.__setitem__))
        images = torch.from_numpy(pixels)
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


def image_problems(folder: Path, rows: Sequence[ImageRow], on_checked: Callable[[], None]) -> list[str]:
    """Decode every image and discard it: a line for each that is missing or cannot be read.

    ``on_checked`` is called after each image.
    """

    def check(index: int) -> str | None:
        path = folder / rows[index].path
        if not path.is_file():
            return f"{rows[index].where}: no file {path}"
        try:
            with Image.open(path) as image:
                image.draft("RGB", (1, 1))  # a JPEG is still read to its end, but most pixels are not computed
                image.load()
        except DECODING_ERRORS as error:
            return _unreadable(folder, rows[index], error)
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


def _unreadable(folder: Path, row: ImageRow, error: Exception) -> str:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"{row.where}: cannot read {folder / row.path}: {reason}"
