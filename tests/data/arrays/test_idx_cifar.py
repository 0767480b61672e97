"""idx files and CIFAR's pickles: what is read, and what is said of damaged ones."""

import gzip
import pickle
import pickletools
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dadl.data.arrays.idx_cifar import ImageFileError, read_image_files
from dadl.data.arrays.memory import TooLargeError


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


@pytest.mark.filterwarnings("ignore:.*no training image of class")
@pytest.mark.parametrize("protocol", range(6))
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


def idx(magic: int, *shape: int, content: bytes = b"") -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + content


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_of_nothing_and_of_other_kinds_are_refused(tmp_path: Path, compressed: bool) -> None:
    write_idx(tmp_path, compressed=compressed)
    for name, content, message in (
        ("train-images-idx3", idx(0x0803, 0, 28, 28), "no images: its header says 0 × 28 × 28"),
        ("train-images-idx3", idx(0x0803, 5, 0, 6), "no images: its header says 5 × 0 × 6"),
        ("train-images-idx3", idx(0x0D03, 5, 4, 6, content=bytes(480)), "not an idx file of images"),
        ("train-images-idx3", idx(0x0803, 5, 4, 5, content=bytes(120)), "not an idx file|training images of 4 × 5"),
        ("train-images-idx3", idx(0x0803, 5, 4, 7, content=bytes(120)), "not an idx file|training images of 4 × 7"),
        ("train-images-idx3", idx(0x0803, *[2**32 - 1] * 3, content=bytes(99)), "not an idx file of images"),
        ("t10k-images-idx3", idx(0x0803, 3, 6, 4, content=bytes(72)), "training images of 4 × 6 pixels, .*of 6 × 4"),
        ("t10k-labels-idx1", idx(0x0801, 0), "no labels: its header says 0"),
        ("t10k-labels-idx1", b"", "t10k-labels-idx1-ubyte"),
    ):
        file = tmp_path / (f"{name}-ubyte" + (".gz" if compressed else ""))
        whole = file.read_bytes()
        file.write_bytes(gzip.compress(content) if compressed else content)
        with pytest.raises(ImageFileError, match=message):
            read_image_files(tmp_path)
        file.write_bytes(whole)
    assert len(read_image_files(tmp_path).train_images) == 5


def test_damaged_gz_files_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        if place in range(4, 10):  # time and system, which mean nothing
            continue
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with pytest.raises(ImageFileError, match=r"train-images-idx3-ubyte|training images of"):
            read_image_files(tmp_path)


def test_what_a_gz_file_expands_to_is_read_only_as_far_as_its_header_says(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + bytes(2**28)))
    tracemalloc.start()
    with pytest.raises(ImageFileError, match="longer than its header says"):
        read_image_files(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_more_than_fits_into_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path, compressed=False)
    monkeypatch.setattr("dadl.data.arrays.memory.available_memory", lambda: 300)
    with pytest.raises(TooLargeError, match=r"0\.0 GB in memory, of which 0\.0 GB are free and half may be filled"):
        read_image_files(tmp_path)
    monkeypatch.setattr("dadl.data.arrays.memory.available_memory", lambda: 2 * (5 + 3) * (4 * 6 + 1))
    read_image_files(tmp_path)


def test_classes_without_training_images_are_told(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(0x0801, 5, content=bytes([1, 2, 1, 4, 2])))
    with pytest.warns(UserWarning, match="no training image of class 0, 3$"):
        read_image_files(tmp_path)


def cifar_100(folder: Path, batch: Any, protocol: int = 2) -> Path:
    """A folder of CIFAR-100 whose training batch is this value or pickle."""
    whole = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"fine_labels": [0, 1]}
    (folder / "test").write_bytes(pickle.dumps(whole))
    (folder / "train").write_bytes(batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol=protocol))
    return folder


DATA = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": DATA}, "not a dictionary with data and fine_labels"),
        ([DATA, [0, 1]], "not a dictionary"),
        ({b"data": DATA.astype(np.int64), b"fine_labels": [0, 1]}, "an array of i8; expected bytes"),
        ({b"data": DATA.astype(object), b"fine_labels": [0, 1]}, "an array of O8; expected bytes"),
        ({b"data": np.array([(1,)], dtype=[("a", "u1")]), b"fine_labels": [0]}, "an array of"),
        ({b"data": DATA[:, 1:], b"fine_labels": [0, 1]}, "not an array of rows of 3072 bytes"),
        ({b"data": DATA[0], b"fine_labels": [0, 1]}, "not an array of rows of 3072 bytes"),
        ({b"data": [[0] * 3072], b"fine_labels": [0]}, "not an array of rows of 3072 bytes"),
        ({b"data": DATA, b"fine_labels": [0]}, "2 images, but 1 labels"),
        ({b"data": DATA[:0], b"fine_labels": []}, "no images"),
        ({b"data": DATA, b"fine_labels": [0, 100]}, "not whole numbers from 0 to 99"),
        ({b"data": DATA, b"fine_labels": [0, -1]}, "not whole numbers"),
        ({b"data": DATA, b"fine_labels": [0, 10**12]}, "not whole numbers"),
        ({b"data": DATA, b"fine_labels": [0, True]}, "not whole numbers"),
        ({b"data": DATA, b"fine_labels": [0, 1.0]}, "not whole numbers"),
        ({b"data": DATA, b"fine_labels": np.array([0, 1])}, "an array of i8"),
        ({b"data": DATA, b"fine_labels": [0, 1], 5: None}, "a int where a str is expected"),
        ({b"data": DATA, b"fine_labels": [0, 1], ("a", "b"): None}, "a tuple where a str is expected"),
        ({b"data": DATA, b"fine_labels": [0, 1], b"x": {1}}, "set is not an array|EMPTY_SET makes something other"),
        ({b"data": DATA, b"fine_labels": [0, 1], b"x": 1j}, "complex is not an array"),
    ],
)
def test_batches_of_something_else_are_refused(tmp_path: Path, batch: Any, message: str, protocol: int) -> None:
    with pytest.raises(ImageFileError, match=rf"train: .*{message}"):
        read_image_files(cifar_100(tmp_path, batch, protocol))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_in_either_order_and_labels_as_bytes(tmp_path: Path, order: Any, protocol: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    batch = {
        "data": np.array(images, order=order),
        "fine_labels": np.array([1, 0], dtype=np.uint8),
        "rest": (None, 1.5),
    }
    data = read_image_files(cifar_100(tmp_path, batch, protocol))
    np.testing.assert_array_equal(data.train_images, images.reshape(2, 3, 32, 32))
    assert data.train_target.tolist() == [1, 0]


STATE = b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"  # of a dtype


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x04.",
        b"(" * 100_000 + b".",
        b"I1\n" * 100_000 + b"b.",
        # A tuple as a key, so deep that hashing it would end the process.
        pytest.param(b"\x80\x02" + b")" + b"\x85" * 1_000_000 + b"}q\x00h\x00K\x01s.", marks=pytest.mark.slow),
        b"\x80\x02}r\xff\xff\xff\x7f.",  # of a memory of 2**31 places
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # 2**62 bytes
        b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"x.",  # a number of 2 GB
        b"L" + b"9" * 10_000 + b"L\n.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR" + STATE + b".",
        b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb.",
        b"cnumpy\ndtype\n(cnumpy\nndarray\ntR.",
        b"cnumpy\nndarray\n((I1\ntS'u1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"c_codecs\nencode\n(S'x'\nS'hex'\ntR.",
        b"Pid\n.",
        b"\x82\x01.",
    ],
)
def test_pickles_made_to_harm_are_refused(tmp_path: Path, content: bytes) -> None:
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(ImageFileError, match="train: not a batch of CIFAR: "):
        read_image_files(cifar_100(tmp_path, content))
    assert tracemalloc.get_traced_memory()[1] < 2**29
    tracemalloc.stop()
    assert time.process_time() - started < 20


def test_a_dtype_of_objects_in_an_array_of_bytes_is_refused(tmp_path: Path) -> None:
    """NumPy's own dtype would take any bytes for addresses of objects."""
    whole = pickle.dumps({b"data": DATA, b"fine_labels": [0, 1]}, protocol=0)
    assert any(opcode.name == "REDUCE" for opcode, _, _ in pickletools.genops(whole))
    assert whole.count(b"Vu1\n") == 1
    with pytest.raises(ImageFileError, match="an array of O8; expected bytes"):
        read_image_files(cifar_100(tmp_path, whole.replace(b"Vu1\n", b"VO8\n")))
