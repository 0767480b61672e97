"""Training of a recipe from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.columns.arrays import TARGET, is_pair
from ..options import Device, Logger
from ..recipes import make_recipe
from ..runs.settings import RunOptions
from ..runs.train import train_run
from .run import Run


def train(
    recipe: str,
    *,
    data: Any,
    output: Path | str | None = None,
    resume: bool = False,
    device: Device = "auto",
    search: int | None = None,
    logger: Sequence[Logger] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a recipe, test it once, and return its run. What ``dadl train`` does, with the same settings.

    >>> run = dadl.train("ranksim", data=frame, target="price", features=["*"], output="houses")
    >>> run.scores["few"]["MAE"], run.predict(new_frame)

    Args:
        recipe: ``"ranksim"``, ``"self-tuning"``, ``"chi-model"`` or ``"cmw-net"``.
        data: file or folder. For tables (``"ranksim"``) also a frame of pandas, polars or pyarrow, or NumPy arrays: a
            mapping from names to columns, or a pair ``(X, y)``, whose columns are called ``x0``, ``x1`` ... and ``y``
            and are all used unless settings name others.
        output: folder of the run; by default ``dadl-train-RECIPE``.
        resume: continue from the folder's checkpoint, or start if there is none.
        device: where to compute.
        search: number of trials that tune settings on validation; the run of the best one is returned.
        logger: where to log besides ``log.csv``: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``.
        progress: show progress and results on the console.
        settings: those of ``dadl train RECIPE --help``, with underscores.

    Raises:
        UserError: all problems of the data, the settings or the folder, before training; or a training that diverges.
    """
    if is_pair(data):
        settings = {"target": TARGET, "features": ("*",), **settings}
    made = make_recipe(recipe, {"data": data, **settings})
    options = RunOptions(
        output=None if output is None else Path(output),
        resume=resume,
        device=device,
        search=search,
        logger=tuple(logger),
    )
    train_run(made, options, Console(quiet=not progress))
    return Run.load(options.folder(made.name), data, trust_code=True)
