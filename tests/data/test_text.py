"""Text files in every encoding that says what it is, and images that they name in their folder."""

import codecs
import os
from pathlib import Path

import pytest
from dadl.data.text import NamedImages, TextFileError, did_you_mean, not_text, open_text
from dadl.errors import ProblemsError, shown

TEXT = "größe.png 1\r\n雪 .png 0\n"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_as_it_is(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(TEXT.encode(encoding))
    with open_text(tmp_path / "list.txt") as file:
        assert file.read() == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_says_the_encoding_and_a_warning_tells(encoding: str, tmp_path: Path) -> None:
    mark = getattr(codecs, f"BOM_{encoding.replace('-', '_').replace('utf_', 'UTF').upper()}")
    file = tmp_path / "list.txt"
    file.write_bytes(mark + TEXT.encode(encoding))
    with pytest.warns(UserWarning, match=rf"list.txt: read as {encoding[:6].upper()}"), open_text(file) as lines:
        assert list(lines) == TEXT.splitlines(keepends=True)
    file.write_bytes((mark + TEXT.encode(encoding))[:-1])
    message = rf"list\.txt: begins as {encoding[:6].upper()} does, but is not; save it as UTF-8"
    with (
        pytest.warns(UserWarning, match="read as"),
        pytest.raises(TextFileError, match=message),
        open_text(file) as lines,
    ):
        lines.read()


def test_what_is_not_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    for encoding, reason in (("latin-1", "not UTF-8"), ("utf-16-le", "a zero byte")):
        file.write_bytes("größe".encode(encoding))
        with open_text(file) as lines:
            assert reason in (not_text(lines.read()) or "")
    assert not_text(TEXT) is None


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "pipe: not a file"), (".", "not a file"), ("none", "none: No such file")):
        with pytest.raises(TextFileError, match=message), open_text(tmp_path / name):
            pass


def test_shown_text_is_short_and_printable() -> None:
    assert shown("größe") == "größe"
    assert shown("a\x1b[31m\nb\udce9") == "a\\x1b[31m\\nb\\udce9"
    assert len(shown("x" * 5000)) < 200
    assert len(str(ProblemsError(["x" * 5000] * 21)).splitlines()) == 21
    assert len(str(ProblemsError(["x\n" * 5000]))) < 1000
    assert "5000 characters" in shown("x" * 5000)


def test_similar_words_are_suggested() -> None:
    words = ("train", "val", "test")
    suggestions = {
        "Train": "train",
        "training": "train",
        "TEST": "test",
        "valid": "val",
        "Validation": "val",
        "xyz": None,
        "": None,
    }
    for word, expected in suggestions.items():
        assert did_you_mean(word, words) == (f"; did you mean {expected}?" if expected else "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``data/sub/a.png`` and links to it, ``b.png`` outside and links to it."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.png").touch()
    (tmp_path / "other").mkdir()
    for place in ("b.png", "other/b.png", "data-b.png"):
        (tmp_path / place).touch()
    (tmp_path / "data" / "inner.png").symlink_to("sub/a.png")
    (tmp_path / "data" / "inner").symlink_to("sub")
    (tmp_path / "data" / "link.png").symlink_to("../b.png")
    (tmp_path / "data" / "link").symlink_to("../other")
    (tmp_path / "data" / "twice.png").symlink_to("link.png")
    return tmp_path / "data"


INSIDE = ["sub/a.png", "inner.png", "inner/a.png", "sub/../sub/a.png"]
OUTSIDE = ["../b.png", "link.png", "link/b.png", "twice.png", "../data-b.png", "sub/../../b.png", "inner/../../b.png"]


def test_a_folder_beside_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    for name in ("data", "data-of-others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    images = NamedImages(tmp_path / "data")
    assert images.find("a.png") == "a.png"
    with pytest.raises(ValueError, match="leads out of"):
        images.find("../data-of-others/a.png")


@pytest.mark.parametrize("relative", [False, True])
def test_images_stay_in_their_folder(folder: Path, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    images = NamedImages(Path("." if relative else folder))
    for path in (*INSIDE, str(folder / "sub" / "a.png")):
        assert images.find(path) == path
    for path in ("./sub/a.png", "sub//a.png", r".\sub\a.png", "sub/./a.png"):
        assert images.find(path) == "sub/a.png"  # an image has one name
    for path in (*OUTSIDE, str(folder.parent / "b.png")):
        with pytest.raises(ValueError, match=r"leads out of .*or allow it with --outside"):
            images.find(path)
        assert NamedImages(folder, outside=True).find(path) == path


def test_a_folder_that_is_a_link_is_the_folder(folder: Path) -> None:
    (folder.parent / "linked").symlink_to(folder)
    images = NamedImages(folder.parent / "linked")
    assert images.find("sub/a.png") == "sub/a.png"
    with pytest.raises(ValueError, match="leads out"):
        images.find("link.png")


def test_backslashes_separate_folders_unless_they_are_part_of_a_name(folder: Path) -> None:
    images = NamedImages(folder)
    assert images.find(r"sub\a.png") == "sub/a.png"
    with pytest.raises(ValueError, match="leads out"):
        images.find(r"..\b.png")
    (folder / r"sub\a.png").touch()
    assert images.find(r"sub\a.png") == r"sub\a.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sub/none.png", "no file .*sub/none.png$"),
        ("data/sub/a.png", "there is sub/a.png: paths are relative to"),
        ("sub/A.PNG", r"did you mean a\.png\?"),
        ("sub/a", r"did you mean a\.png\?"),
        ('"sub/a.png"', "no file"),
        ("sub/a.png,", r"did you mean a\.png\?"),
        ("sub", "no file .*sub$"),
        (".", "no file [^;]*$"),
        ("x" * 5000, r"no file .* \(\d+ characters\) .*x$"),
        ("a\0b", r"no file .*a\\x00b"),
    ],
)
def test_missing_images_are_named_with_what_may_be_meant(folder: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NamedImages(folder).find(path)
