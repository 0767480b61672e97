"""Regression data from files: what the formats mean, and one error that names every problem."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="needs pip install 'dadl[train]'")

from dadl import bin_labels, shot_regions
from dadl.data.images import load_images
from dadl.data.regression import (
    SPLITS,
    RegressionData,
    read_agedb,
    read_csv,
    read_sts_b,
    read_unseen_csv,
    read_unseen_sts_b,
)
from dadl.errors import MOST_LINES, ProblemsError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = os.environ.get("DADL_TEST_DATA")
needs_published = pytest.mark.skipif(PUBLISHED is None, reason="DADL_TEST_DATA names no folder of published data sets")


def sizes(data: RegressionData) -> list[int]:
    return [len(getattr(data, split).target) for split in SPLITS]


def problems_of(read: Callable[[], object]) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        read()
    assert str(caught.value).splitlines()[:MOST_LINES] == caught.value.problems[:MOST_LINES]
    return caught.value.problems


@pytest.fixture
def ages(tmp_path: Path) -> Path:
    """The fixture's table with an image for each row, whose red is the number in its name."""
    shutil.copy(FIXTURES / "ages.csv", tmp_path)
    (tmp_path / "faces").mkdir()
    for i in range(1, 9):
        name = f"{i}_{'f' if i % 2 else 'm'}.png"
        Image.new("RGB", (12, 12), (i, 0, 0)).save(tmp_path / "faces" / name)
    return tmp_path / "ages.csv"


def test_ages(ages: Path) -> None:
    checked: list[int] = []
    data = read_agedb(ages, on_image=lambda: checked.append(1))
    assert sizes(data) == [4, 2, 2]
    assert len(checked) == 8
    assert data.train.target.tolist() == [31, 59, 31, 7]
    assert data.test.where == ["ages.csv:8", "ages.csv:9"]
    images = load_images(data.folder, data.val.images, 4, lambda: None)[0][:]
    assert images[:, 0, 0, 0].tolist() == [5, 6]
    assert data.train.texts == []
    assert data.train.features.shape == (4, 0)


def test_every_bad_image_and_row_is_named_at_once(ages: Path) -> None:
    faces = ages.parent / "faces"
    (faces / "2_m.png").unlink()
    (faces / "4_m.png").write_text("not an image")
    (faces / "5_f.png").write_bytes((faces / "5_f.png").read_bytes()[:50])
    text = ages.read_text().replace("59,", "nan,").replace("44,", "old,").replace("8_m.png,test", "8_m.png,tset")
    ages.write_text(text + ",faces/1_f.png,train\n")
    problems = problems_of(lambda: read_agedb(ages))
    expected = [
        ("ages.csv:3", "no file"),
        ("ages.csv:3", "age is 'nan'; expected a finite number"),
        ("ages.csv:5", "not an image"),
        ("ages.csv:6", "cannot read"),
        ("ages.csv:6", "age is 'old'"),
        ("ages.csv:9", "split 'tset' is none of train, val, test"),
        ("ages.csv:10", "age is empty"),
        (str(ages), "test has one sample; at least two"),
    ]
    assert len(problems) == len(expected), problems
    for where, part in expected:
        assert any(problem.startswith(f"{where}: ") and part in problem for problem in problems), (where, problems)


def test_damaged_jpegs_are_found_and_images_may_stay_unchecked(ages: Path) -> None:
    path = ages.parent / "faces" / "1_f.png"
    noise = Image.frombytes("RGB", (64, 64), bytes(range(256)) * 48)
    noise.save(path, format="JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:-200])
    (problem,) = problems_of(lambda: read_agedb(ages))
    assert problem.startswith("ages.csv:2: cannot read")
    assert sizes(read_agedb(ages, check_images=False)) == [4, 2, 2]


def test_sentence_pairs() -> None:
    data = read_sts_b(FIXTURES / "sts-b")
    assert sizes(data) == [3, 2, 2]
    assert data.train.texts[1] == ('"Come in," said the host.', "A tree grows.")
    assert data.train.texts[2][1] == 'Two dogs "sleep'
    assert data.val.target.tolist() == [5.0, 0.4]
    assert data.test.where == ["test_new.tsv:2", "test_new.tsv:3"]


def test_bad_sentence_pairs_are_named(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "sts-b", tmp_path / "sts-b")
    train, dev, test = (folder / f"{name}_new.tsv" for name in ("train", "dev", "test"))
    train.write_text(train.read_text().replace("4.2", "high").replace("Two cats sleep.", " "))
    dev.write_text(dev.read_text().replace("\t5.000", ""))
    problems = problems_of(lambda: read_sts_b(folder))
    assert [problem.split(": ", 1) for problem in problems] == [
        ["dev_new.tsv:2", "expected 10 columns, as the header has, got 9"],
        ["train_new.tsv:2", "score is 'high'; expected a finite number such as 3.5"],
        ["train_new.tsv:4", "sentence1 is empty"],
        [str(folder), "val has one sample; at least two are needed"],
    ]
    dev.write_text("sentence1,sentence2,score\na,b,3\n")
    test.unlink()
    problems = problems_of(lambda: read_sts_b(folder))
    assert problems == [
        f"{test}: No such file or directory",
        f"{dev}: expected 10 columns between tabs, got 1",
    ]


def test_numbers_texts_and_categories() -> None:
    path = FIXTURES / "houses.csv"
    data = read_csv(path, "price", text=["advert"], features=["rooms", "colour", "area"], one_hot=["colour"])
    assert sizes(data) == [10, 2, 2]
    assert data.feature_names == ("rooms", "colour=blue", "colour=red", "area")
    rows = [row for split in SPLITS for row in getattr(data, split).where]
    assert sorted(rows, key=lambda where: int(where.split(":")[1])) == [f"houses.csv:{i}" for i in range(2, 16)]
    features = torch.cat([getattr(data, split).features for split in SPLITS])
    targets = torch.cat([getattr(data, split).target for split in SPLITS])
    assert features[rows.index("houses.csv:6")].tolist() == [6, 0, 1, 120.25]
    assert targets[rows.index("houses.csv:10")] == 180000
    texts = [text for split in SPLITS for text in getattr(data, split).texts]
    assert texts[rows.index("houses.csv:3")] == ('With a garden; the cellar is "dry"',)


def test_random_splits_depend_on_the_seed_alone() -> None:
    first, again, other = (
        read_csv(FIXTURES / "houses.csv", "price", features=["area"], seed=seed) for seed in (1, 1, 2)
    )
    assert first.test.where == again.test.where
    assert first.test.where != other.test.where


def test_words_among_the_numbers_are_one_sentence() -> None:
    read = lambda target, *features: read_csv(FIXTURES / "houses.csv", target, features=features)
    (problem,) = problems_of(lambda: read("price", "area", "colour"))
    assert "column 'colour' holds no numbers but 2 different words, most often 'red'" in problem
    assert "ask for it one-hot" in problem
    (problem,) = problems_of(lambda: read("colour", "area"))
    assert "regression needs a target of numbers" in problem
    problems = problems_of(lambda: read("cost", "area", "doors"))
    assert ["no column 'cost'" in problems[0], "no column 'doors'" in problems[1]] == [True, True]


def test_rare_categories_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = ["1,a,train", "2,a,train", "3,b,train", "4,a,val", "5,c,val", "6,a,test", "7,,test"]
    path.write_text("\n".join(["y,kind,part", *rows]))
    problems = problems_of(lambda: read_csv(path, "y", one_hot=["kind"], split="part"))
    assert [problem.split(";")[0] for problem in problems] == [
        "t.csv:4: kind 'b' has one sample in train",
        "t.csv:6: kind 'c' has no sample in train",
        "t.csv:8: kind is empty",
    ]


def test_a_constant_target_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("y,x\n" + "3,1\n" * 9)
    assert problems_of(lambda: read_csv(path, "y", features=["x"])) == [
        f"{path}: every target in train is 3, so there is nothing to learn"
    ]


def test_unseen_rows_have_the_features_of_the_training(tmp_path: Path) -> None:
    columns = {"text": ["advert"], "features": ["rooms", "colour", "area"]}
    seen = read_csv(FIXTURES / "houses.csv", "price", one_hot=["colour"], **columns)
    assert seen.categories == {"colour": ("blue", "red")}
    path = tmp_path / "new.csv"
    path.write_text("advert,colour,area,rooms\nA pond,red,90,4\n")
    unseen = read_unseen_csv(path, categories=seen.categories, **columns)
    assert unseen.features.tolist() == [[4, 0, 1, 90]]
    assert (unseen.where, unseen.texts, len(unseen.target)) == (["new.csv:2"], [("A pond",)], 0)
    again = read_unseen_csv(FIXTURES / "houses.csv", categories=seen.categories, **columns)
    rows = [again.where.index(where) for where in seen.train.where]
    assert torch.equal(again.features[rows], seen.train.features)


def test_bad_unseen_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("a,colour\n1,red\n,blue\n2,green\n")
    assert problems_of(lambda: read_unseen_csv(path, features=["a"], categories={"colour": ["blue", "red"]})) == [
        "new.csv:4: colour is 'green'; the training had 'blue', 'red'",
        "new.csv:3: a is empty; expected a finite number such as 3.5",
    ]
    (problem,) = problems_of(lambda: read_unseen_csv(path, features=["colour"]))
    assert "holds no numbers" in problem
    assert problem.endswith("the training had numbers there")
    (problem,) = problems_of(lambda: read_unseen_csv(path, features=["b"]))
    assert "no column 'b'" in problem
    with pytest.raises(ValueError, match="no inputs"):
        read_unseen_csv(path)


def test_unseen_pairs(tmp_path: Path) -> None:
    unseen = read_unseen_sts_b(FIXTURES / "sts-b" / "test_new.tsv")
    assert unseen.texts[1] == ("Snow covers the field.", "The field is white with snow.")
    path = tmp_path / "pairs.tsv"
    path.write_text('sentence2\tsentence1\nb "\ta\n \tc\n')
    assert problems_of(lambda: read_unseen_sts_b(path)) == ["pairs.tsv:3: sentence2 is empty"]


NO_NUMBERS = ["", " ", "nan", "NaN", "inf", "-inf", "1e999", "1_000", "3,5", "0x10", "two", "1 2", "--1"]
CELL = st.one_of(
    st.floats(-1e6, 1e6).map(lambda value: (repr(value), True)),
    st.sampled_from(NO_NUMBERS).map(lambda text: (text, False)),
)


@given(st.lists(st.tuples(CELL, CELL), max_size=20))
def test_exactly_the_bad_rows_are_named(cells: list[tuple[tuple[str, bool], tuple[str, bool]]]) -> None:
    rows = [(("1", True), ("2", True)), (("2", True), ("3", True))] * 10 + cells
    bad = {f"t.csv:{i + 2}" for i, ((y, a), (x, b)) in enumerate(rows) if (y + x).strip() and not (a and b)}
    blank = sum(not (y + x).strip() for (y, _), (x, _) in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("y;x\n" + "".join(f"{y};{x}\n" for (y, _), (x, _) in rows))
        if bad:
            problems = problems_of(lambda: read_csv(path, "y", features=["x"]))
            assert {problem.split(": ")[0] for problem in problems} == bad
        else:
            assert sum(sizes(read_csv(path, "y", features=["x"]))) == len(rows) - blank


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: read_csv(path, "price"), "no inputs"),
        (lambda path: read_csv(path, "price", features=["price"]), "'price' has two roles"),
        (lambda path: read_csv(path, "price", text=["colour"], one_hot=["colour"]), "'colour' has two roles"),
    ],
)
def test_columns_have_one_role(call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(FIXTURES / "houses.csv")


@needs_published
def test_published_ages() -> None:
    data = read_agedb(Path(str(PUBLISHED)) / "agedb-dir" / "agedb.csv", check_images=False)
    assert sizes(data) == [12208, 2140, 2140]
    counts = torch.bincount(bin_labels(data.train.target, 0, 121, 121), minlength=121)
    bins = bin_labels(data.test.target, 0, 121, 121)
    shots = {region: int(mask[bins].sum()) for region, mask in shot_regions(counts).items()}
    assert shots == {"all": 2140, "many": 1530, "medium": 448, "few": 162}


@needs_published
def test_published_sentence_pairs() -> None:
    data = read_sts_b(Path(str(PUBLISHED)) / "sts-b-dir")
    assert sizes(data) == [5249, 1000, 1000]
    assert data.train.texts[0] == ("A woman is dancing.", "A man is eating.")
    assert 0 <= float(data.train.target.min()) < float(data.train.target.max()) <= 5
