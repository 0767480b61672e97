"""Files of every kind, changed at random: what they hold is read as a value that makes sense, or a sentence refuses it.

``DADL_MUTATIONS`` sets how many mutations of each file are tried, ``DADL_MUTATION_SEED`` which ones.
"""

import gzip
import io
import os
import pickle
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.arrays import sprites
from dadl.data.arrays.idx_cifar import read_image_files
from dadl.data.image_lists import Row, read_image_names, read_lists, read_noisy_lists, read_value_lists
from dadl.data.images import load_images
from dadl.data.regression import read_csv, read_unseen_csv
from dadl.errors import UserError
from PIL import Image
from support.folders import write_idx
from support.images import COLOUR, GREY, PALETTE, png

COUNT = int(os.environ.get("DADL_MUTATIONS", "40"))
SEED = int(os.environ.get("DADL_MUTATION_SEED", "0"))
SIZE = 8
RNG = np.random.default_rng(0)

TOKENS = [
    *(b"\0", b"\xff", b"\n", b"\r", b'"', b",", b";", b"\t", b" ", b"\\", b"/", b"../", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"0", b"1", b"-1", b"9" * 30, b"1" * 5000, b"nan", b"1e999", b"0x10", b"1_0", b"\xd9\xa1", b"sep=;\n", b"=1+1"),
    *(b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"x" * 300, b"(((((((((", b"\x1b[31m"),
]


def mutated(content: bytes, random_: random.Random) -> bytes:
    """One to four changes: bytes, tokens, parts left out, repeated or moved, the end cut off, another encoding."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        start = (
            random_.randrange(len(data) + 1) if random_.random() < 0.7 else random_.randrange(min(64, len(data) + 1))
        )
        end = min(len(data), start + random_.choice((1, 2, 4, 16, 200)))
        kind = random_.randrange(8)
        if kind <= 1 and start < len(data):
            data[start] = random_.choice((data[start] ^ 1 << random_.randrange(8), random_.randrange(256), 0, 255))
        elif kind == 2:
            data[start:start] = random_.choice(TOKENS)
        elif kind == 3:
            data[start:end] = random_.choice(TOKENS)
        elif kind == 4:
            del data[start:end]
        elif kind == 5:
            data[start:start] = data[start:end] * random_.choice((1, 2, 50))
        elif kind == 6 and random_.random() < 0.5:
            del data[start:]
        elif random_.random() < 0.2:
            text = data.decode("utf-8", errors="ignore")
            data = bytearray(text.encode(random_.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))))
    return bytes(data)


def check(file: Path, read: Callable[[], None], error: type[UserError] = UserError) -> None:
    """Read the mutations of a file; each is refused with short printable lines, or what ``read`` asserts holds."""
    content = file.read_bytes()
    read()  # as it is
    random_, accepted = random.Random(f"{SEED} {file.name}"), 0
    for number in range(COUNT):
        file.write_bytes(changed := mutated(content, random_))
        try:
            with warnings.catch_warnings(record=True):
                read()
        except error as refusal:
            lines = str(refusal).splitlines()
            assert lines, (number, changed)
            assert len(lines) <= 21, (number, changed)
            assert all(line.isprintable() and 0 < len(line) < 1500 for line in lines), (number, changed, lines)
        except BaseException as other:
            raise AssertionError(f"mutation {number} of {file.name}: {changed[:2000]!r}") from other
        else:
            accepted += 1
    file.write_bytes(content)
    assert 0 < accepted < COUNT or COUNT < 40, f"{accepted} of {COUNT}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    for i in range(6):
        Image.new("RGB", (SIZE, SIZE), (i, 0, 0)).save(tmp_path / "a b" / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["train.txt", "test.txt", "val.txt"])
def test_lists_of_classes(folder: Path, name: str) -> None:
    rows = [f"a b/{i}.png {i % 3}\n" for i in range(6)]
    for part in ("train.txt", "test.txt", "val.txt", "train_50.txt", "train_100.txt"):
        (folder / part).write_text("".join(rows))

    def read() -> None:
        for lists in (read_noisy_lists(folder), read_lists(folder, 50)):
            for row in (*lists.validation, *lists.test):
                assert 0 <= row.label < lists.num_classes <= 6
                assert (folder / row.path).is_file()
                assert (folder / row.path).resolve().is_relative_to(folder.resolve())

    check(folder / name, read)


def test_lists_of_values(folder: Path) -> None:
    for part in ("train_50.txt", "train_100.txt", "test.txt"):
        (folder / part).write_text("".join(f"a b/{i}.png 0.{i} 1\n" for i in range(6)))

    def read() -> None:
        lists = read_value_lists(folder, 50)
        for row in (*lists.labelled, *lists.unlabelled, *lists.test):
            assert len(row.label) == len(lists.labelled[0].label) > 0
            assert all(0 <= value <= 1 for value in row.label)

    check(folder / "train_100.txt", read)
    check(folder / "train_50.txt", read)


def test_names_of_images(folder: Path) -> None:
    (folder / "names.txt").write_text("".join(f"a b/{i}.png\n" for i in range(6)))
    check(folder / "names.txt", lambda: [None for row in read_image_names(folder / "names.txt")] and None)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_tables(folder: Path, delimiter: str) -> None:
    rows = ["age,size,town,split,photo"]
    for i in range(24):
        split = ("train", "train", "val", "test")[i // 6]
        rows.append(f'{i}.5,{i * i},"{"AB"[i % 2]}",{split},a b/{i % 6}.png')
    file = folder / "table.csv"
    file.write_text("\n".join(rows).replace(",", delimiter))

    def read() -> None:
        data = read_csv(file, "age", features=["size"], one_hot=["town"], split="split")
        pictures = read_csv(file, "age", image="photo", split="split")
        for part in (*data.splits.values(), *pictures.splits.values()):
            assert part.target.isfinite().all()
            assert part.features.isfinite().all()
            assert len(part.target) >= 2
        assert read_unseen_csv(file, features=["size"]).features.isfinite().all()

    check(file, read)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files(tmp_path: Path, compressed: bool) -> None:
    for part in ("train", "t10k"):
        images = RNG.integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)
        write_idx(tmp_path, part, images, np.array([0, 1, 0, 1], dtype=np.uint8))
    for file in list(tmp_path.iterdir()):
        if compressed:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()

    def read() -> None:
        data = read_image_files(tmp_path)
        assert data.train_images.shape == data.test_images.shape == (4, 1, SIZE, SIZE)
        assert data.train_target.shape == data.test_target.shape == (4,)

    for file in sorted(tmp_path.glob("train*")):
        check(file, read)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_cifar(tmp_path: Path, protocol: int) -> None:
    batch = {b"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), b"fine_labels": [0, 1], b"batch_label": b"x"}
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=protocol))

    def read() -> None:
        data = read_image_files(tmp_path)
        assert data.train_images.shape == (2, 3, 32, 32)
        assert data.train_target.shape == (2,)
        assert 0 <= int(data.train_target.min()) <= int(data.train_target.max()) < 100

    check(tmp_path / "train", read)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path: Path, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 3, 4))
    images = RNG.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
    save(tmp_path / "mpi3d.npz", images=images)

    def read() -> None:
        read = sprites.read_sprites(tmp_path, 24)
        assert np.array_equal(read.images.permute(0, 2, 3, 1), images)  # archives have checksums

    check(tmp_path / "mpi3d.npz", read)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


SAMPLES = RNG.integers(0, 256, (SIZE, SIZE, 3))
COLOURS = png(SAMPLES, COLOUR, 8, (b"tRNS", struct.pack(">3H", *SAMPLES[0, 0])))
PICTURES = {
    "grey.png": png(SAMPLES[..., :1] * 257, GREY, 16),
    "colour.png": COLOURS,
    "palette.png": png(SAMPLES[..., :1] & 3, PALETTE, 2, (b"PLTE", bytes(range(12))), (b"tRNS", b"\0\x80")),
    "a.jpg": encoded("JPEG"),
    "a.webp": encoded("WEBP"),
    "a.tif": encoded("TIFF"),
    "packed.tif": encoded("TIFF", compression="tiff_lzw"),
    "a.gif": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (SIZE, SIZE))]),
    "a.bmp": encoded("BMP"),
    "a.ppm": encoded("PPM"),
    "a.jp2": encoded("JPEG2000"),
}


@pytest.mark.filterwarnings("ignore:.*with several frames")
@pytest.mark.parametrize("name", PICTURES)
def test_images(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PICTURES[name])
    whole, _ = load_images(tmp_path, [Row("list.txt:1", name, None)], SIZE, lambda: None)

    def read() -> None:
        images, _ = load_images(tmp_path, [Row("list.txt:1", name, None)], SIZE, lambda: None)
        assert images[:].shape == (1, 3, SIZE, SIZE)
        if name.endswith(".png"):  # its checksums leave only what means nothing, such as text after the end
            assert images[:].equal(whole[:])

    check(tmp_path / name, read)
