"""Digests that show that a run's data have changed."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import Tensor


def fingerprint(*values: Tensor | Iterable[object]) -> str:
    """A digest of tensors, bit for bit, and of plain values by their ``repr``, in the given order."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.contiguous().numpy().data)
        else:
            for item in value:
                digest.update(f"{item!a}\n".encode())
            digest.update(b"\n")
    return digest.hexdigest()[:16]


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> int:
    """64 bits that distinguish images of one shape.

    BLAKE2b is fast without special instructions: it takes little time compared with decoding, in the same threads.
    """
    return int.from_bytes(hashlib.blake2b(pixels.data, digest_size=8).digest(), "little", signed=True)


def image_fingerprint(paths: Iterable[str], digests: Tensor, *values: Tensor | Iterable[object]) -> str:
    """A digest of images, by their paths in the data folder and their :func:`pixel_digest`, and of further values.

    Copying the data or touching the files does not change it.
    """
    return fingerprint(zip(paths, digests.tolist(), strict=True), *values)
