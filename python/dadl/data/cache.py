"""What takes long to make, in files of the user's cache.

Decoded images need not fit into memory: only what is needed of their file is read.
"""

import errno
import fcntl
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from torch import Tensor

from ..errors import UserError
from ..files import remove_leftovers, replace_file

Kept = TypeVar("Kept")
Pixels = npt.NDArray[np.uint8]
Store = Callable[[int, Pixels], None]
"""Stores the pixels ``[C, H, W]`` of the image with that number; threads may call it concurrently."""
Decode = Callable[[Store], npt.NDArray[np.int64]]
"""Stores every image, and returns a digest of each."""


class CacheError(UserError):
    """The cache cannot be written."""


def kept_images(
    key: str, shape: tuple[int, ...], decode: Decode, on_found: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """The images ``[N, C, H, W]``, uint8, in the file named after ``key``, and their digests ``[N]``.

    If there is no such file, ``decode`` fills it; otherwise ``on_found`` is called. The images are the file itself,
    mapped read-only: they use only spare memory and must not be changed in place. :func:`_kept` says the rest.
    """
    what = f"{math.prod(shape) / 1e9:.1f} GB of decoded images"
    read = lambda file: _whole(file, shape)
    return _kept(f"images-{key}.npy", what, read, lambda file: _write(file, shape, decode), on_found)


def kept_features(
    key: str, count: int, compute: Callable[[], Tensor], on_found: Callable[[], None] = lambda: None
) -> Tensor:
    """The features of texts ``[count, F]``, float32, in the file named after ``key``.

    If there is no such file, it gets those that ``compute`` returns; otherwise ``on_found`` is called. :func:`_kept`
    says the rest.
    """

    def read(file: Path) -> Tensor | None:
        try:
            features = np.load(file)
        except (OSError, EOFError, ValueError):
            return None
        whole = features.ndim == 2 and len(features) == count and features.dtype == np.float32
        return torch.from_numpy(features) if whole else None

    def write(file: Path) -> None:
        features = compute().numpy()

        def save(temporary: Path) -> None:
            with temporary.open("wb") as stream:  # np.save would add .npy to the name
                np.save(stream, features)

        replace_file(file, save)

    return _kept(f"features-{key}.npy", f"the features of {count} texts", read, write, on_found)


def _kept(
    name: str,
    what: str,
    read: Callable[[Path], Kept | None],
    write: Callable[[Path], None],
    on_found: Callable[[], None],
) -> Kept:
    """What ``read`` finds in a file of the user's cache; if that is ``None``, ``write`` makes the file anew.

    If it was there, ``on_found`` is called. If several processes ask for the same file, one writes it and the others
    wait; if it dies, another one starts over. Raises a :class:`CacheError` if there is no space or no permission.
    """
    folder = platformdirs.user_cache_path("dadl")
    file = folder / name
    kept = read(file)
    found = kept is not None
    try:
        if kept is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file.with_suffix(".lock")
            with lock.open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed or the process ends
                kept = read(file)
                found = kept is not None
                if kept is None:
                    remove_leftovers(folder, name)
                    write(file)
                    kept = read(file)
                lock.unlink(missing_ok=True)  # a process that waits for it finds the file
            if kept is None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
    except OSError as error:
        raise CacheError(
            f"cannot keep {what} in {folder}: {error.strerror or error}; "
            "make room there, or set XDG_CACHE_HOME to a folder that has it"
        ) from None
    if found:
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
