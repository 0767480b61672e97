"""Imbalanced regression as an estimator of scikit-learn."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..options import Device
from ..output import JobProgress
from ..ranksim.settings import Loss, Transform
from ..recipes import make_recipe
from ..runs.folder import as_json
from ..runs.recipe import build_method
from ..training.fabric import make_fabric
from ..training.loop import fit

HELD_OUT = 2
"""Rows that the recipe wants for validation and test each; copies of training rows, as nothing is chosen by them."""


class ImbalancedRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A network of two layers on numbers, for targets of which some are rare: the ``ranksim`` recipe in memory.

    It works in pipelines, ``GridSearchCV`` and ``cross_val_score``. All rows train; for early stopping, checkpoints,
    other kinds of columns and scores by region see :func:`dadl.train`.

    Args:
        loss: of the predictions; ``"bmc"`` and ``"gai"`` are Balanced MSE.
        reweighting: ``"none"``, or weights of samples by the number of samples with a similar target, ``"inverse"`` or
            ``"sqrt-inverse"``.
        lds: smooth these numbers (label distribution smoothing); needs ``reweighting``.
        fds: feature distribution smoothing.
        ranksim: weight γ of RankSim.
        rnc: weight of Rank-N-Contrast.
        target_transform: what the network learns of a skewed target: ``"none"``, ``"log"`` or ``"quantile"``.
        hidden: width of both layers.
        epochs: passes over the data.
        lr: peak learning rate.
        batch_size: samples per step.
        device: where to train.
        random_state: seed of everything random, as scikit-learn has it.

    Attributes:
        module_: the trained network, raw features ``[n, F]`` to predictions ``[n]``, in float64.
        n_features_in_: F.
        feature_names_in_: the columns of the frame, if it was one.

    Raises:
        ValueError: parameters out of range or that contradict each other, fewer than two samples, or values that are
            not finite.
    """

    def __init__(
        self,
        *,
        loss: Loss = "l1",
        reweighting: str = "none",
        lds: bool = False,
        fds: bool = False,
        ranksim: float = 0.0,
        rnc: float = 0.0,
        target_transform: Transform = "none",
        hidden: int = 128,
        epochs: int = 100,
        lr: float = 1e-3,
        batch_size: int = 64,
        device: Device = "cpu",
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.reweighting = reweighting
        self.lds = lds
        self.fds = fds
        self.ranksim = ranksim
        self.rnc = rnc
        self.target_transform = target_transform
        self.hidden = hidden
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "ImbalancedRegressor":
        """Train on features ``[n, F]`` and targets ``[n]``; returns the estimator."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        if len(y) < 2:
            raise ValueError(f"n_samples={len(y)}: at least two are needed")
        if bool((y == y[0]).all()):
            self.module_: torch.nn.Module = _Constant(float(y[0]))
            return self
        rows = np.concatenate([np.arange(len(y)), *[np.arange(HELD_OUT)] * 2])
        table = {f"x{column}": X[rows, column] for column in range(X.shape[1])}
        split = np.repeat(["train", "val", "test"], [len(y), HELD_OUT, HELD_OUT])
        # From a search, numbers may be NumPy's.
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in self.get_params().items()
        }
        device, random_state = parameters.pop("device"), check_random_state(parameters.pop("random_state"))
        recipe = make_recipe(
            "ranksim",
            {
                "data": {**table, "target": y[rows], "split": split},
                "target": "target",
                "features": ("*",),
                "split": "split",
                "seed": int(random_state.randint(2**31 - 1)),
                **parameters,
            },
        )
        with _own_random_numbers():
            task = recipe.read(JobProgress(Console(quiet=True)))
            torch.manual_seed(recipe.seed)
            method = build_method(recipe, as_json(task.facts))
            fit(make_fabric(device), method, task.loader, epochs=recipe.epochs, seed=recipe.seed)
        # In float64 a row's prediction is the same whatever rows are predicted with it.
        self.module_ = method.cpu().eval().module().eval().double()
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Predictions ``[n]`` for features ``[n, F]``, in the unit of the target."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            predicted: npt.NDArray[np.float64] = self.module_(torch.from_numpy(np.array(X))).numpy()
        return predicted


class _Constant(torch.nn.Module):
    """The target, if all are the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_full((len(inputs),), self.value)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the global generators, which a training seeds, as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the training seeds it)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
