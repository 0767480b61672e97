"""Decoded images on disk: the same pixels, decoded once, whole or not at all, and never all in memory."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data import images as images_module
from dadl.data.cache import CacheError, Store, kept_images
from dadl.data.image_lists import Row
from dadl.data.images import load_images
from dadl.data.pixels import read_pixels
from dadl.errors import ProblemsError
from PIL import Image
from support.folders import replace_quietly

SIZE = 16


def nothing() -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where images are kept, however few."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dadl.data.images.KEPT_IN_MEMORY", 0)
    return tmp_path / "cache" / "dadl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
    return tmp_path / "data"


def rows(count: int = 6) -> list[Row[None]]:
    return [Row(f"list.txt:{i + 1}", f"{i}.png", None) for i in range(count)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    files: list[Path] = []

    def count(path: Path, size: int, channels: int) -> tuple[npt.NDArray[np.uint8], bool]:
        files.append(path)
        return read_pixels(path, size, channels)

    monkeypatch.setattr("dadl.data.images.read_pixels", count)
    return files


def test_few_images_are_decoded_again_only_if_they_change(folder: Path, opened: list[Path]) -> None:
    whole, digests = load_images(folder, rows(), SIZE, nothing)
    counted: list[int] = []
    again, same = load_images(folder, rows()[::-1], SIZE, lambda: counted.append(1))
    assert len(opened) == len(counted) == 6
    assert torch.equal(again[:], whole[:].flip(0))
    assert torch.equal(same, digests.flip(0))
    for change in (lambda: load_images(folder, rows(3), SIZE, nothing), lambda: (folder / "0.png").touch()):
        opened.clear()
        change()
        again, _ = load_images(folder, rows(), SIZE, nothing)
        assert len(opened) >= 6
        assert torch.equal(again[:], whole[:])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
def test_images_on_disk_are_those_in_memory_and_decoded_once(
    folder: Path, cache: Path, channels: int, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dadl.data.images.KEPT_IN_MEMORY", 2**30)
        in_memory, digests = load_images(folder, rows(), SIZE, nothing, channels=channels)
        expected = in_memory[:]
    assert not cache.exists()
    opened.clear()
    for decoded in (6, 6, 6):
        loaded: list[int] = []
        images, kept = load_images(folder, rows(), SIZE, lambda loaded=loaded: loaded.append(1), channels=channels)
        assert torch.equal(images[:], expected)
        assert torch.equal(kept, digests)
        assert torch.equal(images[torch.tensor([4, 1, 1])], expected[[4, 1, 1]])
        assert len(loaded) == 6
        assert len(opened) == decoded
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


@pytest.mark.parametrize("change", ["file", "content", "time", "rows", "size", "order"])
def test_what_has_changed_is_decoded_anew(folder: Path, cache: Path, change: str, opened: list[Path]) -> None:
    for i in (2, 5):
        Image.new("RGB", (20, 24), (i, 0, 0)).save(folder / f"{i}.png", compress_level=0)  # as many bytes of each
    images, digests = load_images(folder, rows(), SIZE, nothing)
    before = images[:]
    opened.clear()
    wanted, size = rows(), SIZE
    if change == "file":
        shutil.copy(folder / "4.png", folder / "2.png")
    elif change == "content":
        replace_quietly(folder / "2.png", folder / "5.png")
    elif change == "time":
        os.utime(folder / "2.png", (0, 0))
    elif change == "rows":
        wanted = wanted[:5]
    elif change == "order":
        wanted = wanted[::-1]
    else:
        size += 1
    images, after = load_images(folder, wanted, size, nothing)
    assert len(opened) == (0 if change == "order" else len(wanted))
    if change != "size":
        others = {"file": [0, 1, 4, 3, 4, 5], "content": [0, 1, 5, 3, 4, 5], "rows": [0, 1, 2, 3, 4]}
        same = others.get(change, [5, 4, 3, 2, 1, 0] if change == "order" else [0, 1, 2, 3, 4, 5])
        assert torch.equal(images[:], before[same])
        assert torch.equal(after, digests[same])
    assert len(set(digests.tolist())) == 6
    assert len(list(cache.glob("*.npy"))) == (1 if change == "order" else 2)  # the earlier one is still there


def test_bad_images_are_all_named_and_nothing_is_kept(folder: Path, cache: Path) -> None:
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").unlink()
    (folder / "4.png").write_text("not an image")
    with pytest.raises(ProblemsError) as caught:
        load_images(folder, rows(), SIZE, nothing)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["list.txt:2", "list.txt:5"]
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    (folder / "1.png").write_bytes(whole)
    (folder / "4.png").write_bytes(whole)
    images, _ = load_images(folder, rows(), SIZE, nothing)
    assert torch.equal(images[1], images[4])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no array": lambda content: b"no array",
    "cut digests": lambda content: content[:-1],
    "no digests": lambda content: content[: content.rindex(b"\x93NUMPY")],
    "cut images": lambda content: content[: content.rindex(b"\x93NUMPY") - 1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_again(folder: Path, cache: Path, damage: str) -> None:
    images, digests = load_images(folder, rows(), SIZE, nothing)
    expected = images[:]
    (file,) = cache.glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    images, again = load_images(folder, rows(), SIZE, nothing)
    assert torch.equal(images[:], expected)
    assert torch.equal(again, digests)
    assert file.read_bytes() == whole


def in_children(*jobs: Callable[[], None]) -> list[int | None]:
    """Run each in a process of its own, all at once; how they ended."""
    children = [multiprocessing.get_context("fork").Process(target=job, daemon=True) for job in jobs]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


def test_of_a_reader_that_is_killed_half_way_nothing_is_used(folder: Path, cache: Path) -> None:
    shape = (6, 3, SIZE, SIZE)

    def decode_half(store: Store) -> NoReturn:
        store(5, np.full(shape[1:], 7, dtype=np.uint8))  # the file has its full length
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(lambda: kept_images("key", shape, decode_half) and None) == [-signal.SIGKILL]
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".part"]

    def decode(store: Store) -> npt.NDArray[np.int64]:
        for i in range(6):
            store(i, np.full(shape[1:], i, dtype=np.uint8))
        return np.arange(6)

    images, digests = kept_images("key", shape, decode)
    assert images[:, 2, 3, 4].tolist() == digests.tolist() == list(range(6))
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_of_several_processes_one_decodes(folder: Path, cache: Path, tmp_path: Path) -> None:
    expected = load_images(folder, rows(), SIZE, nothing)[0][:].numpy()
    shutil.rmtree(cache)
    names = tmp_path / "decoded"

    def job() -> None:
        def tell(path: Path, size: int, channels: int) -> tuple[npt.NDArray[np.uint8], bool]:
            with names.open("a") as file:
                file.write(f"{path.name}\n")
            return read_pixels(path, size, channels)

        images_module.read_pixels = tell
        images, _ = load_images(folder, rows(), SIZE, nothing)  # no torch, whose threads a fork does not have
        assert np.array_equal(images.tensor.numpy()[images.chosen.numpy()], expected)

    assert in_children(job, job, job) == [0, 0, 0]
    assert [file.suffix for file in cache.iterdir()] == [".npy"]
    assert sorted(names.read_text().split()) == [f"{i}.png" for i in range(6)]


def test_no_room_and_no_folder_are_errors_that_say_what_to_do(
    folder: Path, cache: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
        with pytest.raises(CacheError, match=r"in .*cache/dadl: No space left.*; make room there, or set X"):
            load_images(folder, rows(), SIZE, nothing)
    assert not opened
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 0)  # filled by somebody else meanwhile
        with pytest.raises(CacheError, match="No space left"):
            load_images(folder, rows(), SIZE, nothing)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(CacheError, match=r"cannot keep 0\.0 GB of decoded images"):
        load_images(folder, rows(), SIZE, nothing)


def peak() -> float:
    """MB, of this process alone."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))


def read_many(folder: Path) -> None:
    """What the test below runs in a process of its own: 302 MB of images, and one batch of them."""
    many = [row for _ in range(256) for row in rows()]
    load_images(folder, rows(), 256, nothing)  # with everything that is loaded at first
    before = peak()
    images, _ = load_images(folder, many, 256, nothing)
    assert images.tensor.nbytes > 300e6
    assert images[torch.randint(len(images), (16,))].float().div(255).isfinite().all()
    assert peak() - before < 100, f"{peak():.0f} MB, before it {before:.0f}"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_reading_takes_little_memory(folder: Path, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = f"import test_cache, pathlib; test_cache.read_many(pathlib.Path({str(folder)!r}))"
    job = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    shutil.rmtree(tmp_path / "cache")
    assert job.returncode == 0, job.stderr
