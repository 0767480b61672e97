"""``--augment``: views of the user's, where they are used, and what is refused before any work."""

import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.chi_model.recipe import ChiModelRecipe
from dadl.cmw_net.recipe import CMWNetRecipe
from dadl.errors import SettingsError
from dadl.networks.user_views import OwnView, training_view
from dadl.networks.views import View
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.recipes import make_recipe
from dadl.runs.folder import read_run
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from dadl.self_tuning.recipe import SelfTuningRecipe
from rich.console import Console
from support.cli import results_of, train
from support.folders import grey_idx_folder, image_folder
from torch import Tensor, nn

QUIET = Console(quiet=True)
IMAGES = torch.randint(0, 256, (4, 3, 37, 37), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def corner(images: Tensor) -> Tensor:
    """The upper left of the images, of a random brightness."""
    return images[..., :-5, :-5] * torch.rand(len(images), 1, 1, 1, device=images.device)


def corners() -> Any:
    return corner


class Counting(nn.Module):
    """A view with a state, and with a parameter that training must leave alone."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.brightness = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        assert self.training
        self.calls += 1
        return corner(images) * self.brightness


def of_kornia() -> nn.Module:
    import kornia.augmentation as K

    return nn.Sequential(K.RandomResizedCrop((32, 32), scale=(0.3, 1.0)), K.ColorJiggle(0.4, 0.4, 0.4, 0.1))


def augmentation(function: Any) -> Any:
    return lambda: function


whole = augmentation(lambda images: images)
normalising = augmentation(lambda images: (corner(images) - 0.5) / 0.25)
undefined = augmentation(lambda images: corner(images) * torch.nan)
halved = augmentation(lambda images: corner(images).half())
listing = augmentation(lambda images: list(images))
failing = augmentation(lambda images: images @ torch.ones(7, 7))
nothing = augmentation(None)


@pytest.mark.parametrize("make", ["corners", "of_kornia", "Counting"])
def test_views_are_those_of_the_user_and_evaluation_has_the_middle(make: str) -> None:
    if make == "of_kornia":
        pytest.importorskip("kornia")
    state = torch.get_rng_state()
    view = training_view(f"{__name__}:{make}", 32, (3, 37, 37), crop_area=0.2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    one, two = view(IMAGES), view(IMAGES)
    assert one.shape == (4, 3, 32, 32)
    assert not torch.equal(one, two)
    assert not one.requires_grad
    torch.manual_seed(1)
    assert torch.equal(view(IMAGES), one)
    with torch.autocast("cpu", torch.bfloat16):
        assert view(IMAGES).dtype == torch.float32
    middle = View(32, crop_area=None).eval()(IMAGES)
    assert torch.equal(view.eval()(IMAGES), middle)


def test_without_a_name_the_view_is_ours() -> None:
    assert type(training_view(None, 32, (3, 37, 37), crop_area=0.2)) is View


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:view", "augment 'no_such_module:view' cannot be used .*no_such_module.*PYTHONPATH"),
        (f"{__name__}:whole", r"made float32 \[4, 3, 37, 37\] from .* expected float32 \[4, 3, 32, 32\] in \[0, 1\]"),
        (
            f"{__name__}:normalising",
            r"made float32 .* from -2 to .*, which the network itself normalises",
        ),
        (f"{__name__}:undefined", r"made float32 \[4, 3, 32, 32\] from nan to nan of float images \[4, 3, 37, 37\]"),
        (f"{__name__}:halved", r"made float16 \[4, 3, 32, 32\]"),
        (f"{__name__}:listing", "made a list"),
        (f"{__name__}:failing", r"failed on float images \[4, 3, 37, 37\]: .*37"),
        (f"{__name__}:nothing", "failed on float images"),
        ("math:pi", "failed on float images"),
    ],
)
def test_what_makes_no_views_is_refused(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training_view(name, 32, (3, 37, 37))


class GreyCorner(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, 12, 16)
        return images[..., :12]


def recipes_on_images(folder: Path) -> dict[str, Recipe]:
    """Each recipe that takes views, on data of its kind; all but cmw-net on images of 37 × 37 pixels."""
    lists = image_folder(folder / "lists")
    rows = (lists / "train_100.txt").read_text().split()
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    ages = "".join(f"{i},{path},{part}\n" for i, (path, part) in enumerate(zip(rows[::2], parts, strict=True)))
    (lists / "ages.csv").write_text(f"age,path,split\n{ages}")
    few: dict[str, Any] = {"data": lists, "labels": 30, "image_size": 32}
    return {
        "self-tuning": SelfTuningRecipe(**few),
        "fixmatch": SelfTuningRecipe(**few, method="fixmatch"),
        "chi-model": ChiModelRecipe(**few),
        "ranksim": RankSimRecipe(data=lists / "ages.csv", image_size=32),
        "cmw-net": CMWNetRecipe(data=grey_idx_folder(folder / "idx"), method="ce"),
    }


def with_augment(recipe: Recipe, name: str) -> Recipe:
    return make_recipe(recipe.name, {**{k: v for k, v in vars(recipe).items() if v is not None}, "augment": name})


@pytest.mark.parametrize("kind", ["self-tuning", "fixmatch", "chi-model", "ranksim", "cmw-net"])
def test_every_recipe_on_images_takes_one(tmp_path: Path, kind: str) -> None:
    recipe = recipes_on_images(tmp_path)[kind]
    progress = JobProgress(QUIET)
    with pytest.raises(SettingsError, match=rf"augment {__name__}:failing failed on float images \[4, "):
        with_augment(recipe, f"{__name__}:failing").read(progress)
    task = recipe.read(progress)
    name = "GreyCorner" if kind == "cmw-net" else "corners"
    torch.manual_seed(0)
    ours = recipe.make_method(task.facts)
    torch.manual_seed(0)
    method = with_augment(recipe, f"{__name__}:{name}").make_method(task.facts)
    views = [module for module in method.modules() if isinstance(module, View)]
    assert [type(view) for view in views] == [OwnView] + [View] * (kind == "fixmatch")
    assert all(map(torch.equal, method.parameters(), ours.parameters()))
    (images, *_) = next(iter(task.test.loader))
    with torch.no_grad():
        assert torch.equal(method.eval().predict(images), ours.eval().predict(images))


def test_a_run_knows_its_views_and_keeps_their_state(tmp_path: Path) -> None:
    data = grey_idx_folder(tmp_path / "idx")
    make = partial(CMWNetRecipe, data=data, method="ce", epochs=2, batch_size=6, augment=f"{__name__}:CountingGrey")
    output = tmp_path / "run"
    table = train_run(make(), RunOptions(output=output, device="cpu"), QUIET)
    state = torch.load(output / "last.ckpt", weights_only=True)["method"]
    assert state["view.augmentation.calls"] == 2 * 2 + 1  # a call checks it
    assert state["view.augmentation.brightness"] == 0.5
    assert read_run(output)[1]["augment"] == f"{__name__}:CountingGrey"
    assert Run.load(output, trust_code=True).evaluate(part="test", device="cpu", progress=False) == table
    with pytest.raises(SettingsError, match=f"other settings: augment {__name__}:CountingGrey and not None"):
        train_run(make(augment=None), RunOptions(output=output, device="cpu", resume=True), QUIET)


class CountingGrey(Counting):
    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images[..., :12] * self.brightness


def test_views_are_for_images(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="augment m:n is for images, but there are none"):
        RankSimRecipe(data=tmp_path, target="y", features=("a",), augment="m:n")
    with pytest.raises(SettingsError, match="leave out one of the two"):
        RankSimRecipe(data=tmp_path, augment="m:n", keep_positions=True)


def test_the_module_in_the_documentation_makes_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kornia")
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n( *import kornia.*?)```", page, re.DOTALL)
    (tmp_path / "views_of_page.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    view = training_view("views_of_page:strong", 224, (3, 256, 256))
    images = torch.rand(2, 3, 256, 256)
    assert not torch.equal(view(images), view(images))


@pytest.mark.parametrize("flip", [True, False])
def test_mirroring_is_of_our_views(tmp_path: Path, flip: bool) -> None:
    options: dict[str, Any] = {"data": tmp_path, "flip": flip}
    few: dict[str, Any] = {"labels": 30, "augment": "m:n"} | options
    for make in (partial(SelfTuningRecipe, **few), partial(CMWNetRecipe, augment="m:n", **options)):
        with pytest.raises(SettingsError, match="flip configures: leave out one of the two"):
            make()
    SelfTuningRecipe(method="fixmatch", **few)  # whose weak views are ours
    for recipe in (SelfTuningRecipe(labels=30, **options), CMWNetRecipe(**options)):
        assert recipe.flip == flip


@pytest.mark.slow
def test_the_command_trains_with_views_of_kornia(tmp_path: Path) -> None:
    pytest.importorskip("kornia")
    data, runs = image_folder(tmp_path / "data"), [tmp_path / "one", tmp_path / "two"]
    for output in runs:
        result = train(data, output, "--augment", f"{__name__}:of_kornia")
        assert result.returncode == 0, result.stderr
    one, two = map(results_of, runs)
    assert one["settings"]["augment"] == f"{__name__}:of_kornia"
    assert one["history"] == two["history"]
