"""What tells data from those that a run began with, where their numbers are the same."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


def fingerprint(*values: Tensor | Iterable[object]) -> str:
    """A digest of tensors, bit for bit, and of plain values that ``repr`` tells apart, all of them in their order."""
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


def image_fingerprint(folder: Path, paths: Iterable[str], *values: Tensor | Iterable[object]) -> str:
    """A digest of image files and of what belongs to them.

    Of a file its path in the folder counts and its size. Both are the same where the data have been copied to, which
    its time is not; and its bytes are not read at every start, as decoded images are kept.
    """
    return fingerprint([(path, (folder / path).stat().st_size) for path in paths], *values)
