"""Balanced MSE: a squared error that counts rare labels as much as frequent ones.

Source: Ren, Zhang, Yu, Liu, "Balanced MSE for Imbalanced Visual Regression", CVPR 2022.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reweighting import Reduction, difference, weighted_mean
from .pointwise import check_positive


class GaussianMixture(NamedTuple):
    """The density of the training labels as a mixture of K normal distributions: three vectors ``[K]``.

    ``sklearn.mixture.GaussianMixture`` fits one; pass its ``weights_``, ``means_[:, 0]`` and ``covariances_[:, 0, 0]``.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor


class BalancedMSE(nn.Module):
    r"""Balanced MSE: the squared error for a model that must also be accurate where training labels are rare.

    The prediction x is the mean of a normal distribution with variance :math:`\sigma^2` over labels, as if all were
    equally frequent. Bayes' rule turns it into a distribution under the actual label density p(y). The loss is its
    negative logarithm, times :math:`2 \sigma^2`, a constant for the gradient, to have the scale of a squared error:

    .. math::
        2 \sigma^2 \left( \frac{\lVert x - y \rVert^2}{2 \sigma^2}
        + \log \int p(y') \exp\left( -\frac{\lVert x - y' \rVert^2}{2 \sigma^2} \right) dy' \right).

    With ``mixture``, p is that mixture and the integral is exact (GAI). Without, it is a sum over the labels of the
    batch (BMC): a cross-entropy whose classes are the samples, zero for a batch of one.

    :math:`\sigma` is a parameter, learnt as its logarithm and so always positive. Give ``parameters()`` to an
    optimiser, or fix it with ``loss.requires_grad_(False)``.

    Args:
        sigma: the initial σ, the scale of unavoidable errors; positive.
        mixture: the density of the training labels, or ``None`` for the labels of each batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        predictions and labels ``[n]``, or ``[n, k]`` without a mixture; weights ``[n]`` or ``None``. Half precision is
        computed in float32.

    Raises:
        ValueError: a σ that is not positive, an invalid mixture, wrong shapes, an unknown reduction.

    Source: Ren, Zhang, Yu, Liu, "Balanced MSE for Imbalanced Visual Regression", CVPR 2022.
    """

    mixture_weights: Tensor
    mixture_means: Tensor
    mixture_variances: Tensor

    def __init__(
        self, sigma: float = 1.0, *, mixture: GaussianMixture | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        check_positive(sigma=sigma)
        if mixture is not None:
            _check_mixture(mixture)
            for name, value in mixture._asdict().items():
                self.register_buffer(f"mixture_{name}", value.detach().clone())
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))
        self.has_mixture, self.reduction = mixture is not None, reduction

    @property
    def sigma(self) -> float:
        """The current σ."""
        return float(self.log_sigma.detach().exp())

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        if input.dim() not in ((1,) if self.has_mixture else (1, 2)):
            expected = "[n]" if self.has_mixture else "[n] or [n, k]"
            raise ValueError(f"expected predictions {expected}, got shape {list(input.shape)}")
        error = difference(input, target)
        dtype = torch.promote_types(error.dtype, torch.float32)
        x, y = input.to(dtype), target.to(dtype)
        variance = (2 * self.log_sigma.to(dtype)).exp()
        loss = self._gai(x, y, variance) if self.has_mixture else _bmc(x, y, variance)
        return weighted_mean(loss * (2 * variance.detach()), weight, self.reduction)

    def _gai(self, x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
        weights, means, variances = (
            value.to(x) for value in (self.mixture_weights, self.mixture_means, self.mixture_variances)
        )
        wider = variances + variance
        log_density = weights.log() - wider.log() / 2 - (x[:, None] - means).square() / (2 * wider)
        return (x - y).square() / (2 * variance) + variance.log() / 2 + log_density.logsumexp(dim=1)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, mixture={self.has_mixture}, reduction={self.reduction!r}"


def _bmc(x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    squares = (x[:, None] - y[None]).square()
    if squares.dim() == 3:
        squares = squares.sum(dim=2)
    return F.cross_entropy(-squares / (2 * variance), torch.arange(len(x), device=x.device), reduction="none")


def _check_mixture(mixture: GaussianMixture) -> None:
    shapes = [list(value.shape) for value in mixture]
    if mixture.weights.dim() != 1 or len(mixture.weights) == 0 or shapes.count(shapes[0]) != 3:
        raise ValueError(f"weights, means and variances of a mixture must have the same shape [K], got {shapes}")
    weights, means, variances = mixture
    if not bool((weights > 0).all() and (variances >= 0).all() and means.isfinite().all()):
        raise ValueError("a mixture must have positive weights, finite means and non-negative variances")
    if abs(float(weights.sum()) - 1) > 1e-3:
        raise ValueError(f"the weights of a mixture must sum to 1, got {float(weights.sum()):g}")
