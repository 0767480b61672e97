"""The data of the demos: files that the recipes read, with the numbers that they should have."""

import csv
from pathlib import Path

import pytest

pytest.importorskip("resvg_py", reason="needs pip install 'dadl[demo]'")

from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.demos import kanji
from dadl.demos.data import HERE, DemoData
from dadl.demos.demo import DEMOS
from dadl.errors import UserError
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.self_tuning.recipe import SelfTuningRecipe
from rich.console import Console

PROGRESS = JobProgress(Console(quiet=True))


def quick_data(name: str) -> Path:
    data = DEMOS[name].data
    assert isinstance(data, DemoData)
    return data.prepare(True, PROGRESS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dadl"


def test_melting_points_are_a_table_of_varied_descriptors(cache: Path) -> None:
    pytest.importorskip("rdkit", reason="needs pip install 'dadl[demo]'")
    file = quick_data("ranksim")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) > 500
    assert min(float(row["mass"]) for row in rows) < 60
    for name in rows[0]:
        assert len({row[name] for row in rows}) > 1, name
    assert all(50 < float(row["melting_point"]) < 1500 for row in rows)
    recipe = RankSimRecipe(data=file, target="melting_point", features=("*",))
    task = recipe.read(PROGRESS)
    assert sum(task.sizes.values()) == len(rows)


def test_characters_are_images_with_strokes_and_lists_of_radicals(cache: Path) -> None:
    table = quick_data("strokes")
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    strokes = {chr(int(Path(row["image"]).stem, 16)): int(row["strokes"]) for row in rows}
    assert list(strokes) == kanji.list_kanji()[::12]
    assert all(count == len(kanji.read_strokes(character)) for character, count in strokes.items())
    parts = [row["split"] for row in rows]
    assert parts.count("train") == parts.count("val") == round(0.1 * len(rows))
    common = {"network": "small-cnn", "image_size": 42}
    regression = RankSimRecipe(data=table, target="strokes", image="image", split="split", **common)
    assert regression.read(PROGRESS).sizes["test"] == parts.count("test")

    assert quick_data("self-tuning") == table.parent  # the same images
    task = SelfTuningRecipe(data=table.parent, labels=15, **common).read(PROGRESS)
    classes = (table.parent / "classes.txt").read_text(encoding="utf-8").split()
    assert task.facts["classes"] == len(classes) > 3
    assert classes[0] in ("水", "艸", "口", "人", "木")
    train = task.sizes["labelled"] + task.sizes["unlabelled"]
    assert 0.15 * train <= task.sizes["labelled"] < 0.15 * train + len(classes)


def test_sprites_are_lists_of_scale_and_position(cache: Path) -> None:
    task = ChiModelRecipe(data=quick_data("chi-model"), labels=5, network="small-cnn", image_size=48).read(PROGRESS)
    assert task.facts["values"] == 3
    assert task.sizes == {"labelled": 6, "unlabelled": 114, "validation": 30, "test": 50}


def test_the_clothes_of_fashion_mnist_come_with_the_package() -> None:
    folder = HERE / "fashion-mnist"
    task = CMWNetRecipe(data=folder, network="small-cnn", meta_per_class=10, val_fraction=0.1).read(PROGRESS)
    assert task.facts["image_shape"] == [1, 28, 28]
    assert task.facts["classes"] == 10
    assert task.sizes == {"train": 3500, "meta": 100, "validation": 400, "test": 1500}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_500_000


def test_data_are_written_once_and_a_killed_process_leaves_none(cache: Path) -> None:
    written: list[int] = []

    def write_numbers(folder: Path, every: int, progress: JobProgress) -> None:
        written.append(every)
        (folder / "numbers.csv").write_text("1\n")
        if len(written) == 1:
            raise KeyboardInterrupt

    data = DemoData(write_numbers, 7, ("numpy",), "numbers.csv")
    with pytest.raises(KeyboardInterrupt):
        data.prepare(False, PROGRESS)
    assert list(cache.iterdir()) == []
    assert data.prepare(False, PROGRESS).read_text() == "1\n"
    assert data.prepare(False, PROGRESS).is_file()
    assert data.prepare(True, PROGRESS).parent.name.endswith("7th")
    assert written == [1, 1, 7]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dadl").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot write the demo's data to .*set XDG_CACHE_HOME"):
        quick_data("chi-model")
