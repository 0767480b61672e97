"""A tiny method and recipe, whose runs tests interrupt, resume and compare."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from dadl.data.fingerprint import fingerprint
from dadl.data.rows import tensor_loader
from dadl.errors import SettingsError
from dadl.options import Logger
from dadl.output import JobProgress
from dadl.runs.recipe import Evaluation, Recipe, RecipeData, Scores
from dadl.runs.scores import unscored
from dadl.runs.train import RunOptions, train_run
from dadl.training import Method
from rich.console import Console
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

FEATURES, VALIDATION, TEST = 3, 16, 13  # the test is no multiple of anything

FILES = ("config.yaml", "run.json", "log.csv", "table.md", "predictions.csv")

QUIET = Console(quiet=True)


class Perceptron(Method):
    """With dropout, which draws random numbers, and batch normalisation, which has statistics."""

    report: ClassVar[int | None] = None
    """Where to write a letter as training begins, and one after each step."""

    stop_after: ClassVar[int | None] = None
    """Steps after which an exception ends this process's training."""

    pause: ClassVar[float] = 0.0
    """Seconds of each step."""

    waits_after: ClassVar[int | None] = None
    """Steps of this process after which it waits to be killed, however long that takes."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.own_steps = 0

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, target = batch
        return nn.functional.mse_loss(self.network(inputs).squeeze(-1).float(), target)

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs).squeeze(-1)  # type: ignore[no-any-return]

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        self._tell()
        optimizer = SGD(self.parameters(), lr=0.02, momentum=0.9)
        return optimizer, StepLR(optimizer, step_size=30, gamma=0.8)

    def after_step(self) -> None:
        self.steps += 1
        time.sleep(self.pause)
        self._tell()
        self.own_steps += 1
        if self.own_steps == self.waits_after:
            time.sleep(60)
        if self.steps == self.stop_after:
            raise InterruptedError

    def _tell(self) -> None:
        if self.report is not None:
            os.write(self.report, b".")


@dataclass(frozen=True, kw_only=True)
class TinyRecipe(Recipe):
    """Rows of numbers, the last of which is the target."""

    name: ClassVar[str] = "tiny"
    recipe: ClassVar[str] = f"{__name__}:TinyRecipe"

    epochs: int = 4
    batch_size: int = 4
    checkpoint_every: int = 3

    def read(self, progress: JobProgress) -> RecipeData:
        rows = self._rows(self.data)
        if not rows.isfinite().all():
            raise SettingsError(f"{self.data}: a number is missing")
        parts = rows.split([len(rows) - VALIDATION - TEST, VALIDATION, TEST])
        train, *others = ((part[:, :-1], part[:, -1]) for part in parts)
        validation, test = (
            Evaluation(
                [str(i) for i in range(len(target))],
                tensor_loader(inputs, target, batch_size=4),
                lambda predicted, target=target: score(predicted, target),
            )
            for inputs, target in others
        )
        return RecipeData(
            facts={"features": rows.shape[1] - 1, "largest": float(train[1].max())},
            sizes={"train": len(train[1]), "validation": VALIDATION, "test": TEST},
            fingerprints={
                "train": fingerprint(*train),
                "validation": fingerprint(parts[1]),
                "test": fingerprint(parts[2]),
            },
            loader=tensor_loader(*train, batch_size=self.batch_size, shuffle=True),
            validation=validation,
            test=test,
        )

    def make_method(self, facts: Mapping[str, Any]) -> Method:
        return Perceptron()

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        rows = self._rows(data)[-TEST:, :-1]
        return Evaluation([str(i) for i in range(len(rows))], tensor_loader(rows, batch_size=4), unscored)

    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        return torch.randn(count, facts["features"])

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return {"prediction": predicted.tolist()}

    @staticmethod
    def _rows(file: Path) -> Tensor:
        return torch.tensor([[float(x) for x in line.split()] for line in file.read_text().splitlines()])


def score(predicted: Tensor, target: Tensor) -> Scores:
    error = (predicted - target).abs()
    return {"all": {"MAE": float(error.mean())}, "low": {"MAE": float(error[target <= 0].mean())}}


def numbers(file: Path, train: int = 48, seed: int = 0) -> Path:
    inputs = torch.randn(train + VALIDATION + TEST, FEATURES, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([inputs, inputs.sin().sum(dim=1, keepdim=True)], dim=1)
    file.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()))
    return file


def run(recipe: Recipe, output: Path, resume: bool = False, logger: tuple[Logger, ...] = ()) -> Scores:
    return train_run(recipe, RunOptions(output=output, resume=resume, logger=logger, device="cpu"), QUIET)


def history_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["history"]


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def assert_same_run(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(*(torch.load(folder / name, weights_only=True) for folder in (one, other)))
    assert history_of(one) == history_of(other)
    assert not list(other.glob(".*"))  # no temporary files
