"""The interface of a training method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader


class Method(nn.Module, ABC):
    """What one training method adds to the loop.

    Everything that a checkpoint must hold is in the module's ``state_dict``, including auxiliary networks and queues.
    A method need not care about precision, gradient accumulation or several processes: its ``forward`` is a plain
    function from a batch to a loss.
    """

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """The training loss of one batch from the loader, averaged over its samples."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """Predictions ``[B, ...]``; called in evaluation mode, without gradients."""

    def module(self) -> nn.Module:
        """The network that predicts, without what only training needs; by default all of the method.

        It shares its weights with the method, and is in evaluation mode if the method is.
        """
        return Predictor(self)

    @abstractmethod
    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimiser of the loss and its schedule, which advances after each of the ``total_steps`` steps."""

    def epoch_log(self) -> Mapping[str, float]:
        """Numbers of the epoch just trained for its log, always by the same names; called once after each epoch."""
        return {}

    def after_step(self) -> None:
        """Called after each optimiser step, e.g. to move a momentum encoder."""

    def after_epoch(self, epoch: int, loader: DataLoader[Any]) -> None:
        """Called after each epoch, from 1, in training mode, e.g. to gather statistics of the training data.

        ``loader`` gives the training batches again, possibly in another order.
        """


class Predictor(nn.Module):
    """A method's :meth:`~Method.predict` as a module."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, inputs: Tensor) -> Tensor:
        return self.method.predict(inputs)
