"""Small data folders."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

CLASSES = 3


def write_idx(folder: Path, part: str, images: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
    """The two idx files of ``train`` or ``t10k``."""
    for kind, array in (("images-idx3", images), ("labels-idx1", target)):
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())


def image_folder(folder: Path) -> Path:
    """Two classes of plain images, red and blue: 12 to train, of which 4 are labelled, and 4 to test."""
    image = pytest.importorskip("PIL.Image", reason="needs pip install 'dadl[train]'")
    folder.mkdir()
    rows = []
    for i in range(16):
        image.new("RGB", (40, 40), (200 + i, 0, 0) if i % 2 else (0, 0, 200 + i)).save(folder / f"{i}.png")
        rows.append(f"{i}.png {i % 2}\n")
    for name, part in (("train_100.txt", rows[:12]), ("train_30.txt", rows[:4]), ("test.txt", rows[12:])):
        (folder / name).write_text("".join(part))
    return folder


def grey_idx_folder(folder: Path) -> Path:
    """12 grey images of 12 × 16 pixels in two classes, and as many to test."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        target = (np.arange(12) % 2).astype(np.uint8)
        images = rng.integers(0, 256, (12, 12, 16), dtype=np.uint8)
        write_idx(folder, part, images, target)
    return folder


def class_images(target: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Images ``[n, 12, 12]`` of noisy class patterns, whose first pixel is the class."""
    patterns = np.random.default_rng(42).integers(60, 196, (CLASSES, 12, 12))
    images = patterns[target] + np.random.default_rng(seed).normal(0, 40, (len(target), 12, 12))
    images = images.clip(0, 255).astype(np.uint8)
    images[:, 0, 0] = target
    return images


def class_idx_folder(folder: Path) -> Path:
    """240 training and 60 test images of three classes."""
    folder.mkdir()
    for part, n, seed in (("train", 240, 0), ("t10k", 60, 1)):
        target = (np.arange(n) % CLASSES).astype(np.uint8)
        write_idx(folder, part, class_images(target, seed), target)
    return folder


def replace_quietly(file: Path, other: Path) -> None:
    """By an image of another content, but of the same size in bytes, and of the same time."""
    status = file.stat()
    content = other.read_bytes()
    assert len(content) == status.st_size
    assert content != file.read_bytes()
    while file.stat().st_ctime_ns == status.st_ctime_ns:  # clocks of file systems tick a few hundred times a second
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
