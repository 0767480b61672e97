"""Disagreement between members as modules, and the reversal of gradients."""

import torch
from torch import Tensor, nn

from .. import functional as F
from .._shared.checks import check_measure, check_p, check_reduction, check_samples
from .._shared.operation import drawn

__all__ = ["DisagreementLoss", "DropoutDisagreementLoss", "GradientReversal"]


class GradientReversal(nn.Module):
    r"""The identity, with a gradient that is multiplied by ``-weight`` (Ganin & Lempitsky, ICML 2015).

    For any shape and dtype; differentiable any number of times.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        return F.reverse_gradient(input, self.weight)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class DisagreementLoss(nn.Module):
    r"""How far the predictions of K members are apart, :func:`dadl_ext.functional.disagreement` as a module.

    Args:
        measure: ``"l1"``, ``"mse"``, ``"variance"``, ``"softmax_l1"``, ``"symmetric_kl"`` or ``"js"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        predictions ``[K, B, ...]`` → ``[]`` (``[B]`` for ``"none"``).

    See the function for the formula, dtypes, errors, determinism and second derivatives.
    """

    def __init__(self, measure: str = "l1", *, reduction: str = "mean") -> None:
        super().__init__()
        check_measure(measure)
        check_reduction(reduction)
        self.measure = measure
        self.reduction = reduction

    def forward(self, predictions: Tensor) -> Tensor:
        return F.disagreement(predictions, self.measure, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"measure={self.measure!r}, reduction={self.reduction!r}"


class DropoutDisagreementLoss(nn.Module):
    r"""The disagreement of a linear head with itself under K dropout masks, in one pass over the features.

    >>> head = nn.Linear(512, 1)
    >>> game = DropoutDisagreementLoss(head, minimax=True)
    >>> features = encoder(images)
    >>> loss = l1(head(features)[:, 0], labels) + 0.1 * game(features)

    Args:
        head: the linear layer. It is registered, so its parameters are also this module's.
        p: probability that a feature is dropped.
        samples: K.
        measure, minimax, reduction: see :func:`dadl_ext.functional.dropout_disagreement`.

    Shape:
        features ``[B, F]`` (or ``[..., F]``) → ``[]`` (``[B]`` for ``"none"``).

    Each call draws a seed from ``generator``, or from the default generator of the features' device. Masks are drawn in
    evaluation mode too. See the function for the formula, dtypes, errors, determinism and second derivatives.
    """

    def __init__(
        self,
        head: nn.Linear,
        *,
        p: float = 0.5,
        samples: int = 8,
        measure: str = "mse",
        minimax: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_p(p)
        check_samples(samples)
        check_measure(measure)
        check_reduction(reduction)
        self.head = head
        self.p = p
        self.samples = samples
        self.measure = measure
        self.minimax = minimax
        self.reduction = reduction

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = features.device if generator is None else generator.device
        seed = drawn(
            "DropoutDisagreementLoss", lambda: torch.randint(2**63 - 1, (), device=device, generator=generator)
        ).to(features.device)
        return F.dropout_disagreement(
            features,
            self.head.weight,
            self.head.bias,
            p=self.p,
            samples=self.samples,
            seed=seed,
            measure=self.measure,
            minimax=self.minimax,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"p={self.p}, samples={self.samples}, measure={self.measure!r}, minimax={self.minimax}, "
            f"reduction={self.reduction!r}"
        )
