"""The χ-Model's minimax game as a module."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import functional as F
from .._shared.checks import check_measure
from .._shared.members import CLASS_MEASURES

__all__ = ["ChiModelLoss", "ChiModelTerms"]

PAIRINGS = ("cross", "same_view", "same_head", "all")


class ChiModelTerms(NamedTuple):
    """The result of :meth:`ChiModelLoss.terms`: scalars, of which only ``loss`` has a gradient."""

    loss: Tensor  # L_s + η L_χ
    supervised: Tensor  # L_s
    disagreement: Tensor  # L_χ, before η
    eta: Tensor  # η after the ramp
    clamped: Tensor  # the share of samples whose disagreement was clamped


class ChiModelLoss(nn.Module):
    r"""χ-Model: invariance to data and model stochasticity as one minimax game (Wang et al., ICLR 2022).

    For two heads φ₁, φ₂ of one architecture and the features ψ of two strong augmentations T₁, T₂,

    .. math:: L_s = \ell(\phi_1 \psi(x), y) + \ell(\phi_2 \psi(x), y), \quad
        L_\chi = \mathbb{E}_u\, d(\phi_1 \psi(T_1 u), \phi_2 \psi(T_2 u))

    ψ descends :math:`L_s + \eta L_\chi` and the heads descend :math:`L_s - \eta L_\chi`: the heads look for
    disagreement, and the features remove it. One backward does both. The authors published no code; this is our reading
    of the paper.

    >>> chi = ChiModelLoss(head_a, head_b, nn.L1Loss(), eta=0.1)
    >>> loss = chi(encoder(x), y, encoder(strong(u)), encoder(strong(u)))

    Args:
        head_a, head_b: modules from features to predictions, initialised separately, each with its own dropout.
        loss_fn: ℓ, from predictions and targets to a scalar.
        measure: d, see :func:`dadl_ext.functional.disagreement`: ``"l1"`` for regression, ``"softmax_l1"``,
            ``"symmetric_kl"`` or ``"js"`` for logits and heatmaps ``[B, J, H, W]``.
        eta: η. If ℓ and d are the same distance, keep it below 1: otherwise the heads lose nothing by moving apart
            around the label.
        pairing: ``"cross"`` as above; ``"same_view"``: both heads on each view (only model stochasticity);
            ``"same_head"``: both views under each head (only data stochasticity, the Π-Model); ``"all"``: the mean over
            all pairs that differ in view or head.
        minimax: if False, the heads descend :math:`L_s + \eta L_\chi` too.
        clamp: upper bound of d for a sample; above it neither side gets a gradient. Heads that maximise an unbounded d
            diverge: set a clamp, or end the heads in a bounded activation (a sigmoid, with targets scaled to [0, 1]).
            :attr:`bound` says which bound is in use.
        ramp_steps: η rises as ``exp(-5 (1 - t / ramp_steps)²)`` (Laine & Aila, ICLR 2017), where t counts the calls in
            training mode; 0 for no ramp. t is in ``state_dict``.

    Shape:
        features of the labelled samples, targets, features ``[B, ...]`` of the two views → ``[]``.

    Raises:
        ValueError: a setting is unknown or out of range, or views or predictions differ in shape.

    Second derivatives of L_χ raise (see :func:`dadl_ext.functional.disagreement`).
    """

    step: Tensor

    def __init__(
        self,
        head_a: nn.Module,
        head_b: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        *,
        measure: str = "l1",
        eta: float = 0.1,
        pairing: str = "cross",
        minimax: bool = True,
        clamp: float | None = None,
        ramp_steps: int = 0,
    ) -> None:
        super().__init__()
        check_measure(measure)
        if pairing not in PAIRINGS:
            raise ValueError(f"pairing must be one of {PAIRINGS}, got {pairing!r}")
        if not 0 <= eta < math.inf:
            raise ValueError(f"eta (η) must be non-negative and finite, got {eta}")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp must be positive or None, got {clamp}")
        if ramp_steps < 0:
            raise ValueError(f"ramp_steps must not be negative, got {ramp_steps}")
        self.head_a, self.head_b, self.loss_fn = head_a, head_b, loss_fn
        self.measure, self.pairing, self.minimax = measure, pairing, minimax
        self.max_eta, self.clamp, self.ramp_steps = eta, clamp, ramp_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def eta(self) -> Tensor:
        """η at the current step of the ramp, ``[]``. On the module's device, so that the host need not wait."""
        if self.ramp_steps == 0:
            return torch.full((), self.max_eta, dtype=torch.float64, device=self.step.device)
        left = (1 - self.step.double() / self.ramp_steps).clamp_min(0)
        return self.max_eta * torch.exp(-5 * left.square())

    @property
    def bound(self) -> str:
        """What keeps the heads' ascent from diverging."""
        if not self.minimax:
            return "not needed, because all parts descend"
        if self.clamp is not None:
            return f"clamp at {self.clamp}"
        if self.measure in ("softmax_l1", "js"):
            return "the measure's own"
        return "none in the loss, so the heads must bound their predictions"

    def forward(self, features: Tensor, targets: Tensor, view_1: Tensor, view_2: Tensor) -> Tensor:
        """The loss. Its one backward moves features and heads in their opposite directions."""
        return self.terms(features, targets, view_1, view_2).loss

    def terms(self, features: Tensor, targets: Tensor, view_1: Tensor, view_2: Tensor) -> ChiModelTerms:
        """The loss and its parts. Counts a step in training mode."""
        supervised = self.supervised(features, targets)
        if self.minimax:
            # The gradient is reversed twice for the features, which descend, and once for the heads, which ascend.
            rows = self._rows(F.reverse_gradient(view_1), F.reverse_gradient(view_2), self.head_a, self.head_b)
            bounded = F.reverse_gradient(self._bounded(rows))
        else:
            rows = self._rows(view_1, view_2, self.head_a, self.head_b)
            bounded = self._bounded(rows)
        disagreement = _mean(bounded)
        eta = self.eta.to(disagreement.dtype)
        self._advance()
        return ChiModelTerms(
            supervised + eta * disagreement, supervised.detach(), disagreement.detach(), eta, self._clamped(rows)
        )

    def supervised(self, features: Tensor, targets: Tensor) -> Tensor:
        """L_s."""
        return self.loss_fn(self.head_a(features), targets) + self.loss_fn(self.head_b(features), targets)

    def head_loss(self, features: Tensor, targets: Tensor, view_1: Tensor, view_2: Tensor) -> Tensor:
        r"""The heads' half of an alternating step, :math:`L_s - \eta L_\chi`, without a gradient to the features."""
        rows = self._rows(view_1.detach(), view_2.detach(), self.head_a, self.head_b)
        sign = -1 if self.minimax else 1
        loss = self.supervised(features.detach(), targets) + sign * self._weighted(_mean(self._bounded(rows)))
        self._advance()
        return loss

    def extractor_loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        r"""The features' half, :math:`\eta L_\chi`, without a gradient to the heads. It may be used several times."""
        rows = self._rows(view_1, view_2, _frozen(self.head_a), _frozen(self.head_b))
        return self._weighted(_mean(self._bounded(rows)))

    def predict(self, features: Tensor) -> Tensor:
        """The mean of the heads' predictions, or of their softmaxes for measures over classes, in the current mode."""
        a: Tensor = self.head_a(features)
        b: Tensor = self.head_b(features)
        return (_softmax(a) + _softmax(b) if self.measure in CLASS_MEASURES else a + b) / 2

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "step" in self.__dict__:  # pickled by version 0.1
            self.register_buffer("step", torch.tensor(self.__dict__.pop("step")))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if f"{prefix}_extra_state" in state_dict:  # of version 0.1
            state_dict[f"{prefix}step"] = torch.tensor(state_dict.pop(f"{prefix}_extra_state"))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return (
            f"measure={self.measure!r}, eta={self.max_eta}, pairing={self.pairing!r}, minimax={self.minimax}, "
            f"clamp={self.clamp}, ramp_steps={self.ramp_steps}, bound: {self.bound}"
        )

    def _rows(
        self, view_1: Tensor, view_2: Tensor, head_a: Callable[[Tensor], Tensor], head_b: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if view_1.shape != view_2.shape:
            raise ValueError(f"both views must be of one shape, got {tuple(view_1.shape)} and {tuple(view_2.shape)}")
        if self.pairing == "cross":
            groups = [[head_a(view_1), head_b(view_2)]]
        elif self.pairing == "all":
            groups = [[head_a(view_1), head_a(view_2), head_b(view_1), head_b(view_2)]]
        elif self.pairing == "same_view":
            groups = [[head_a(view), head_b(view)] for view in (view_1, view_2)]
        else:
            groups = [[head(view_1), head(view_2)] for head in (head_a, head_b)]
        for predictions in groups:
            if len({p.shape for p in predictions}) > 1:
                raise ValueError(f"both heads must return one shape, got {[tuple(p.shape) for p in predictions]}")
        rows = [F.disagreement(torch.stack(group), self.measure, reduction="none") for group in groups]
        return rows[0] if len(rows) == 1 else (rows[0] + rows[1]) / 2

    def _weighted(self, disagreement: Tensor) -> Tensor:
        return self.eta.to(disagreement.dtype) * disagreement

    def _bounded(self, rows: Tensor) -> Tensor:
        return rows if self.clamp is None else rows.clamp(max=self.clamp)

    def _clamped(self, rows: Tensor) -> Tensor:
        if self.clamp is None:
            return rows.new_zeros(())
        return _mean((rows.detach() > self.clamp).to(rows.dtype))

    def _advance(self) -> None:
        if not self.training:
            return
        if torch.compiler.is_compiling():
            self.step = self.step + 1  # a compiled backward may compute η again, from what the step was
        else:
            self.step.add_(1)  # in place, so that a CUDA graph counts its replays


def _mean(rows: Tensor) -> Tensor:
    return rows.sum() / max(rows.shape[0], 1)


def _frozen(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The head with its parameters as constants; its buffers are shared."""
    parameters = {name: value.detach() for name, value in head.named_parameters()}
    return lambda features: functional_call(head, parameters, (features,))


def _softmax(predictions: Tensor) -> Tensor:
    if predictions.dim() == 4:  # heatmaps
        return predictions.flatten(2).softmax(dim=-1).view_as(predictions)
    return predictions.softmax(dim=-1)
