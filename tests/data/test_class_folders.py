"""Images in a folder for each class."""

from collections import Counter
from pathlib import Path

import pytest
from dadl import Run, train
from dadl.data.class_folders import has_class_folders, read_class_folders
from dadl.errors import ProblemsError
from support.folders import image_folder

Image = pytest.importorskip("PIL.Image")


def folders(base: Path, **counts: int) -> Path:
    """So many images of each class; each class has a colour of its own."""
    for number, (name, count) in enumerate(counts.items()):
        (base / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (200 * number, i, 0)).save(base / name / f"{i}.png")
    return base


def test_parts_are_read_and_classes_named(tmp_path: Path) -> None:
    folders(tmp_path / "train", dog=4, cat=3)
    folders(tmp_path / "test", cat=2, dog=1)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    assert has_class_folders(tmp_path)
    read = read_class_folders(tmp_path, 0)
    assert read.names == ("cat", "dog")
    assert [(row.path, row.label) for row in read.test] == [
        ("test/cat/0.png", 0),
        ("test/cat/1.png", 0),
        ("test/dog/0.png", 1),
    ]
    assert Counter(row.label for row in read.train) == {0: 3, 1: 4}
    assert read.validation == []


def test_one_folder_is_split_within_each_class(tmp_path: Path) -> None:
    folders(tmp_path, a=30, b=4)
    read, again, other = (read_class_folders(tmp_path, seed) for seed in (0, 0, 1))
    counts = [Counter(row.label for row in part) for part in (read.train, read.validation, read.test)]
    assert counts == [{0: 24, 1: 2}, {0: 3, 1: 1}, {0: 3, 1: 1}]
    assert read == again != other
    paths = [row.path for part in (read.train, read.validation, read.test) for row in part]
    assert len(set(paths)) == 34


def test_few_labels_are_drawn_within_each_class(tmp_path: Path) -> None:
    folders(tmp_path / "train", a=20, b=3)
    folders(tmp_path / "test", a=1)
    lists = read_class_folders(tmp_path, 0).few_labels(20, 0)
    assert Counter(row.label for row in lists.labelled) == {0: 4, 1: 1}
    assert Counter(row.label for row in lists.unlabelled) == {0: 16, 1: 2}
    assert not {row.path for row in lists.labelled} & {row.path for row in lists.unlabelled}
    assert (lists.num_classes, lists.names) == (2, ("a", "b"))


def test_every_problem_is_named(tmp_path: Path) -> None:
    folders(tmp_path / "train", cat=1, dog=2)
    folders(tmp_path / "val", cats=1)
    (tmp_path / "train" / "dog" / "link.png").symlink_to("/etc/hosts")
    with pytest.raises(ProblemsError) as error:
        read_class_folders(tmp_path, 0)
    assert error.value.problems == [
        f"train/dog/link.png: train/dog/link.png leads out of {tmp_path}; move the image there, or allow it with "
        "--outside",
        f"{tmp_path}/train/cat: 1 images of a class; at least 2 are needed",
        f"{tmp_path}/val/cats: a class without a folder in train; did you mean cat?",
        f"{tmp_path}/test: no images in folders of classes, but there is {tmp_path}/train",
    ]


def test_lists_come_first(tmp_path: Path) -> None:
    folders(tmp_path / "some", a=2)
    assert has_class_folders(tmp_path / "some")
    assert not has_class_folders(image_folder(tmp_path / "lists"))
    assert not has_class_folders(tmp_path / "nowhere")


@pytest.mark.parametrize("recipe", ["self-tuning", "cmw-net"])
def test_a_run_knows_the_names_of_its_classes(recipe: str, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", red=8, black=8)
    options = {"epochs": 1, "batch_size": 4, "image_size": 32, "device": "cpu", "progress": False}
    if recipe == "self-tuning":
        options |= {"labels": 50, "projection_size": 8, "slots": 4}
    else:
        options |= {"method": "ce", "class_weights": "inverse"}
    run = train(recipe, data=data, output=tmp_path / "run", **options)
    assert run.facts["names"] == ["black", "red"]
    named = run.predict(data / "red", columns=True, progress=False)
    assert named["class"].tolist() == [["black", "red"][label] for label in named["label"]]
    assert run.predict(data / "red", progress=False).tolist() == named["label"].tolist()
    assert Run.load(run.folder).evaluate(progress=False) == run.scores
    others = folders(tmp_path / "others", red=8, white=8)
    with pytest.raises(ValueError, match=r"other names than the run: \['red', 'white'\] and not \['black', 'red'\]"):
        run.evaluate(others, progress=False)
