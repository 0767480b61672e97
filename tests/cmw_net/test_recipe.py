"""Noisy and imbalanced classes end to end: what every part of the data holds, training, resuming, predicting."""

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.cmw_net.method import CrossEntropy, LearntWeights, LowestLossMeta
from dadl.cmw_net.recipe import CMWNetRecipe, load_weight_net
from dadl.errors import ProblemsError, SettingsError, UserError
from dadl.output import JobProgress
from dadl.runs.folder import read_run
from dadl.runs.recipe import RecipeData
from dadl.runs.train import RunOptions, train_run
from dadl.training import BEST, LAST, fit, predict, tensor_loader
from lightning_fabric import Fabric
from PIL import Image
from rich.console import Console
from support.folders import CLASSES, class_images
from support.recipes import recipe_of, small_network
from torch import Tensor, nn

QUIET = Console(quiet=True)


def true_classes(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].long()


@pytest.fixture
def list_folder(tmp_path: Path) -> Path:
    """24 training images, 3 for the meta set, 3 to validate and 6 to test, all in colours."""
    folder = tmp_path / "lists"
    folder.mkdir()
    rows = []
    for i, image in enumerate(class_images(np.arange(36) % CLASSES, 2)):
        Image.fromarray(image).convert("RGB").save(folder / f"image {i}.png")
        rows.append(f"image {i}.png {i % CLASSES}\n")
    for name, part in (("train", rows[:24]), ("meta", rows[24:27]), ("val", rows[27:30]), ("test", rows[30:])):
        (folder / f"{name}.txt").write_text("".join(part))
    return folder


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network in place of ResNet-32, whose 32 layers take their time."""
    monkeypatch.setattr("dadl.networks.image_network.resnet", small_network)


def read(recipe: CMWNetRecipe) -> RecipeData:
    return recipe.read(JobProgress(QUIET))


def make(recipe: CMWNetRecipe, task: RecipeData) -> CrossEntropy:
    torch.manual_seed(recipe.seed)
    return recipe.make_method(json.loads(json.dumps(task.facts)))


def batches_of(task: RecipeData) -> list[Tensor]:
    """What the loader gives in one epoch."""
    torch.manual_seed(0)
    return [torch.cat(parts) for parts in zip(*task.loader, strict=True)]


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def test_train_evaluate_and_predict_with_resnet(idx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    recipe = recipe_of(
        idx_folder, epochs=1, batch_size=100, noise="symmetric", noise_rate=0.4, meta_per_class=5, val_fraction=0.1
    )
    table = train_run(recipe, RunOptions(output=output, device="cpu"), QUIET)
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["samples"] == {"train": 201, "meta": 15, "validation": 24, "test": 60}
    assert results["test"] == table
    facts = results["facts"]
    assert sum(facts.pop("class_counts")) == 201
    assert facts == {"classes": 3, "image_shape": [1, 12, 12], "view_size": 12}
    predictions = rows_of(output / "predictions.csv")
    assert [row["name"] for row in predictions] == [f"test:{i}" for i in range(60)]
    right = sum(int(row["label"]) == i % CLASSES for i, row in enumerate(predictions))
    assert table["all"]["accuracy %"] == pytest.approx(100 * right / 60)
    assert Run.load(output).evaluate(part="test", device="cpu", progress=False) == table
    assert "all" in Run.load(output).evaluate(part="val", device="cpu", progress=False)

    unseen = tmp_path / "unseen"
    unseen.mkdir()
    for i, image in enumerate(class_images(np.arange(60) % CLASSES, 1)):
        Image.fromarray(image).save(unseen / f"{i:02}.png")
    Run.load(output).write_predictions(unseen, tmp_path / "predicted.csv", device="cpu", progress=False)
    predicted = rows_of(tmp_path / "predicted.csv")
    assert [row["name"] for row in predicted] == [f"{i:02}.png" for i in range(60)]
    assert [row["label"] for row in predicted] == [row["label"] for row in predictions]


@pytest.mark.parametrize(("noise", "corrupted"), [("flip", 86), ("symmetric", None), ("none", 0)])
def test_noise_is_put_on_training_labels_alone(idx_folder: Path, noise: Any, corrupted: int | None) -> None:
    settings = {"noise": noise, "noise_rate": 0.0 if noise == "none" else 0.4}
    recipe = recipe_of(idx_folder, meta_per_class=3, val_fraction=0.06, **settings)
    task = read(recipe)
    images, target, meta_images, meta_target = batches_of(task)
    wrong = int((true_classes(images) != target).sum())
    assert len(images) == 217
    assert wrong == corrupted if corrupted is not None else 30 < wrong < 86  # some draw their own class
    assert task.facts["class_counts"] == torch.bincount(target).tolist()
    assert torch.equal(true_classes(meta_images), meta_target)
    held_out = meta_images.flatten(1).unique(dim=0)
    assert len(held_out) == 9
    assert not any((image == images.flatten(1)).all(dim=1).any() for image in held_out)
    for part in (task.validation, task.test):
        assert part is not None
        truth = torch.cat([true_classes(inputs) for inputs, *_ in part.loader])
        right = part.score(nn.functional.one_hot(truth, CLASSES).float())
        assert right["all"]["accuracy %"] == 100
    again, other = (read(replace(recipe, split_seed=seed)) for seed in (0, 1))
    assert torch.equal(batches_of(again)[1], target)
    assert not torch.equal(batches_of(other)[1], target)


def test_a_long_tail_and_its_meta_samples(idx_folder: Path) -> None:
    recipe = recipe_of(idx_folder, imbalance=16.0, meta="balanced", normalize="sum")
    task = read(recipe)
    assert task.facts["class_counts"] == [80, 20, 5]
    assert task.sizes["meta"] == 0
    meta_target = torch.cat([batches_of(task)[3] for _ in range(4)])
    counts = torch.bincount(meta_target, minlength=CLASSES)
    assert int(counts.sum()) == 420
    assert (counts > 100).all()  # of 140 expected each


def test_cross_entropy_sees_the_meta_samples_only_if_told_to(idx_folder: Path) -> None:
    sizes = {}
    for method in ("ce", "ce-meta"):
        images, target = batches_of(read(recipe_of(idx_folder, method=method, meta_per_class=4)))
        assert torch.equal(true_classes(images), target)
        sizes[method] = len(target)
    assert sizes == {"ce": 228, "ce-meta": 240}


@pytest.mark.usefixtures("fast")
def test_cross_entropy_has_no_weights_to_load(idx_folder: Path, tmp_path: Path) -> None:
    train_run(recipe_of(idx_folder, method="ce", epochs=1), RunOptions(output=tmp_path / "ce", device="cpu"), QUIET)
    with pytest.raises(SettingsError, match="no learnt weights: it is of cmw-net, method ce"):
        load_weight_net(tmp_path / "ce")


@pytest.mark.usefixtures("fast")
def test_learnt_weights_beat_cross_entropy_on_wrong_labels(idx_folder: Path) -> None:
    accuracy: dict[str, list[float]] = {"ce": [], "mw-net": []}
    for method, seed in product(accuracy, (0, 1)):
        recipe = recipe_of(
            idx_folder,
            method=method,
            noise="symmetric",
            noise_rate=0.6,
            meta_per_class=10,
            epochs=20,
            lr=0.01,
            meta_lr=0.03,
            warm_up=0.1,
            seed=seed,
        )
        task = read(recipe)
        trained = make(recipe, task)
        fit(cpu(), trained, task.loader, epochs=recipe.epochs, seed=seed)
        predicted = predict(cpu(), trained, task.test.loader)
        accuracy[method].append(task.test.score(predicted)["all"]["accuracy %"])
    assert isinstance(trained, LearntWeights)
    images, labels = batches_of(task)[:2]
    logits = predict(cpu(), trained, tensor_loader(images, batch_size=100))
    weights = trained.weight_net(nn.functional.cross_entropy(logits, labels, reduction="none"), labels)
    right = labels == true_classes(images)
    assert weights[right].mean() > weights[~right].mean() + 0.2
    assert min(accuracy["mw-net"]) > 90
    assert sum(accuracy["mw-net"]) > sum(accuracy["ce"]) + 10


@pytest.mark.usefixtures("fast")
def test_samples_of_lowest_loss_are_clean_ones_of_each_class(idx_folder: Path) -> None:
    recipe = recipe_of(idx_folder, meta="lowest-loss", noise="symmetric", noise_rate=0.5, epochs=8, meta_per_class=6)
    task = read(recipe)
    method = make(recipe, task)
    assert isinstance(method, LowestLossMeta)
    fit(cpu(), method, task.loader, epochs=recipe.epochs, seed=0)
    assert torch.bincount(method.meta_target).tolist() == [6, 6, 6]
    right = true_classes(method.meta_images) == method.meta_target
    images, labels = batches_of(task)
    assert right.float().mean() > (true_classes(images) == labels).float().mean() + 0.2
    assert method.reweighter.batches == method.steps - method.warm_up_steps > 0


class Interrupted(Exception):
    pass


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "settings",
    [
        {"meta_per_class": 4, "interval": 2},
        {"method": "cmw-net-sl", "meta": "lowest-loss"},
        {"method": "mw-net", "meta": "lowest-loss"},
        {"meta": "balanced", "imbalance": 2.0, "normalize": "sum"},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    recipe = recipe_of(idx_folder, epochs=3, checkpoint_every=3, **settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    table = train_run(recipe, RunOptions(output=whole, device="cpu"), QUIET)
    steps = json.loads((whole / "results.json").read_text())["history"][0]["step"]
    after_step = LearntWeights.after_step

    def interrupt(method: LearntWeights) -> None:
        after_step(method)
        if method.steps == 2 * steps + 4:  # past a checkpoint within the third epoch
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(LearntWeights, "after_step", interrupt)
        with pytest.raises(Interrupted):
            train_run(recipe, RunOptions(output=broken, device="cpu"), QUIET)
    assert train_run(recipe, RunOptions(output=broken, device="cpu", resume=True), QUIET) == table
    one, two = (torch.load(folder / LAST, weights_only=True) for folder in (whole, broken))
    assert one["history"] == two["history"]
    extra, other_extra = (state["method"].pop("_extra_state") for state in (one, two))
    assert extra["batches"] == other_extra["batches"] > 0
    for index, moments in extra["meta_optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other_extra["meta_optimizer"]["state"][index][name])
    assert one["method"].keys() == two["method"].keys()
    for name, value in one["method"].items():
        assert torch.equal(value, two["method"][name]), name
    assert Run.load(broken).evaluate(part="test", device="cpu", progress=False) == table


NAMES = ["dark", "red", "blue sky"]


def test_a_file_names_the_classes_of_arrays(idx_folder: Path) -> None:
    (idx_folder / "classes.txt").write_text("\n".join(NAMES))
    assert read(recipe_of(idx_folder, method="ce")).facts["names"] == NAMES
    (idx_folder / "classes.txt").write_text("\n".join(NAMES[:2]))
    with pytest.raises(ProblemsError, match="2 names of 3 classes"):
        read(recipe_of(idx_folder, method="ce"))


@pytest.mark.usefixtures("fast")
def test_lists_with_a_meta_set(list_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (list_folder / "classes.txt").write_text("\n".join(NAMES))
    recipe = recipe_of(list_folder, batch_size=8, image_size=12, patience=1)
    task = read(recipe)
    assert set(batches_of(task)[3].tolist()) == {0, 1, 2}
    test_images = torch.cat([images for images, *_ in task.test.loader])
    train_run(recipe, RunOptions(output=output, device="cpu"), QUIET)
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["samples"] == {"train": 24, "meta": 3, "validation": 3, "test": 6}
    assert read_run(output)[2] == {
        "classes": 3,
        "class_counts": [8, 8, 8],
        "image_shape": [3, 14, 14],
        "view_size": 12,
        "names": NAMES,
    }
    weight_net = load_weight_net(output)
    best = torch.load(output / BEST, weights_only=True)["method"]
    assert all(torch.equal(value, best[f"weight_net.{name}"]) for name, value in weight_net.state_dict().items())
    predictions = rows_of(output / "predictions.csv")
    assert [row["name"] for row in predictions] == [f"image {i}.png" for i in range(30, 36)]
    assert [row["class"] for row in predictions] == [NAMES[int(row["label"])] for row in predictions]
    (list_folder / "classes.txt").unlink()
    assert Run.load(output, list_folder).evaluate(part="test", device="cpu", progress=False) == results["test"]
    (list_folder / "classes.txt").write_text("red\ndark\nblue sky\n")
    with pytest.raises(SettingsError, match=r"has other names than the run: \['red', 'dark', 'blue sky'\] and not"):
        Run.load(output, list_folder).evaluate(part="test", device="cpu", progress=False)
    (list_folder / "classes.txt").unlink()
    (list_folder / "train.txt").write_text("image 0.png 0\nimage 3.png 0\nimage 1.png 1\nimage 4.png 1\n")
    for name in ("meta.txt", "val.txt", "test.txt"):
        (list_folder / name).write_text("image 30.png 0\n")
    with pytest.raises(SettingsError, match="has other classes than the run: 2 and not 3"):
        Run.load(output, list_folder).evaluate(part="test", device="cpu", progress=False)
    (list_folder / "some.txt").write_text("image 31.png\nimage 30.png\n")
    Run.load(output).write_predictions(
        list_folder / "some.txt", tmp_path / "predicted.csv", device="cpu", progress=False
    )
    # Of the trained network on the same batch: in another, BLAS may round a row differently.
    trained = recipe.make_method(read_run(output)[2]).eval()
    trained.load_state_dict(best)
    with torch.no_grad():
        confidence, label = trained.predict(test_images[[1, 0]]).softmax(dim=1).max(dim=1)
    predicted = rows_of(tmp_path / "predicted.csv")
    assert [row["name"] for row in predicted] == ["image 31.png", "image 30.png"]
    assert [row["label"] for row in predicted] == [predictions[1]["label"], predictions[0]["label"]]
    assert [int(row["label"]) for row in predicted] == label.tolist()
    assert [float(row["confidence"]) for row in predicted] == confidence.tolist()


@pytest.mark.parametrize("settings", [{}, {"method": "ce-meta"}, {"meta": "balanced", "imbalance": 4.0}])
def test_images_on_disk_make_the_same_batches(
    list_folder: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(list_folder, image_size=12, batch_size=4, **settings)
    expected = batches_of(read(recipe))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dadl.data.images.KEPT_IN_MEMORY", 0)
    for _ in range(2):
        assert all(map(torch.equal, batches_of(read(recipe)), expected))
    assert len(list(tmp_path.glob("cache/dadl/*.npy"))) == 1


def test_a_network_of_the_user(idx_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(idx_folder, backbone="support.recipes:small_network", meta_per_class=4, epochs=1)
    table = train_run(recipe, RunOptions(output=tmp_path / "run", device="cpu"), QUIET)
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)["method"]
    assert state["network.1.weight"].shape == (CLASSES, 64)
    assert Run.load(tmp_path / "run", trust_code=True).evaluate(part="test", device="cpu", progress=False) == table


def test_every_bad_row_is_named(list_folder: Path) -> None:
    (list_folder / "train.txt").write_text("image 0.png 0\nimage 1.png red\nabsent.png 1\nimage 4.png 1\n")
    (list_folder / "meta.txt").write_text("image 24.png 0\nimage 25.png 7\n")
    (list_folder / "test.txt").write_text("image 30.png 2\n")
    with pytest.raises(UserError) as error:
        read(recipe_of(list_folder))
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines if "val.txt" not in line] == [
        "train.txt:2",
        "train.txt:3",
        "meta.txt:2",
        "test.txt:1",
    ]
    assert "class without a row in train.txt" in lines[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "^cmw-net needs clean meta samples, but .* has no meta.txt. Write one"),
        ({"method": "ce-meta"}, "ce-meta needs clean meta samples"),
        ({"meta_per_class": 81}, "class 0 has 80"),
        ({"meta_per_class": 80}, "no training samples of class 0, 1, 2"),
        ({"method": "ce", "imbalance": 1000.0}, "no training samples of class 2"),
        ({"method": "ce", "patience": 1}, "has no val.txt; set val-fraction"),
        ({"method": "ce", "image_size": 32}, "image-size is for listed images"),
        ({"method": "ce", "network": "efficientnet-lite0"}, "but these have 1 and 12: choose network resnet32"),
        ({"method": "ce", "backbone": "nowhere:network"}, "backbone 'nowhere:network' cannot be used"),
        ({"method": "ce", "noise": "cifar10-flip", "noise_rate": 0.4}, "there are 3 classes"),
    ],
)
def test_settings_that_the_data_do_not_allow(idx_folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(recipe_of(idx_folder, **settings))


def test_lists_have_their_own_meta_and_validation_samples(list_folder: Path) -> None:
    for settings, message in (({"meta_per_class": 1}, "has meta.txt"), ({"val_fraction": 0.1}, "has val.txt")):
        with pytest.raises(SettingsError, match=message):
            read(recipe_of(list_folder, **settings))


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither idx files .* nor is there a list .*train\.txt"):
        read(recipe_of(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "flip"}, "noise flip with noise-rate 0"),
        ({"noise_rate": 0.2}, "noise none with noise-rate 0.2"),
        ({"meta": "balanced", "noise": "flip", "noise_rate": 0.2}, "assumes correct training labels"),
        ({"meta": "balanced", "meta_per_class": 2}, "leave out meta-per-class"),
        ({"meta": "lowest-loss", "epochs": 1}, "epochs to 2 or more"),
        ({"meta": "lowest-loss", "method": "ce-meta"}, "ce-meta also trains on clean meta samples"),
        ({"accumulate": 2}, "leave out accumulate"),
        ({"precision": "16-mixed"}, "not in 16-mixed"),
        ({"method": "cmw-net-sl", "normalize": "sum"}, "leave out normalize"),
    ],
)
def test_settings_that_cannot_be_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        recipe_of(Path(), **settings)
