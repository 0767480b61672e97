"""Decoded images that need not fit into memory: a file in the user's cache, of which only what is asked for is read."""

import errno
import fcntl
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from torch import Tensor

from .errors import UserError

Pixels = npt.NDArray[np.uint8]
Store = Callable[[int, Pixels], None]
"""Keeps the pixels ``[C, H, W]`` of the image with that number; threads may call it at once."""


class ImageCacheError(UserError):
    """A cache that cannot be written."""


def kept_on_disk(
    key: str, shape: tuple[int, ...], decode: Callable[[Store], None], on_found: Callable[[], None] = lambda: None
) -> Tensor:
    """The images ``[N, C, H, W]``, uint8, of the file that is named after ``key``, which ``decode`` fills at first.

    The tensor is the file, mapped and read-only: it takes what memory there is to spare, and must not be changed in
    place. Of several processes that ask for the same images one decodes, and the others wait for it; if it dies,
    another one begins anew. ``on_found`` is called where ``decode`` is not. Raises an :class:`ImageCacheError` if there
    is no room or no permission.
    """
    folder = platformdirs.user_cache_path("dadl")
    file = folder / f"images-{key}.npy"
    images = _mapped(file, shape)
    try:
        if images is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file.with_suffix(".lock")
            with lock.open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed, or the process ends
                images = _mapped(file, shape)
                if images is None:
                    _write(file, shape, decode)
                lock.unlink(missing_ok=True)  # whoever waits for it finds the images
            if images is None:
                return _as_tensor(np.load(file, mmap_mode="r"))
    except OSError as error:
        raise ImageCacheError(
            f"cannot keep {math.prod(shape) / 1e9:.1f} GB of decoded images in {folder}: {error.strerror or error}; "
            "make room there, or set XDG_CACHE_HOME to a folder that has it"
        ) from None
    on_found()
    return images


def _mapped(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The file's images, or none where it is missing or damaged."""
    try:
        pixels = np.load(file, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    return _as_tensor(pixels) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _as_tensor(pixels: Pixels) -> Tensor:
    # Read-only, as a private mapping that can be written to is refused where it is larger than the memory.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(pixels)


def _write(file: Path, shape: tuple[int, ...], decode: Callable[[Store], None]) -> None:
    """Fill a temporary file and put it in its place; one that a killed process left is overwritten."""
    if shutil.disk_usage(file.parent).free < math.prod(shape):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now, and not after an hour
    temporary = file.with_suffix(".part")
    try:
        with temporary.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            start = stream.tell()

            def store(index: int, pixels: Pixels) -> None:
                # Not through a mapping, where a full disk is no error but a signal that kills.
                part = np.ascontiguousarray(pixels)
                if os.pwrite(stream.fileno(), part.data, start + index * part.nbytes) != part.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            decode(store)
            os.fsync(stream.fileno())  # else a power failure could leave zeros under the final name
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
