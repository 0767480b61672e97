"""The gradient of the loss on a meta batch after one training step, with respect to the sample weights in that step."""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from ..processes.sums import total, total_count, totals
from .forward_mode import ForwardRecord, NoForwardRuleError, Pushforward
from .virtual_step import check_optimizer, virtual_step

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Any, Tensor], Tensor]
MetaMethod = Literal["jvp", "finite_difference", "double_backward"]
Normalize = Literal["mean", "sum"]

# As a fraction of the parameters' norm. Kinks of the network matter more than rounding, so the step is small.
RELATIVE_STEP = {torch.float32: 1e-5, torch.float64: 1e-7}


@dataclass(frozen=True)
class WeightedLosses:
    r"""A training loss that is affine in the weights, :math:`\frac1N \sum_i (v_i a_i + b_i)`.

    ``losses`` and ``targets``, ``[m]``, are the inputs of the weighting network; ``slope`` a and ``offset`` b, ``[m]``,
    depend on the parameters of the trained network.
    """

    losses: Tensor
    targets: Tensor
    slope: Tensor
    offset: Tensor | None = None

    def total(self, weights: Tensor) -> Tensor:
        total = (weights * self.slope).sum()
        return total if self.offset is None else total + self.offset.sum()


@dataclass(frozen=True)
class BatchObjective:
    """The inputs of a batch, and the training loss as a function of the network's outputs for them."""

    inputs: Tensor
    evaluate: Callable[[Any], WeightedLosses]


def weighted_batch(batch: Batch, loss_fn: LossFunction) -> BatchObjective:
    """The weighted mean of the samples' losses."""
    inputs, targets = batch

    def evaluate(output: Any) -> WeightedLosses:
        losses = sample_losses(loss_fn, output, targets)
        return WeightedLosses(losses, targets, losses)

    return BatchObjective(inputs, evaluate)


def sample_losses(loss_fn: LossFunction, output: Any, targets: Tensor) -> Tensor:
    """The losses ``[n]`` of ``n`` targets; raises a ``ValueError`` if ``loss_fn`` reduces them."""
    losses = loss_fn(output, targets)
    if losses.shape != targets.shape[:1]:
        raise ValueError(
            f"loss_fn must return one loss per sample, {list(targets.shape[:1])}, got shape {list(losses.shape)}; "
            'torch losses do with reduction="none"'
        )
    return losses


class ForwardPass:
    """One pass of a batch through the network, on copies of its buffers.

    The network itself is not changed; :meth:`commit` updates its buffers as an ordinary pass would have.
    """

    def __init__(self, model: nn.Module, objective: BatchObjective, *, record: bool = False) -> None:
        self.model, self.objective = model, objective
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffers = _copied_buffers(model)
        self.record = ForwardRecord()
        self._random_state = random_state(objective.inputs.device)
        if record:
            with self.record:
                self.terms = self._evaluate(self.buffers)
        else:
            self.terms = self._evaluate(self.buffers)
        after = random_state(objective.inputs.device)
        self.is_random = any(not torch.equal(a, b) for a, b in zip(self._random_state, after, strict=True))
        check_finite(self.terms.losses, "loss in the batch", len(objective.inputs))

    def _evaluate(self, changes: dict[str, Tensor]) -> WeightedLosses:
        return self.objective.evaluate(functional_call(self.model, changes, (self.objective.inputs,)))

    def evaluate_at(self, parameters: dict[str, Tensor]) -> WeightedLosses:
        """The same pass with the same random numbers, but with other parameters and without a graph."""
        with torch.no_grad(), random_numbers(self.objective.inputs.device, self._random_state):
            return self._evaluate(_copied_buffers(self.model) | parameters)

    def gradients(self, loss: Tensor, **options: Any) -> dict[str, Tensor | None]:
        """Gradients of the parameters; ``None`` for those that the loss does not depend on."""
        with without_autocast(loss):
            values = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True, **options)
        return dict(zip(self.parameters, values, strict=True))

    def commit(self) -> None:
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])


def _copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def meta_weight_gradient(
    model: nn.Module,
    batch: Batch,
    meta_batch: Batch,
    weights: Tensor,
    *,
    loss_fn: LossFunction,
    optimizer_or_lr: Optimizer | float,
    method: MetaMethod = "jvp",
    normalize: Normalize = "mean",
) -> Tensor:
    r"""The gradient of the meta loss after one training step with respect to the samples' weights in that step.

    With losses :math:`\ell_i(w)` of the batch, :math:`g = \nabla_w \frac1N \sum_i v_i \ell_i(w)` and the optimiser's
    step :math:`w'(g)`, the result is :math:`\partial L_{meta}(w') / \partial v_i = \frac1N \langle u, \nabla\ell_i(w)
    \rangle` with :math:`u = (\partial w' / \partial g)^T \nabla L_{meta}(w')`. For plain gradient descent :math:`u =
    -\alpha \nabla L_{meta}`. The n inner products are the derivative of the vector of losses along u, so nothing is
    differentiated twice.

    The network is evaluated in its current mode, usually training mode. Neither the network nor the optimiser is
    changed. Random numbers are drawn once for the batch and once for the meta batch. The step is that of SGD (with
    momentum, dampening, weight decay, Nesterov momentum), Adam or AdamW, from the optimiser's current state.

    With several processes, all must call this with the same network, each with its own rows of the batch, the meta
    batch and the weights. N, the step and the meta loss are over the rows of all processes, and the result equals that
    of a single process for the rows given here. Batch normalisation uses the statistics of each process's own rows.

    Args:
        model: inputs to outputs.
        batch: inputs ``[n, ...]`` and targets ``[n, ...]`` of the training step.
        meta_batch: inputs and targets of the loss after it, averaged over them.
        weights: ``[n]``, of any floating-point type; constants here.
        loss_fn: outputs and targets to losses ``[n]``, without parameters of its own.
        optimizer_or_lr: the optimiser of ``model``, or the learning rate of plain gradient descent.
        method: ``"jvp"``: forward mode, exact. ``"finite_difference"``: a central difference along u, for layers
            without forward mode; ``"jvp"`` warns and falls back to it. ``"double_backward"``: the textbook way, also
            exact, but slower and with more memory.
        normalize: N is the number of samples (``"mean"``) or the sum of the weights as a constant (``"sum"``).

    Returns:
        ``[n]``, of the losses' type.

    Raises:
        FloatingPointError: a loss that is not finite, naming its row in the batch; raised in every process.
        TypeError: an optimiser whose step is not supported.
        ValueError: an unknown method or normalisation, losses or weights of another shape than ``[n]``, parameters of
            the optimiser that are not the model's.

    Deterministic if the model is. Source: Shu et al., "Meta-Weight-Net", NeurIPS 2019, for the second-order
    gradient. It is linear in u, so one directional derivative computes it.
    """
    check_options(method, normalize)
    check_steps(model, optimizer_or_lr)
    forward = ForwardPass(model, weighted_batch(batch, loss_fn), record=method == "jvp")
    weights = weights.detach()
    if weights.shape != forward.terms.losses.shape:
        raise ValueError(f"expected weights {list(forward.terms.losses.shape)}, got shape {list(weights.shape)}")
    divisor = normalizer(weights, normalize, len(weights))
    meta = MetaStep(forward, weights, divisor, meta_batch, loss_fn, optimizer_or_lr, method)
    return meta.weight_gradient


class MetaStep:
    """A virtual training step and the loss after it; ``weight_gradient`` is the gradient of that loss.

    ``method`` becomes ``"finite_difference"`` if forward mode fails. With ``keep_graph`` the graph of ``forward`` can
    be used again.
    """

    def __init__(
        self,
        forward: ForwardPass,
        weights: Tensor,
        divisor: Tensor | int,
        meta_batch: Batch,
        loss_fn: LossFunction,
        optimizer_or_lr: Optimizer | float,
        method: MetaMethod,
        *,
        keep_graph: bool = False,
    ) -> None:
        self.method = method
        self._forward, self._weights = forward, weights.detach()
        twice = method == "double_backward"
        if twice:
            self._weights = self._weights.clone().requires_grad_()
        loss = forward.terms.total(self._weights) / divisor
        known = forward.gradients(loss, retain_graph=keep_graph or twice, create_graph=twice)
        own = {name: g for name, g in known.items() if g is not None}
        leaves = {name: g.requires_grad_() for name, g in totals(own).items()}  # everything that the step depends on

        gradients = [leaves.get(name) for name in forward.parameters]
        moved = virtual_step(optimizer_or_lr, list(forward.parameters.values()), gradients)
        inputs, targets = meta_batch
        changes = _copied_buffers(forward.model) | dict(zip(forward.parameters, moved, strict=True))
        losses = sample_losses(loss_fn, functional_call(forward.model, changes, (inputs,)), targets)
        check_finite(losses, "loss in the meta batch", len(inputs))
        meta_loss = losses.sum() / total_count(len(losses), losses.device)
        self.meta_loss = total(meta_loss)

        with without_autocast(meta_loss):
            values = torch.autograd.grad(meta_loss, list(leaves.values()), allow_unused=True)
            direction = totals(dict(zip(leaves, values, strict=True)))
            # The contribution of this process's rows to the change along it: all that depends on their weights.
            change = torch.as_tensor(sum((g * direction[name]).sum() for name, g in own.items() if name in direction))
            if twice:
                (gradient,) = torch.autograd.grad(
                    change, self._weights, retain_graph=keep_graph, materialize_grads=True
                )
        if not twice:
            gradient = self._along(direction, divisor * change, divisor * total(change)) / divisor
            forward.record.clear()  # otherwise it would keep tensors alive that the next backward pass frees
        if total_count(int((~gradient.isfinite()).sum()), gradient.device) > 0:
            raise FloatingPointError("the gradient of the meta loss is not finite, although the losses are")
        self.weight_gradient = gradient.detach()

    def _along(self, direction: dict[str, Tensor], expected: Tensor, whole: Tensor) -> Tensor:
        """The derivative of the slopes along ``direction``.

        The derivative of their weighted total should be ``expected``, and ``whole`` for the rows of all processes.
        """
        if self.method == "jvp":
            try:
                return _forward_difference(self._forward, direction, self._weights, expected, whole)
            except NotImplementedError as error:
                warnings.warn(
                    f"{_failed_layer(error, self._forward.model)} has no forward-mode derivative, so the meta gradient "
                    f"is a finite difference from now on: {str(error).splitlines()[0]}",
                    stacklevel=2,
                )
                self.method = "finite_difference"
        return _finite_difference(self._forward, direction)


def _forward_difference(
    forward: ForwardPass, direction: dict[str, Tensor], weights: Tensor, expected: Tensor, whole: Tensor
) -> Tensor:
    with fwd.dual_level():
        duals = {name: fwd.make_dual(forward.parameters[name].detach(), u) for name, u in direction.items()}
        with Pushforward(forward.record):
            terms = forward.evaluate_at(duals)
        slope, total = (fwd.unpack_dual(value).tangent for value in (terms.slope, terms.total(weights)))
    slope = torch.zeros_like(terms.slope) if slope is None else slope
    total = torch.zeros_like(expected) if total is None else total
    # The gradient of the total is known from the virtual step, so a lost tangent is noticed here. The comparison is
    # relative to all rows: the few rows of one process may all be fitted, leaving nothing but rounding errors.
    scale = torch.stack([(weights * slope).abs().sum(), expected.abs(), whole.abs()]).max()
    if bool((total - expected).abs() > _tolerance(slope) * scale):
        raise NoForwardRuleError(
            f"forward mode gives a directional derivative of {total.item():.3g}, backward mode {expected.item():.3g}"
        )
    return slope


def _finite_difference(forward: ForwardPass, direction: dict[str, Tensor]) -> Tensor:
    slope = forward.terms.slope.detach()
    lengths = [
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x.detach()) for x in tensors])).item()
        for tensors in ([forward.parameters[name] for name in direction], list(direction.values()))
        if tensors
    ]
    if not lengths or lengths[1] == 0:
        return torch.zeros_like(slope)
    if slope.dtype not in RELATIVE_STEP:
        raise TypeError(f"a finite difference needs losses in float32 or float64, got {slope.dtype}")
    step = RELATIVE_STEP[slope.dtype] * (lengths[0] or 1) / lengths[1]

    def at(distance: float) -> Tensor:
        moved = {name: forward.parameters[name].detach() + distance * u for name, u in direction.items()}
        with without_autocast(slope):
            return forward.evaluate_at(moved).slope

    difference: Tensor = (at(step) - at(-step)) / (2 * step)
    return difference


def _tolerance(slope: Tensor) -> float:
    """The tolerance for comparing forward with backward mode: above rounding errors, below a lost tangent."""
    full = slope.dtype in RELATIVE_STEP and not torch.is_autocast_enabled(slope.device.type)
    return 1e-3 if full else 0.1


def _failed_layer(error: BaseException, model: nn.Module) -> str:
    """The innermost layer that raised the error."""
    names = {module: name for name, module in model.named_modules()}
    found = "loss_fn"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            found = f"layer {names[module]!r} ({type(module).__name__})" if names[module] else type(module).__name__
    return found


def check_options(method: str, normalize: str) -> None:
    for name, value, known in (("method", method, get_args(MetaMethod)), ("normalize", normalize, get_args(Normalize))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")


def check_steps(model: nn.Module, optimizer_or_lr: Optimizer | float) -> None:
    """Raise an error if a step of the optimiser on the model cannot be taken virtually."""
    if not isinstance(optimizer_or_lr, Optimizer):
        return
    check_optimizer(optimizer_or_lr)
    own = set(model.parameters())
    foreign = sum(p not in own for group in optimizer_or_lr.param_groups for p in group["params"])
    if foreign:
        raise ValueError(f"the optimiser holds {foreign} parameters that are not the model's")


def check_finite(values: Tensor, what: str, rows: int) -> None:
    """Raise a ``FloatingPointError`` that names the first of the batch's ``rows`` whose value is not finite.

    If one process raises, all do; otherwise the others would wait for it.
    """
    wrong = (~values.isfinite()).nonzero()
    if total_count(len(wrong), values.device) > 0:
        if len(wrong) == 0:
            raise FloatingPointError(f"a {what} of another process is not finite")
        index = int(wrong[0])
        others = f", and {len(wrong) - 1} more are not finite" if len(wrong) > 1 else ""
        raise FloatingPointError(f"the {what} of row {index % rows} is {values[index].item()}{others}")


def normalizer(weights: Tensor, normalize: Normalize, rows: int) -> Tensor | int:
    """N for a batch with ``rows`` samples in this process; the sum of the weights is a constant and never 0."""
    if normalize == "mean":
        return total_count(rows, weights.device)
    return total(weights.sum()).clamp(min=torch.finfo(weights.dtype).tiny)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Turn autocast off for a backward pass, which runs in the dtypes of its forward pass."""
    return torch.autocast(tensor.device.type, enabled=False)


def random_state(device: torch.device) -> list[Tensor]:
    """The states of the default generators of the CPU and of ``device``."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def random_numbers(device: torch.device, state: list[Tensor]) -> Iterator[None]:
    """Draw random numbers from ``state``, and restore the generators afterwards."""
    before = random_state(device)
    set_random_state(device, state)
    try:
        yield
    finally:
        set_random_state(device, before)
