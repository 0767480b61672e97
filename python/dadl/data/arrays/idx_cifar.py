"""Small image data sets in their published files: idx (MNIST and similar) and CIFAR's pickles."""

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import UserError, shown
from .memory import check_memory
from .pickles import ByteArray, read_pickle

MOST_EXPANSION = 1032
"""Deflate never makes more bytes of one."""

PARTS, KINDS = ("train", "t10k"), (("images", 3), ("labels", 1))
CIFAR_PIXELS = 3 * 32 * 32


class ImageFileError(UserError, ValueError):
    """A problem with the files of a data set."""


@dataclass(frozen=True)
class LabelledImages:
    """Training and test images ``[N, C, H, W]``, uint8, and their classes ``[N]``, int64."""

    train_images: Tensor
    train_target: Tensor
    test_images: Tensor
    test_target: Tensor


def read_image_files(folder: Path) -> LabelledImages:
    """Read the data set in ``folder``, of either kind.

    idx: ``train-images-idx3-ubyte`` and the other three files, plain or with ``.gz``. CIFAR: ``data_batch_1`` ... ``5``
    and ``test_batch``, or ``train`` and ``test`` with fine labels. A warning tells of classes without a training image,
    below the largest one. Raises an :class:`ImageFileError` for a folder with neither, and for files that are damaged,
    empty, or do not belong together, which it names; and a :class:`.TooLargeError` for what does not fit into memory.
    """
    train, test = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"), ("test_batch",)
    if _idx_path(folder, "train-images-idx3-ubyte") is not None:
        files = _read_idx(folder)
    elif all((folder / name).is_file() for name in (*train, *test)):
        files = LabelledImages(*_read_cifar(folder, train, "labels", 10), *_read_cifar(folder, test, "labels", 10))
    elif all((folder / name).is_file() for name in ("train", "test")):
        key = "fine_labels"
        files = LabelledImages(*_read_cifar(folder, ("train",), key, 100), *_read_cifar(folder, ("test",), key, 100))
    else:
        raise ImageFileError(f"{folder} holds neither idx files (train-images-idx3-ubyte ...) nor CIFAR's pickles")
    unused = sorted(set(range(int(files.train_target.max()))) - set(files.train_target.tolist()))
    if unused:
        warnings.warn(f"{folder}: no training image of class {', '.join(map(str, unused))}", stacklevel=2)
    return files


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@dataclass(frozen=True)
class _IdxFile:
    """A file whose header has been read."""

    path: Path
    shape: tuple[int, ...]

    @classmethod
    def opened(cls, folder: Path, part: str, kind: str, dims: int) -> "_IdxFile":
        path = _idx_path(folder, f"{part}-{kind}-idx{dims}-ubyte")
        if path is None:
            raise ImageFileError(f"{folder / part}-{kind}-idx{dims}-ubyte: no such file, nor one with .gz")
        header = 4 * (1 + dims)
        magic, *shape = struct.unpack(f">{1 + dims}I", _read(path, 0, header))
        length = header + math.prod(shape)
        size = path.stat().st_size
        too_short = length > size * MOST_EXPANSION if path.suffix == ".gz" else length != size
        if magic != 0x0800 + dims or too_short:
            raise ImageFileError(f"{path}: not an idx file of {kind}, or cut short")
        if 0 in shape:
            raise ImageFileError(f"{path}: no {kind}: its header says {' × '.join(map(str, shape))}")
        return cls(path, tuple(shape))

    def read(self) -> Tensor:
        data = _read(self.path, 4 * (1 + len(self.shape)), math.prod(self.shape), last=True)
        return torch.frombuffer(data, dtype=torch.uint8).view(self.shape)


def _read(path: Path, start: int, length: int, *, last: bool = False) -> bytearray:
    """Exactly that part of a file, or of what its gz file holds."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            stream.read(start)
            data = bytearray(length)
            view, filled = memoryview(data), 0
            while filled < length and (count := stream.readinto(view[filled:])):
                filled += count
            if filled < length or (last and stream.read(1)):
                raise ImageFileError(f"{path}: {'longer than its header says' if filled == length else 'cut short'}")
            return data
    except (OSError, EOFError, zlib.error) as error:
        raise ImageFileError(f"{path}: {error}") from None


def _read_idx(folder: Path) -> LabelledImages:
    opened = {part: [_IdxFile.opened(folder, part, *kind) for kind in KINDS] for part in PARTS}
    check_memory(sum(math.prod(file.shape) for files in opened.values() for file in files), folder)
    for images, labels in opened.values():
        _check_lengths(images.path, images.shape[0], labels.shape[0])
        if images.shape[1:] != opened["train"][0].shape[1:]:
            shapes = (" × ".join(map(str, files[0].shape[1:])) for files in opened.values())
            raise ImageFileError(f"{folder}: training images of {' pixels, but test images of '.join(shapes)}")
    parts = [file.read() for files in opened.values() for file in files]
    return LabelledImages(parts[0].unsqueeze(1), parts[1].long(), parts[2].unsqueeze(1), parts[3].long())


def _check_lengths(path: Path, images: int, labels: int) -> None:
    if images != labels:
        raise ImageFileError(f"{path}: {images} images, but {labels} labels")


def _read_cifar(folder: Path, names: Sequence[str], label_key: str, classes: int) -> tuple[Tensor, Tensor]:
    check_memory(sum(2 * (folder / name).stat().st_size for name in names), folder)
    batches = [_read_batch(folder / name, label_key, classes) for name in names]
    images, target = (torch.from_numpy(np.concatenate(part)) for part in zip(*batches, strict=True))
    return images, target


def _read_batch(path: Path, label_key: str, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        batch = read_pickle(path.read_bytes())
        if not isinstance(batch, dict) or not {"data", label_key} <= batch.keys():
            raise ValueError(f"not a dictionary with data and {label_key}")
        data, labels = batch["data"], batch[label_key]
        labels = labels.value.tolist() if isinstance(labels, ByteArray) else labels
        if not isinstance(data, ByteArray) or data.value.ndim != 2 or data.value.shape[1] != CIFAR_PIXELS:
            raise ValueError(f"data are not an array of rows of {CIFAR_PIXELS} bytes")
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
            raise ValueError(f"{label_key} are not whole numbers from 0 to {classes - 1}")
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path}: not a batch of CIFAR: {shown(str(error))}") from None
    if not labels:
        raise ImageFileError(f"{path}: no images")
    _check_lengths(path, len(data.value), len(labels))
    return data.value.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
