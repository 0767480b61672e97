"""Fingerprints: the same where nothing has changed, also of copied data, and others after every change."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.data.arrays import sprites
from dadl.data.fingerprint import fingerprint
from dadl.errors import SettingsError
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning.recipe import SelfTuningRecipe
from rich.console import Console
from support.folders import image_folder, replace_quietly
from torch import Tensor, nn

QUIET = Console(quiet=True)
FIXTURES = Path(__file__).parent / "fixtures"


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def fingerprints(recipe: Recipe) -> Mapping[str, str]:
    return recipe.read(JobProgress(QUIET)).fingerprints


def edit(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def swapped(lines: list[str]) -> list[str]:
    return [*lines[:-2], lines[-1], lines[-2]]


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {part for part in before if before[part] != after[part]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["a", "b"]], [["b", "a"]]),
        ([["a", "b"]], [["a"], ["b"]]),
        ([["a\nb"]], [["a", "b"]]),
        ([[("a", "b c")]], [[("a b", "c")]]),
        ([[0.1]], [[0.1 + 2**-56]]),
        ([[1]], [["1"]]),
        ([torch.zeros(2, 3)], [torch.zeros(3, 2)]),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.int32)]),
        ([torch.tensor([1.0, 2])], [torch.tensor([2.0, 1])]),
        ([torch.arange(6).view(2, 3).T], [torch.arange(6).view(3, 2)]),
        ([torch.empty(2, 0)], [torch.empty(3, 0)]),
    ],
)
def test_values_types_shapes_and_order_count(one: list[Any], other: list[Any]) -> None:
    assert fingerprint(*one) != fingerprint(*other)
    same = [value.clone() if isinstance(value, Tensor) else iter(value) for value in one]
    assert fingerprint(*one) == fingerprint(*same)


def test_a_resumed_run_takes_no_other_numbers(tmp_path: Path) -> None:
    draws = np.random.default_rng(0).normal(size=(60, 2))
    data = tmp_path / "data.csv"
    parts = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    data.write_text("x,y,part\n" + "".join(f"{x},{y},{part}\n" for (x, y), part in zip(draws, parts, strict=True)))
    recipe = RankSimRecipe(data=data, target="y", features=("x",), split="part", epochs=1, hidden=4)
    again = RunOptions(output=tmp_path / "run", device="cpu", resume=True)
    table = train_run(recipe, again, QUIET)
    assert train_run(recipe, again, QUIET) == table
    whole = data.read_text()

    def target(lines: list[str]) -> list[str]:
        x, _, part = lines[45].split(",")
        return [*lines[:45], f"{x},0.125,{part}", *lines[46:]]

    def feature(lines: list[str]) -> list[str]:
        return [*lines[:45], f"0.125,{lines[45].partition(',')[2]}", *lines[46:]]

    for change, part in ((target, "val"), (feature, "val"), (swapped, "test")):
        edit(data, change)
        message = (
            rf"data\.csv has changed since .*run began: as many samples, but other values.* in {part}; resume with"
        )
        with pytest.raises(SettingsError, match=message):
            train_run(recipe, again, QUIET)
        data.write_text(whole)
    assert train_run(recipe, again, QUIET) == table


def test_texts_count(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs pip install 'dadl[train]'")
    data = shutil.copytree(FIXTURES / "sts-b", tmp_path / "sts-b")
    recipe = RankSimRecipe(data=data, fine_tune=True)
    before = fingerprints(recipe)
    assert fingerprints(RankSimRecipe(data=FIXTURES / "sts-b", fine_tune=True)) == before
    edit(
        data / "dev_new.tsv", lambda lines: [line.replace("\t", " \t", 1) for line in lines]
    )  # a column without a role

    def sentence(lines: list[str]) -> list[str]:
        fields = lines[1].split("\t")
        return [lines[0], "\t".join([*fields[:8], f"{fields[8]}!", fields[9]]), *lines[2:]]

    edit(data / "test_new.tsv", sentence)
    edit(data / "train_new.tsv", swapped)
    assert changed_parts(before, fingerprints(recipe)) == {"train", "test"}


def other_line(number: int, old: str, new: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        assert old in lines[number]
        return [*lines[:number], lines[number].replace(old, new, 1), *lines[number + 1 :]]

    return change


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_of_a_table_every_input_counts(tmp_path: Path, separator: str) -> None:
    pytest.importorskip("transformers", reason="needs pip install 'dadl[train]'")
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    lines = [f"{i},{i}.5,text {i},{'ab'[i % 2]},{part}" for i, part in enumerate(parts)]
    data = tmp_path / "data.csv"
    data.write_text("\n".join(["y,n,t,c,split", *lines, ""]).replace(",", separator))
    whole = data.read_text()
    table = RankSimRecipe(data=data, target="y", features=("n",), one_hot=("c",), split="split")
    texts = RankSimRecipe(data=data, target="y", text=("t",), split="split", fine_tune=True)
    before = fingerprints(table), fingerprints(texts)
    for number, old, new, of_table, of_texts in (
        (3, f"2{separator}", f"7{separator}", {"train"}, {"train"}),
        (9, "8.5", "8.25", {"val"}, set()),
        (2, "text 1", "Text 1", set(), {"train"}),
        (12, f"{separator}b{separator}", f"{separator}a{separator}", {"test"}, set()),
    ):
        edit(data, other_line(number, old, new))
        assert changed_parts(before[0], fingerprints(table)) == of_table
        assert changed_parts(before[1], fingerprints(texts)) == of_texts
        data.write_text(whole)


def test_scores_of_sentences_count(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs pip install 'dadl[train]'")
    data = shutil.copytree(FIXTURES / "sts-b", tmp_path / "sts-b")
    recipe = RankSimRecipe(data=data, fine_tune=True)
    before = fingerprints(recipe)
    edit(data / "dev_new.tsv", lambda lines: [*lines[:-1], lines[-1].rpartition("\t")[0] + "\t2.125\n"])
    assert changed_parts(before, fingerprints(recipe)) == {"val"}


def recipes_of(folder: Path) -> dict[str, Recipe]:
    """On the same images."""
    (folder / "train.txt").write_text((folder / "train_100.txt").read_text())
    (folder / "meta.txt").write_text((folder / "train_30.txt").read_text())
    rows = [f"{i},{i}.png,{'train' if i < 8 else 'val' if i < 12 else 'test'}\n" for i in range(16)]
    (folder / "ages.csv").write_text("age,path,split\n" + "".join(rows))
    network = f"{__name__}:tiny_network"
    return {
        "ranksim": RankSimRecipe(data=folder / "ages.csv", backbone=network, image_size=16),
        "self-tuning": SelfTuningRecipe(data=folder, labels=30, image_size=32),
        "chi-model": ChiModelRecipe(data=folder, labels=30, image_size=32),
        "cmw-net": CMWNetRecipe(data=folder, image_size=16, backbone=network),
    }


@pytest.fixture(params=["memory", "disk"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where decoded images are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dadl.data.images.KEPT_IN_MEMORY", 2**30 if request.param == "memory" else 0)


@pytest.mark.usefixtures("kept")
def test_of_images_path_pixels_and_target_count_wherever_they_are(tmp_path: Path) -> None:
    recipes = recipes_of(image_folder(tmp_path / "data"))
    before = {name: fingerprints(recipe) for name, recipe in recipes.items()}
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)  # with times of their own
    recipes = recipes_of(tmp_path / "copy")
    assert {name: fingerprints(recipe) for name, recipe in recipes.items()} == before

    replace_quietly(tmp_path / "copy" / "15.png", tmp_path / "copy" / "13.png")
    for name, recipe in recipes.items():
        assert changed_parts(before[name], fingerprints(recipe)) == {"test"}, name
    shutil.copyfile(tmp_path / "data" / "15.png", tmp_path / "copy" / "15.png")
    assert {name: fingerprints(recipe) for name, recipe in recipes.items()} == before

    for name in ("train_100.txt", "train.txt"):
        edit(tmp_path / "copy" / name, lambda lines: [*lines[:-1], lines[-1].replace(" 1", " 0")])
    edit(tmp_path / "copy" / "ages.csv", lambda lines: [*lines[:3], lines[3].replace("2,", "3,", 1), *lines[4:]])
    parts = {name: changed_parts(before[name], fingerprints(recipe)) for name, recipe in recipes.items()}
    # The label of an unlabelled image is not used.
    assert parts == {"ranksim": {"train"}, "self-tuning": set(), "chi-model": set(), "cmw-net": {"train"}}

    for name in ("train_30.txt", "train_100.txt", "meta.txt"):
        edit(tmp_path / "copy" / name, other_line(0, " 0", " 1"))
    parts = {name: changed_parts(before[name], fingerprints(recipe)) for name, recipe in recipes.items()}
    assert parts == {
        "ranksim": {"train"},
        "self-tuning": {"labelled"},
        "chi-model": {"labelled"},
        "cmw-net": {"train", "meta"},
    }

    for name in ("test.txt", "ages.csv"):
        edit(tmp_path / "copy" / name, swapped)
    assert all("test" in changed_parts(before[name], fingerprints(recipe)) for name, recipe in recipes.items())


@pytest.mark.usefixtures("kept")
def test_a_resumed_run_takes_no_other_images_but_touched_ones(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data")
    recipe = replace(recipes_of(folder)["ranksim"], epochs=1, batch_size=4)
    again = RunOptions(output=tmp_path / "run", device="cpu", resume=True)
    table = train_run(recipe, again, QUIET)
    for file in folder.glob("*.png"):
        os.utime(file, (0, 0))
    assert train_run(recipe, again, QUIET) == table
    replace_quietly(folder / "9.png", folder / "11.png")
    with pytest.raises(SettingsError, match=r"ages\.csv has changed since .*: as many samples, .* images .* in val; "):
        train_run(recipe, again, QUIET)


def test_of_files_that_are_read_whole_every_pixel_and_label_counts(idx_folder: Path) -> None:
    recipe = CMWNetRecipe(data=idx_folder, method="ce", noise="symmetric", noise_rate=0.2)
    before = fingerprints(recipe)
    assert fingerprints(recipe) == before
    for name, part in (("train-images-idx3", "train"), ("t10k-labels-idx1", "test")):
        file = idx_folder / f"{name}-ubyte"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 2]))
        assert changed_parts(before, fingerprints(recipe)) == {part}
        file.write_bytes(whole)


def test_of_drawn_images_every_pixel_and_value_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MPI3D_COUNTS", (2, 40, 40))
    images = np.random.default_rng(0).integers(0, 256, (3200, 4, 4, 3), dtype=np.uint8)

    def drawn(**settings: Any) -> Mapping[str, str]:
        np.savez(tmp_path / "mpi3d.npz", images=images)
        return fingerprints(ChiModelRecipe(data=tmp_path, labels=10, images=3200, image_size=32, **settings))

    before = drawn()
    assert drawn() == before
    assert changed_parts(before, drawn(columns=(1,))) == {"images"}
    images[1234, 3, 3, 2] ^= 1
    assert changed_parts(before, drawn()) == {"images"}
