"""RankSim's share of the gradient at the features: measured in passing, logged, resumed, the measure of a search."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl.data.rows import tensor_loader
from dadl.ranksim.gradient_share import weights_of_shares
from dadl.ranksim.method import SHARE, Regression
from dadl.ranksim.recipe import SEARCHED_SHARES, RankSimRecipe
from dadl.runs.train import RunOptions, train_run
from dadl.training import fit
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from dadl_ext import RankSimLoss

CPU = torch.device("cpu")


def method_of(weight: float) -> Regression:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
    return Regression(encoder, nn.Linear(16, 1), RankSimLoss(weight=weight) if weight else None, lr=1e-2)


def batches(n: int = 96) -> Any:
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 4, generator=draw)
    return tensor_loader(inputs, inputs.sum(dim=1), torch.ones(n), batch_size=32)


def gradients(method: Regression, batch: Any, weight: float) -> tuple[float, float]:
    """Squared norms at the features of the task's gradient and RankSim's, each by a backward pass of its own."""
    inputs, target, weights = batch
    squares = []
    for loss in (
        lambda z: method.loss(method.head(z).squeeze(1), target, weights),
        lambda z: RankSimLoss(weight=weight)(z, target),
    ):
        features = method.encoder(inputs).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(features), features)
        squares.append(float(gradient.square().sum()))
    return squares[0], squares[1]


def test_the_share_is_that_of_all_steps() -> None:
    method = method_of(0.5)
    method.train()
    expected = torch.zeros(2)
    for batch in batches():
        expected += torch.tensor(gradients(method, batch, 0.5))
        method(batch).mul(1024).backward()  # a loss scale changes both
        method.after_step()
    assert expected[1] > 0
    share = method.epoch_log()[SHARE]
    assert share == pytest.approx(float((expected[1] / expected[0]).sqrt()), rel=1e-4)
    assert method.epoch_log()[SHARE] != share  # each epoch begins anew
    assert method_of(0).epoch_log() == {}


def test_measuring_changes_no_gradient() -> None:
    method, plain = method_of(0.5), method_of(0.5)
    batch = next(iter(batches()))
    method.train()(batch).backward()
    features = plain.encoder(batch[0])
    (plain.task(features, *batch[1:]) + RankSimLoss(weight=0.5)(features, batch[1])).backward()
    for own, other in zip(method.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)  # type: ignore[arg-type]


def test_checkpoints_without_sums_are_loaded() -> None:
    method = method_of(0.5)
    old = {name: value for name, value in method.state_dict().items() if not name.startswith("share.")}
    assert len(old) == len(method.state_dict()) - 1
    method.load_state_dict(old)


def test_a_resumed_epoch_has_the_same_share(tmp_path: Path) -> None:
    def trained(folder: Path, stop: int | None) -> list[float]:
        method, steps = method_of(0.5), 0

        def on_step() -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise InterruptedError

        options: dict[str, Any] = {"epochs": 2, "folder": folder, "checkpoint_every": 2, "on_step": on_step}
        history = fit(Fabric(accelerator="cpu", devices=1), method, batches(), **options)
        return [row[SHARE] for row in history]

    whole = trained(tmp_path / "whole", None)
    with pytest.raises(InterruptedError):
        trained(tmp_path / "parts", 6)
    assert trained(tmp_path / "parts", None) == whole
    assert SHARE in (tmp_path / "parts" / "log.csv").read_text().splitlines()[0]


def test_the_weights_of_a_search_have_the_shares_they_are_named_for() -> None:
    method = method_of(0)
    found = weights_of_shares(method, RankSimLoss(), batches(), 20, CPU, 0.05, 2.0)
    assert found is not None
    for weight, wanted in zip(found, (0.05, 2.0), strict=True):
        squares = torch.tensor([gradients(method, batch, weight) for batch in batches()]).sum(dim=0)
        share = float((squares[1] / squares[0]).sqrt())
        # The grid has four weights in a factor of ten, and the blackbox gradient grows in steps.
        assert wanted <= share < 4 * wanted


def table(folder: Path) -> Path:
    path = folder / "t.csv"
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 2, generator=draw).tolist()
    path.write_text("y,x\n" + "".join(f"{3 * x + 0.1 * noise},{x}\n" for x, noise in rows))
    return path


def shown(recipe: RankSimRecipe, output: Path, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    train_run(recipe, RunOptions(output=output, device="cpu", **options), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_numbers_alone_are_learnt_without_ranksim_unless_asked(tmp_path: Path) -> None:
    recipe = RankSimRecipe(data=table(tmp_path), target="y", features=("x",), epochs=2, hidden=8)
    text = shown(recipe, tmp_path / "plain")
    assert "RankSim is off, as it is for numbers alone unless --ranksim says its weight" in text
    assert "RankSim share" not in text
    assert json.loads((tmp_path / "plain" / "run.json").read_text())["facts"]["ranksim"] == 0
    text = shown(RankSimRecipe(data=recipe.data, target="y", features=("x",), epochs=2, ranksim=100), tmp_path / "on")
    assert "is off" not in text
    assert text.count("RankSim share") == 2
    assert text.count("Warning: RankSim's gradient at the features is ") == 1


def test_a_search_ranges_over_shares(tmp_path: Path) -> None:
    recipe = RankSimRecipe(data=table(tmp_path), target="y", features=("x",), epochs=4, hidden=8, lr=0.01)
    text = shown(recipe, tmp_path / "search", search=2)
    low, high = (float(word) for word in text.split("Searching ranksim from ")[1].split(",")[0].split(" to "))
    assert 0 < low < high < 1e3
    assert 0 < SEARCHED_SHARES[0] < SEARCHED_SHARES[1] == 1
    assert f"from {low:.3g} to {high:.3g}" in shown(recipe, tmp_path / "search", search=3, resume=True)
