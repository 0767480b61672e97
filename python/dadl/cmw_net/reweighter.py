"""Training a network together with the network that weights its samples."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..processes.sums import process_count, total, total_count, totals
from .meta_gradient import (
    Batch,
    BatchObjective,
    ForwardPass,
    LossFunction,
    MetaMethod,
    MetaStep,
    Normalize,
    check_finite,
    check_options,
    check_steps,
    normalizer,
    random_state,
    set_random_state,
    weighted_batch,
    without_autocast,
)

COLLAPSED = 1e-3

cross_entropy = partial(F.cross_entropy, reduction="none")


@dataclass(frozen=True)
class Reweighted:
    """A batch's training loss, the meta loss (``None`` without a meta step) and the samples' weights, detached.

    With several processes the losses are over all rows, the same everywhere; the weights are those of the local rows.
    """

    loss: Tensor
    meta_loss: Tensor | None
    weights: Tensor


class MetaReweighter:
    r"""Trains a classifier on weighted losses and the weighting network on a meta set, alternately.

    One step of Meta-Weight-Net and CMW-Net on a batch with losses :math:`\ell_i(w)` and weights :math:`v_i = V(\ell_i;
    \theta)`, the losses as constants:

    1. virtual: :math:`w' = w'(g)`, the optimiser's step with :math:`g = \nabla_w \frac1N \sum_i v_i \ell_i`;
    2. meta: :math:`\theta` takes a step of ``meta_optimizer`` on the mean loss of the meta batch at :math:`w'`;
    3. real: :math:`w` takes the optimiser's step on :math:`\frac1N \sum_i v_i \ell_i` with the new weights.

    The derivative of the meta loss is that of :func:`dadl.meta_weight_gradient`. The forward pass of 1 is reused in 3,
    unless it draws random numbers (dropout): then 3 makes its own pass. A step costs two forward passes, three
    backward passes and the tangents of one forward pass.

    Models are plain modules: batch normalisation in training mode, tied and frozen parameters, any memory format.
    After a step the model's buffers are as after an ordinary step. If anything raises an error in a step, the model,
    both optimisers, the weighting network and the random number generators are restored.

    >>> reweighter = MetaReweighter(model, optimizer, CMWNet(counts), meta_optimizer=meta_optimizer)
    >>> for batch in loader:
    ...     result = reweighter.step(batch, next(meta_batches))

    Mixed precision: call :meth:`step` inside ``torch.autocast`` with bfloat16.

    Several processes, as soon as ``torch.distributed`` is initialised: each passes its own rows of the batch and of the
    meta batch, any number of them, and N, both losses and all gradients are summed over the processes. Networks and
    optimisers that start equal stay equal, and a step equals that of one process with all rows. The exception is batch
    normalisation, which uses the statistics of each process's own rows; its buffers differ unless
    ``DistributedDataParallel`` broadcasts them. All processes must call the same method. An error in only one of them,
    other than a loss that is not finite, leaves the others waiting.

    Then :meth:`loss` returns the loss of all rows, the same everywhere, with gradients for the local ones: a loop that
    averages gradients must multiply it by the number of processes. ``DistributedDataParallel`` may wrap the module that
    calls :meth:`loss`, but not the weighting network, which is already trained inside.

    Args:
        model: inputs to outputs, in training mode, not wrapped.
        optimizer: SGD, Adam or AdamW of the model's parameters and no others.
        weight_net: losses and targets ``[n]`` to weights ``[n]``, e.g. :class:`dadl.CMWNet`.
        meta_optimizer: of ``weight_net``.
        method: of the meta gradient: ``"jvp"``, ``"finite_difference"`` or ``"double_backward"``. If a layer has no
            forward-mode derivative, ``"jvp"`` warns once, names it, and becomes ``"finite_difference"``.
        interval: batches from one meta step to the next, starting with the first batch.
        normalize: N is the number of samples (``"mean"``) or the sum of the weights, as a constant (``"sum"``).
        loss_fn: outputs and targets to losses ``[n]``, without parameters of its own; also used for the meta batch.

    Raises:
        FloatingPointError: in a step, a loss that is not finite, naming its row in the batch; raised in every process.
        TypeError: an optimiser whose step is not supported.
        ValueError: an unknown option, an interval below 1, parameters of the optimiser that are not the model's;
            in a step, losses that are not ``[n]``, no meta batch where one is needed.

    A warning is issued once if all weights of a batch fall below 0.001: then the network is hardly trained any more,
    which ``CMWNet(..., floor=...)`` prevents. For checkpoints, ``state_dict`` holds the weighting network, its
    optimiser and the position in the interval.

    Sources: Shu, Yuan, Meng, Xu, "CMW-Net", TPAMI 2023; Shu et al., "Meta-Weight-Net", NeurIPS 2019.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        weight_net: nn.Module,
        *,
        meta_optimizer: Optimizer,
        method: MetaMethod = "jvp",
        interval: int = 1,
        normalize: Normalize = "mean",
        loss_fn: LossFunction = cross_entropy,
    ) -> None:
        check_options(method, normalize)
        check_steps(model, optimizer)
        if interval < 1:
            raise ValueError(f"expected interval >= 1, got {interval}")
        self.model, self.optimizer = model, optimizer
        self.weight_net, self.meta_optimizer = weight_net, meta_optimizer
        self.method: MetaMethod = method
        self.interval, self.loss_fn = interval, loss_fn
        self.normalize: Normalize = normalize
        self.batches = 0
        self._warned_of_collapse = False

    @property
    def needs_meta_batch(self) -> bool:
        """Whether the next batch includes a meta step."""
        return self.batches % self.interval == 0

    def step(self, batch: Any, meta_batch: Batch | None = None) -> Reweighted:
        """Train on one batch; ``meta_batch`` may be ``None`` if no meta step is due (:attr:`needs_meta_batch`)."""
        with self._all_or_nothing():
            result, forward = self._reweigh(batch, meta_batch)
            gradients = totals(forward.gradients(result.loss))
            with _restored(self.optimizer), _restored_parameters(forward.parameters.values()):
                for name, parameter in forward.parameters.items():
                    parameter.grad = gradients.get(name)
                self.optimizer.step()
            # Autocast caches copies of the parameters until it ends, which may be after this step.
            torch.clear_autocast_cache()
            self._finish(forward)
        return Reweighted(result.loss.detach(), result.meta_loss, result.weights)

    def loss(self, batch: Any, meta_batch: Batch | None = None, *, averaged_gradients: bool = False) -> Reweighted:
        """Steps 1 and 2, for loops that differentiate the loss and step the optimiser themselves.

        The returned loss has its graph. The virtual step is the optimiser's next one, so exactly one step must follow.
        With several processes set ``averaged_gradients`` inside ``DistributedDataParallel`` or ``fully_shard``: the
        loss is over the rows of all processes, with the gradient of the own ones, which those average.
        """
        with self._all_or_nothing():
            result, forward = self._reweigh(batch, meta_batch)
            self._finish(forward)
        if averaged_gradients:  # the value stays, the gradient is multiplied by the number of processes
            added = (process_count() - 1) * (result.loss - result.loss.detach())
            result = replace(result, loss=result.loss + added)
        return result

    def objective(self, batch: Any) -> BatchObjective:
        """The training loss of a batch as a function of the outputs. Called once per step."""
        return weighted_batch(batch, self.loss_fn)

    def _reweigh(self, batch: Any, meta_batch: Batch | None) -> tuple[Reweighted, ForwardPass]:
        meta = self.needs_meta_batch
        if meta and meta_batch is None:
            raise ValueError(f"batch {self.batches} needs a meta batch: one is due every {self.interval} batches")
        objective = self.objective(batch)
        rows = len(objective.inputs)
        forward = ForwardPass(self.model, objective, record=meta and self.method == "jvp")
        weights = self._weigh(forward)
        meta_loss = None
        if meta and meta_batch is not None:
            again = forward.is_random
            step = MetaStep(
                forward,
                weights,
                normalizer(weights, self.normalize, rows),
                meta_batch,
                self.loss_fn,
                self.optimizer,
                self.method,
                keep_graph=not again,
            )
            self.method, meta_loss = step.method, step.meta_loss
            self._meta_step(weights, step.weight_gradient)
            if again:
                forward = ForwardPass(self.model, objective)
            weights = self._weigh(forward)
        weights = weights.detach()
        self._report_collapse(weights)
        loss = forward.terms.total(weights) / normalizer(weights, self.normalize, rows)
        if process_count() > 1:
            loss = loss - loss.detach() + total(loss)
        return Reweighted(loss, meta_loss, weights), forward

    def _weigh(self, forward: ForwardPass) -> Tensor:
        weights: Tensor = self.weight_net(forward.terms.losses.detach(), forward.terms.targets)
        check_finite(weights, "weight in the batch", len(forward.objective.inputs))
        return weights

    def _meta_step(self, weights: Tensor, gradient: Tensor) -> None:
        learnt = {name: p for name, p in self.weight_net.named_parameters() if p.requires_grad}
        with without_autocast(weights):
            values = torch.autograd.grad(weights, list(learnt.values()), gradient.to(weights.dtype), allow_unused=True)
        self.meta_optimizer.zero_grad()
        for name, whole in totals(dict(zip(learnt, values, strict=True))).items():
            learnt[name].grad = whole
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad()

    def _report_collapse(self, weights: Tensor) -> None:
        if not self._warned_of_collapse and total_count(int((weights >= COLLAPSED).sum()), weights.device) == 0:
            self._warned_of_collapse = True
            warnings.warn(
                f"all weights of batch {self.batches} are below {COLLAPSED:g}, so it hardly trains the network; "
                "CMWNet(..., floor=...) keeps weights above a floor",
                stacklevel=4,
            )

    def _finish(self, forward: ForwardPass) -> None:
        forward.commit()
        self.batches += 1

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        device = next(self.model.parameters()).device
        random = random_state(device)
        try:
            with _restored(self.weight_net), _restored(self.meta_optimizer):
                yield
        except BaseException:
            set_random_state(device, random)
            raise

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight_net": self.weight_net.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "batches": self.batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight_net.load_state_dict(state["weight_net"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.batches = state["batches"]


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> Any: ...


@contextmanager
def _restored(holder: _Stateful) -> Iterator[None]:
    """Restore the state if the block raises an error."""
    state = copy.deepcopy(holder.state_dict())
    try:
        yield
    except BaseException:
        holder.load_state_dict(state)
        raise


@contextmanager
def _restored_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.detach().clone(), parameter.grad) for parameter in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value, gradient in before:
                parameter.copy_(value)
                parameter.grad = gradient
        raise
