"""Decoded images that need not fit into memory: a file in the user's cache, of which only what is needed is read."""

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

from ..errors import UserError
from ..files import remove_leftovers, replace_file

Pixels = npt.NDArray[np.uint8]
Store = Callable[[int, Pixels], None]
"""Stores the pixels ``[C, H, W]`` of the image with that number; threads may call it concurrently."""
Decode = Callable[[Store], npt.NDArray[np.int64]]
"""Stores every image, and returns a digest of each."""


class ImageCacheError(UserError):
    """The cache cannot be written."""


def kept_on_disk(
    key: str, shape: tuple[int, ...], decode: Decode, on_found: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """The images ``[N, C, H, W]``, uint8, in the file named after ``key``, and their digests ``[N]``.

    If there is no such file, ``decode`` fills it; otherwise ``on_found`` is called. The images are the file itself,
    mapped read-only: they use only spare memory and must not be changed in place. If several processes ask for the same
    images, one decodes and the others wait; if it dies, another one starts over. Raises an :class:`ImageCacheError` if
    there is no space or no permission.
    """
    folder = platformdirs.user_cache_path("dadl")
    file = folder / f"images-{key}.npy"
    kept = _whole(file, shape)
    try:
        if kept is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file.with_suffix(".lock")
            with lock.open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed or the process ends
                kept = _whole(file, shape)
                if kept is None:
                    remove_leftovers(folder, file.name)
                    _write(file, shape, decode)
                lock.unlink(missing_ok=True)  # a process that waits for it finds the images
            if kept is None:
                return _read(file)
    except OSError as error:
        raise ImageCacheError(
            f"cannot keep {math.prod(shape) / 1e9:.1f} GB of decoded images in {folder}: {error.strerror or error}; "
            "make room there, or set XDG_CACHE_HOME to a folder that has it"
        ) from None
    on_found()
    return kept


def _whole(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """The contents of the file, or ``None`` if it is missing or damaged."""
    try:
        images, digests = _read(file)
    except (OSError, EOFError, ValueError):
        return None
    return (images, digests) if images.shape == shape and images.dtype == torch.uint8 else None


def _read(file: Path) -> tuple[Tensor, Tensor]:
    # Read-only: a writable private mapping larger than the memory is refused.
    pixels = np.load(file, mmap_mode="r")
    with file.open("rb") as stream:
        stream.seek(pixels.offset + pixels.nbytes)
        digests = np.load(stream)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(pixels), torch.from_numpy(digests)


def _write(file: Path, shape: tuple[int, ...], decode: Decode) -> None:
    if shutil.disk_usage(file.parent).free < math.prod(shape):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now, and not after an hour

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            start = stream.tell()

            def store(index: int, pixels: Pixels) -> None:
                # Not through a mapping: there a full disk kills the process with a signal instead of an error.
                part = np.ascontiguousarray(pixels)
                if os.pwrite(stream.fileno(), part.data, start + index * part.nbytes) != part.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            digests = decode(store)
            stream.seek(start + math.prod(shape))
            np.save(stream, digests)  # after the images, where they are read without touching these

    replace_file(file, write)
