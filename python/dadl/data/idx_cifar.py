"""Small image data sets in their published files: idx (MNIST and similar) and CIFAR's pickles."""

import gzip
import io
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError


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
    and ``test_batch``, or ``train`` and ``test`` with fine labels. Raises an :class:`ImageFileError` for a folder with
    neither, and for damaged files, which it names.
    """
    train, test = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"), ("test_batch",)
    if _idx_path(folder, "train-images-idx3-ubyte") is not None:
        parts = [_read_idx(folder, f"{part}-{kind}") for part in ("train", "t10k") for kind in ("images", "labels")]
    elif all((folder / name).is_file() for name in (*train, *test)):
        parts = [*_read_cifar(folder, train, b"labels"), *_read_cifar(folder, test, b"labels")]
    elif all((folder / name).is_file() for name in ("train", "test")):
        parts = [*_read_cifar(folder, ("train",), b"fine_labels"), *_read_cifar(folder, ("test",), b"fine_labels")]
    else:
        raise ImageFileError(f"{folder} holds neither idx files (train-images-idx3-ubyte ...) nor CIFAR's pickles")
    for images, target in (parts[:2], parts[2:]):
        if len(images) != len(target):
            raise ImageFileError(f"{folder}: {len(images)} images, but {len(target)} labels")
    return LabelledImages(*parts)


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> Tensor:
    images = name.endswith("images")
    name += "-idx3-ubyte" if images else "-idx1-ubyte"
    path = _idx_path(folder, name)
    if path is None:
        raise ImageFileError(f"{folder / name}: no such file, nor one with .gz")
    dims = 3 if images else 1
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, *shape = struct.unpack_from(f">{1 + dims}I", data)
    except (OSError, EOFError, struct.error) as error:
        raise ImageFileError(f"{path}: {error}") from None
    header = 4 * (1 + dims)
    if kind != 0x0800 + dims or len(data) != header + math.prod(shape):
        raise ImageFileError(f"{path}: not an idx file of {'images' if images else 'labels'}, or cut short")
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
    return values.unsqueeze(1) if images else values.long()


def _read_cifar(folder: Path, names: tuple[str, ...], label_key: bytes) -> tuple[Tensor, Tensor]:
    batches = [_read_batch(folder / name, label_key) for name in names]
    images, target = (torch.from_numpy(np.concatenate(part)) for part in zip(*batches, strict=True))
    return images, target


def _read_batch(path: Path, label_key: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(batch[label_key], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageFileError(f"{path}: not a batch of CIFAR: {error}") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and nothing else, because a pickle can call anything."""

    def find_class(self, module: str, name: str) -> Any:
        makers: dict[tuple[str, str], Callable[..., Any]] = {
            ("multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],  # type: ignore[dict-item]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
        try:
            return makers[module.rpartition(".")[2], name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None
