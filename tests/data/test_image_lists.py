"""Image lists: what they mean, and one error that names every bad row."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl.data.image_lists import (
    ClassLists,
    NoisyLists,
    Row,
    read_image_names,
    read_lists,
    read_noisy_lists,
    read_value_lists,
)
from dadl.data.images import image_problems, load_images
from dadl.data.pixels import FORMATS
from dadl.errors import ProblemsError
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training images of two classes, two of them labelled at 30 %, and two test images."""
    (tmp_path / "a b").mkdir()
    for i in range(8):
        colour = (200, 0, 0) if i % 2 else (0, 0, 200)
        Image.new("RGB", (20 + i, 10), colour).save(tmp_path / "a b" / f"{i}.png")
    rows = [f"a b/{i}.png {i % 2}" for i in range(8)]
    (tmp_path / "train_100.txt").write_text("\n".join(rows[:6]) + "\n")
    (tmp_path / "train_30.txt").write_text(f"{rows[0]}\n\n{rows[3]}  \n")
    (tmp_path / "test.txt").write_text("\n".join(rows[6:]))
    return tmp_path


def paths(rows: list[Row]) -> list[str]:
    return [row.path for row in rows]


def test_unlabelled_is_the_full_list_less_the_labelled_one(folder: Path) -> None:
    lists = read_lists(folder, 30)
    assert [(row.path, row.label) for row in lists.labelled] == [("a b/0.png", 0), ("a b/3.png", 1)]
    assert paths(lists.unlabelled) == ["a b/1.png", "a b/2.png", "a b/4.png", "a b/5.png"]
    assert paths(lists.test) == ["a b/6.png", "a b/7.png"]
    assert lists.num_classes == 2


def test_with_all_labels_nothing_is_unlabelled(folder: Path) -> None:
    lists = read_lists(folder, 100)
    assert len(lists.labelled) == 6
    assert lists.unlabelled == []


def test_images_are_colours_of_one_size_in_order(folder: Path) -> None:
    loaded: list[int] = []
    images = load_images(folder, read_lists(folder, 100).labelled, 16, lambda: loaded.append(1))[0][:]
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert len(loaded) == 6
    for i, image in enumerate(images):
        expected = (200, 0, 0) if i % 2 else (0, 0, 200)
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.broadcast_to(expected, (16, 16, 3)))


def test_every_bad_row_is_named_at_once(folder: Path) -> None:
    (folder / "train_30.txt").write_text(
        "a b/0.png 0\na b/missing.png 1\na b/1.png one\na b/2.png -1\nalone\na b/0.png 0\na b/3.png 0\n"
    )
    (folder / "test.txt").write_text("a b/6.png 5\n")
    with pytest.raises(ProblemsError) as caught:
        read_lists(folder, 30)
    problems = str(caught.value).splitlines()
    assert len(problems) == 7
    for problem, parts in zip(
        problems,
        [
            ("train_30.txt:2", "no file", "missing.png"),
            ("train_30.txt:3", "'one'", "a b/1.png"),
            ("train_30.txt:4", "'-1'", "a b/2.png"),
            ("train_30.txt:5", "'alone'", "relative/path label"),
            ("train_30.txt:6", "again", "train_30.txt:1"),
            ("train_30.txt:7", "label 0", "train_100.txt labels 1"),
            ("test.txt:1", "label 5", "without a row"),
        ],
        strict=True,
    ):
        assert all(part in problem for part in parts), problem


def test_a_class_with_one_training_sample_is_named(folder: Path) -> None:
    rows = (folder / "train_100.txt").read_text().splitlines()
    rows[4:] = ["a b/4.png 3", "a b/5.png 2"]
    (folder / "train_100.txt").write_text("\n".join(rows))
    with pytest.raises(ProblemsError) as error:
        read_lists(folder, 30)
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        "train_100.txt:5: a b/4.png is the only training sample of class 3",
        "train_100.txt:6: a b/5.png is the only training sample of class 2",
    ]
    (folder / "train.txt").write_text("\n".join(rows))
    with pytest.raises(ProblemsError, match=r"train\.txt:5: a b/4\.png is the only training sample of class 3"):
        read_noisy_lists(folder)


def noisy(folder: Path) -> NoisyLists:
    (folder / "train_100.txt").rename(folder / "train.txt")
    return read_noisy_lists(folder)


@pytest.mark.parametrize("read", [lambda folder: read_lists(folder, 30), noisy], ids=["few", "noisy"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blue sky\n red\n\n", ("blue sky", "red")),
        ("blue\n", ["classes.txt: 1 names of 2 classes; name each in a line, from class 0 on"]),
        ("blue\nred\ngreen", ["classes.txt: 3 names of 2 classes; name each in a line, from class 0 on"]),
        ("\nred", ["classes.txt:1: an empty line, where the name of a class is expected"]),
        ("red\nred", ["classes.txt:2: red again, first in line 1"]),
        ("red\nbl\0ue", ["classes.txt:2: a zero byte; save the file as UTF-8, or as UTF-16 with a byte order mark"]),
    ],
)
def test_a_file_names_the_classes(
    folder: Path, read: Callable[[Path], ClassLists | NoisyLists], text: str, expected: tuple[str, ...] | list[str]
) -> None:
    (folder / "classes.txt").write_text(text)
    if isinstance(expected, tuple):
        assert read(folder).names == expected
        return
    with pytest.raises(ProblemsError) as caught:
        read(folder)
    assert [problem.removeprefix(f"{folder}/") for problem in caught.value.problems] == expected


def test_missing_and_empty_lists_are_named(folder: Path) -> None:
    (folder / "test.txt").write_text("\n \n")
    (folder / "train_100.txt").unlink()
    with pytest.raises(ProblemsError) as caught:
        read_lists(folder, 15)
    text = str(caught.value)
    assert "train_15.txt: no such file" in text
    assert "train_100.txt: no such file" in text
    assert "test.txt: the list is empty" in text


def test_unreadable_images_are_named(folder: Path) -> None:
    whole = (folder / "a b" / "1.png").read_bytes()
    (folder / "a b" / "1.png").write_text("not an image")
    (folder / "a b" / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProblemsError) as caught:
        load_images(folder, read_lists(folder, 100).labelled, 16, lambda: None)
    problems = str(caught.value).splitlines()
    assert len(problems) == 2
    assert "train_100.txt:2" in problems[0]
    assert "not an image" in problems[0]
    assert "train_100.txt:5" in problems[1]


def test_images_are_checked_without_being_kept(folder: Path) -> None:
    rows = read_lists(folder, 100).labelled
    (folder / "a b" / "1.png").write_text("not an image")
    (folder / "a b" / "4.png").unlink()
    checked: list[int] = []
    problems = image_problems(folder, rows, lambda: checked.append(1))
    assert problems == [
        f"train_100.txt:2: cannot read {folder}/a b/1.png: not an image, or damaged; images are {', '.join(FORMATS)}",
        f"train_100.txt:5: no file {folder}/a b/4.png",
    ]
    assert len(checked) == len(rows)


def with_values(folder: Path) -> Path:
    """The same images, with three values each."""
    rows = [f"a b/{i}.png {i / 10} 1 0.25" for i in range(8)]
    (folder / "train_100.txt").write_text("\n".join(rows[:6]) + "\n")
    (folder / "train_30.txt").write_text(f"{rows[0]}\n\n{rows[3]}  \n")
    (folder / "test.txt").write_text("\n".join(rows[6:]))
    return folder


def test_values_are_the_numbers_at_the_end_of_a_row(folder: Path) -> None:
    lists = read_value_lists(with_values(folder), 30)
    assert [(row.path, row.label) for row in lists.labelled] == [
        ("a b/0.png", (0.0, 1.0, 0.25)),
        ("a b/3.png", (0.3, 1.0, 0.25)),
    ]
    assert paths(lists.unlabelled) == ["a b/1.png", "a b/2.png", "a b/4.png", "a b/5.png"]
    chosen = read_value_lists(folder, 30, columns=(2, 0))
    assert [row.label for row in chosen.test] == [(0.25, 0.6), (0.25, 0.7)]


def test_every_bad_row_of_values_is_named_at_once(folder: Path) -> None:
    with_values(folder)
    (folder / "train_30.txt").write_text(
        "a b/0.png 0 1 0.25\na b/1.png 0.1 1\na b/2.png 0.2 1 1.25\na b/3.png nan 1 0\na b/missing.png 0 0 0\n"
        "a b/4.png\n0.5 0.5 0.5\na b/0.png 0 1 0.25\na b/5.png 0.4 1 0.25\n"
    )
    with pytest.raises(ProblemsError) as caught:
        read_value_lists(folder, 30, columns=(0, 3))
    problems = sorted(str(caught.value).splitlines())
    assert len(problems) == 10
    for number, parts in {
        2: ("2 values of a b/1.png", "3 in train_30.txt:1"),
        3: ("value 1.25 of a b/2.png", "not in [0, 1]"),
        4: ("value nan of a b/3.png", "not in [0, 1]"),
        5: ("no file", "missing.png"),
        6: ("expected 'relative/path value value ...'",),
        7: ("expected 'relative/path value value ...'",),
        8: ("again", "train_30.txt:1"),
        9: ("label (0.4, 1.0, 0.25)", "train_100.txt labels (0.5, 1.0, 0.25)"),
    }.items():
        found = " ".join(problem for problem in problems if problem.startswith(f"train_30.txt:{number}:"))
        assert all(part in found for part in parts), (number, found)
    assert any("there is no column 3" in problem for problem in problems)


def test_a_recipe_has_the_images_of_each_list(folder: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    from dadl.output import JobProgress
    from dadl.self_tuning.recipe import SelfTuningRecipe
    from rich.console import Console

    for i in range(8):
        Image.new("L", (8, 8), i).save(folder / "a b" / f"{i}.png")
    (folder / "val.txt").write_text("a b/5.png 1\na b/2.png 0\na b/7.png 1\n")
    task = SelfTuningRecipe(data=folder, labels=30, image_size=32).read(JobProgress(Console(quiet=True)))
    assert task.validation is not None
    for part, greys in ((task.validation, [5, 2, 7]), (task.test, [6, 7])):
        assert part.names == [f"a b/{grey}.png" for grey in greys]
        assert [int(image[0, 0, 0]) for (images,) in part.loader for image in images] == greys
    trained = {(int(x[0, 0, 0]), int(y)) for images, target in task.loader for x, y in zip(images, target, strict=True)}
    assert trained == {(0, 0), (3, 1), *((grey, -1) for grey in (1, 2, 4, 5))}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.filterwarnings("ignore:.*read as UTF")
def test_lists_with_a_byte_order_mark(folder: Path, encoding: str) -> None:
    (folder / "a b" / "0.png").rename(folder / "a b" / "größe.png")
    for name in ("train_100.txt", "train_30.txt", "test.txt"):
        text = (folder / name).read_text().replace("0.png", "größe.png").replace("/", "\\").replace("\n", "\r\n")
        (folder / name).write_bytes(text.encode(encoding))
    lists = read_lists(folder, 30)
    assert [(row.path, row.label) for row in lists.labelled] == [("a b/größe.png", 0), ("a b/3.png", 1)]
    assert [row.where for row in lists.labelled] == ["train_30.txt:1", "train_30.txt:3"]


def test_lists_in_another_encoding_are_named_row_by_row(folder: Path) -> None:
    (folder / "train_30.txt").write_bytes("a b/0.png 0\na b/größe.png 1\n".encode("latin-1"))
    (folder / "test.txt").write_bytes("a b/6.png 0\n".encode("utf-16-le"))
    with pytest.raises(ProblemsError) as caught:
        read_lists(folder, 30)
    assert caught.value.problems[:2] == [
        "train_30.txt:2: not UTF-8; save the file with that encoding",
        "test.txt:1: a zero byte; save the file as UTF-8, or as UTF-16 with a byte order mark",
    ]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ([0, 1, 2, 0, 1, 2], None),
        ([1, 2, 1, 2, 1, 2], r"train.txt:1: label 1 of .*no class 0; .* 2 classes from 0 to 1; did you mean to count"),
        ([0, 2, 0, 2, 0, 2], r"train.txt:2: label 2 of a b/1.png, but train.txt has no class 1; .* from 0 to 1$"),
        ([0, 1, 0, 1, 20_000_000, 20_000_000], r"train.txt:5: label 20000000 .* no class 2; .* 3 classes from 0 to 2$"),
        ([0, 1, 0, 1, 0, 10**12], r"train.txt:6: label 1000000000000 of a b/5.png is too large"),
        ([0, 1, 0, 1, 0, 10**5000], r"train.txt:6: label 1000.*\(5001 characters\).* is too large"),
        ([0, 1, 0, 1, 0, -1], r"train.txt:6: label '-1'"),
    ],
)
def test_classes_are_numbered_from_0_without_gaps(folder: Path, classes: list[int], problem: str | None) -> None:
    sys.set_int_max_str_digits(6000)
    rows = [f"a b/{i}.png {label}" for i, label in enumerate(classes)]
    sys.set_int_max_str_digits(4300)
    (folder / "train.txt").write_text("\n".join(rows))
    (folder / "test.txt").write_text(f"a b/6.png {classes[0]}")
    if problem is None:
        assert read_noisy_lists(folder).num_classes == 3
        return
    with pytest.raises(ProblemsError, match=problem) as caught:
        read_noisy_lists(folder)
    assert len(caught.value.problems) == 1
    for name in ("train_100.txt", "train_30.txt"):
        (folder / name).write_text("\n".join(rows))
    with pytest.raises(ProblemsError, match=problem.replace("train.txt", "train_30.txt")):
        read_lists(folder, 30)


def test_lists_that_leave_their_folder_are_refused_unless_asked_for(folder: Path) -> None:
    inner = folder / "lists"
    inner.mkdir()
    for name in ("train_100.txt", "train_30.txt", "test.txt", "train.txt"):
        rows = (folder / ("train_100.txt" if name == "train.txt" else name)).read_text().splitlines()
        (inner / name).write_text("".join(f"../{row}\n" for row in rows if row))
    for read in (lambda **o: read_lists(inner, 30, **o), lambda **o: read_noisy_lists(inner, **o)):
        with pytest.raises(ProblemsError, match=r":1: \.\./a b/0\.png leads out of .*lists;"):
            read()
        assert read(outside=True).test[0].path == "../a b/6.png"
    (inner / "names.txt").write_text("../a b/1.png\n")
    with pytest.raises(ProblemsError, match="leads out"):
        read_image_names(inner / "names.txt")
    assert paths(read_image_names(inner / "names.txt", outside=True)) == ["../a b/1.png"]


def test_of_many_problems_the_first_are_shown_and_all_are_counted(folder: Path) -> None:
    (folder / "train_30.txt").write_text("".join(f"a b/{i}.png 0\n" for i in range(100, 700)))
    with pytest.raises(ProblemsError) as caught:
        read_lists(folder, 30)
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 600
    assert lines[:20] == caught.value.problems[:20]
    assert lines[20:] == ["... and 580 more of 600 problems"]


def test_a_long_row_takes_little_time(folder: Path) -> None:
    (folder / "train_30.txt").write_text("a b/0.png" + " 0.5" * 300_000)
    started = time.process_time()
    with pytest.raises(ProblemsError, match=r"no file|values of"):
        read_value_lists(folder, 30)
    assert time.process_time() - started < 10


def test_underscores_make_no_numbers(folder: Path) -> None:
    with_values(folder)
    (folder / "test.txt").write_text("a b/6.png 0_1 0.5 1\n")
    with pytest.raises(ProblemsError, match=r"no file .*a b/6\.png 0_1"):
        read_value_lists(folder, 30)
