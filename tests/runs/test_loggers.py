"""``--logger``: every logger gets every number, hears how the run ended, and says what it needs."""

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from dadl.errors import SettingsError
from dadl.runs import train as training
from lightning_fabric.loggers.logger import Logger
from support.runs import Perceptron, TinyRecipe, numbers, run


class Remembering(Logger):
    """In place of Lightning's loggers, whose packages are large."""

    made: ClassVar[list[Any]] = []
    version = 0

    def __init__(self, **options: Any) -> None:
        self.options, self.rows, self.settings, self.status = options, [], {}, None
        self.made.append(self)

    @property
    def name(self) -> str:
        return type(self).__name__

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, params: Any) -> None:
        self.settings = params

    def finalize(self, status: str) -> None:
        self.status = status


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    fake = types.ModuleType("lightning.pytorch.loggers")
    fake.MLFlowLogger, fake.WandbLogger = (type(name, (Remembering,), {}) for name in ("MLFlow", "Wandb"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers", fake)
    monkeypatch.setattr(Remembering, "made", [])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Remembering.made


def test_each_logger_gets_settings_numbers_and_the_end(made: list[Any], tmp_path: Path) -> None:
    recipe = TinyRecipe(data=numbers(tmp_path / "rows.txt"), epochs=2)
    run(recipe, tmp_path / "run", logger=("wandb", "mlflow", "wandb"))
    wandb, mlflow = made
    assert wandb.options == {"name": "run", "project": "dadl", "save_dir": tmp_path / "run"}
    assert mlflow.options["tracking_uri"] == (tmp_path / "run" / "mlflow").as_uri()
    for logger in made:
        assert logger.settings["epochs"] == 2
        assert len(logger.rows) == 2
        assert {"loss", "val all MAE"} <= logger.rows[0].keys()
        assert logger.status == "success"


@pytest.mark.parametrize("error", [InterruptedError, KeyboardInterrupt])
def test_a_run_that_does_not_end_well_is_marked(
    made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop(self: Perceptron) -> None:
        raise error

    monkeypatch.setattr(Perceptron, "after_step", stop)
    with pytest.raises(error):
        run(TinyRecipe(data=numbers(tmp_path / "rows.txt")), tmp_path / "run", logger=("mlflow",))
    assert made[0].status == "failed"


def test_data_that_cannot_be_read_are_told_too(made: list[Any], tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("1 nan\n" * 40)
    with pytest.raises(SettingsError, match="a number is missing"):
        run(TinyRecipe(data=tmp_path / "rows.txt"), tmp_path / "run", logger=("mlflow",))
    assert made[0].status == "failed"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers", None)
    recipe = TinyRecipe(data=numbers(tmp_path / "rows.txt"))
    with pytest.raises(SettingsError, match=r"logger wandb needs .* missing: pip install lightning wandb"):
        run(recipe, tmp_path / "run", logger=("wandb",))
    assert not (tmp_path / "run").exists()
    assert training.make_loggers((), tmp_path, {}) == []
