"""idx files and CIFAR's pickles: what is read, and what is said of damaged ones."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dadl.data.idx_cifar import read_image_files


def write_idx(folder: Path, *, compressed: bool, train: int = 5, test: int = 3, labels: int | None = None) -> None:
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 4, 6), dtype=np.uint8)
        target = (np.arange(n if labels is None else labels) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", target)):
            data = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
            name = f"{part}-{kind}-ubyte" + (".gz" if compressed else "")
            (folder / name).write_bytes(gzip.compress(data) if compressed else data)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files(tmp_path: Path, compressed: bool) -> None:
    write_idx(tmp_path, compressed=compressed)
    data = read_image_files(tmp_path)
    expected = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    np.testing.assert_array_equal(data.train_images[:, 0].numpy(), expected)
    assert data.train_target.tolist() == [0, 1, 2, 0, 1]
    assert data.test_images.shape == (3, 1, 4, 6)
    assert data.test_target.dtype == torch.int64


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=False)
    file = tmp_path / "t10k-images-idx3-ubyte"
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", b"\0" + whole):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
            read_image_files(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: no such file"):
        read_image_files(tmp_path)
    write_idx(tmp_path, compressed=False, labels=4)
    with pytest.raises(ValueError, match="5 images, but 4 labels"):
        read_image_files(tmp_path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("hundred", [False, True])
def test_cifars_pickles(tmp_path: Path, hundred: bool, protocol: int) -> None:
    names = ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    rng = np.random.default_rng(1)
    batches = []
    for name in names:
        batch: dict[Any, Any] = {
            b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8),
            b"fine_labels" if hundred else b"labels": [7, 1],
        }
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        batches.append(batch[b"data"].reshape(2, 3, 32, 32))
    data = read_image_files(tmp_path)
    np.testing.assert_array_equal(data.train_images.numpy(), np.concatenate(batches[:-1]))
    np.testing.assert_array_equal(data.test_images.numpy(), batches[-1])
    assert data.test_target.tolist() == [7, 1]


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("called",)


def test_a_pickle_cannot_call_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Malicious()}))
    with pytest.raises(ValueError, match="print is not an array"):
        read_image_files(tmp_path)
    assert capsys.readouterr().out == ""


def test_another_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither idx files"):
        read_image_files(tmp_path)
