"""Loggers of a run besides its ``log.csv``: TensorBoard, Weights & Biases, MLflow."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..options import Logger

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger as FabricLogger

PACKAGES: Mapping[Logger, Sequence[str]] = {"wandb": ("lightning", "wandb"), "mlflow": ("lightning", "mlflow")}
"""What a logger needs that ``dadl[train]`` does not bring."""

PROJECT = "dadl"


def make_loggers(kinds: Sequence[Logger], folder: Path, settings: Mapping[str, Any]) -> list["FabricLogger"]:
    """The loggers of a run in ``folder``; raises a :class:`.SettingsError` if a package is missing.

    Without network Weights & Biases writes into the folder if ``WANDB_MODE=offline``, and MLflow if no
    ``MLFLOW_TRACKING_URI`` is set.
    """
    loggers = []
    for kind in dict.fromkeys(kinds):
        try:
            loggers.append(_make(kind, folder))
        except ImportError as error:  # lightning raises one that names no package
            packages = " ".join(PACKAGES.get(kind, ("tensorboardX",)))
            raise SettingsError(f"logger {kind} needs packages that are missing: pip install {packages}") from error
        if kind != "tensorboard":  # which would show them as a run of its own
            loggers[-1].log_hyperparams(dict(settings))
    return loggers


@contextmanager
def finished(loggers: Sequence["FabricLogger"]) -> Iterator[None]:
    """Close the loggers as the block ends, also by an error or Ctrl-C, and tell them whether it went well."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)  # writes what is still buffered
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if logger.name == PROJECT and finish is not None:  # Lightning leaves W&B's run open
                finish(exit_code=int(status != "success"))


def _make(kind: Logger, folder: Path) -> Any:
    if kind == "tensorboard":
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        # Flush every few seconds, in case the process is killed.
        return TensorBoardLogger(folder, name=None, version="tensorboard", flush_secs=5)
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    if kind == "wandb":
        folder.mkdir(parents=True, exist_ok=True)
        return WandbLogger(name=folder.name, project=PROJECT, save_dir=folder)
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
    return MLFlowLogger(experiment_name=PROJECT, run_name=folder.name, tracking_uri=tracking)
