"""Balanced MSE: a squared error that counts rare labels as much as frequent ones.

Source: Ren, Zhang, Yu, Liu, "Balanced MSE for Imbalanced Visual Regression", CVPR 2022.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reweighting import Reduction, difference, weighted_mean
from .pointwise import check_positive

NORMAL_QUARTILE = NormalDist().inv_cdf(0.75)
"""Half of the errors of a standard normal distribution are smaller."""

SMALLEST_SIGMA = 1e-15
"""Of errors that are all zero, so that they can be divided by it."""


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
    negative logarithm, times :math:`2 \sigma^2`, to have the scale of a squared error:

    .. math::
        2 \sigma^2 \left( \frac{\lVert x - y \rVert^2}{2 \sigma^2}
        + \log \int p(y') \exp\left( -\frac{\lVert x - y' \rVert^2}{2 \sigma^2} \right) dy' \right).

    With ``mixture``, p is that mixture and the integral is exact (GAI). Without, it is a sum over the labels of the
    batch (BMC): a cross-entropy whose classes are the samples, zero for a batch of one.

    :math:`\sigma` is the deviation of the errors that no prediction avoids. By default it follows them,

    .. math::
        \sigma = \mathrm{median} \lvert y - \mathrm{E}[y' \mid x] \rvert / \Phi^{-1}(3/4),
        \qquad p(y' \mid x) \propto p(y') \exp\left( -\frac{\lVert x - y' \rVert^2}{2 \sigma^2} \right),

    the mean over batches running, from the median of :math:`\lvert y - x \rvert` of the first batch on;
    of normal errors that is the deviation. A mean or a square instead of the median would follow the largest errors: a
    few make σ too large, which drives predictions apart and makes more of them. Where labels pile up at an end of their
    range, the errors there are small, and σ comes out smaller. For BMC :math:`\mathrm{E}[y' \mid x]` is over x and the
    other labels of the batch; where these are further apart than σ, it comes out somewhat too large.
    σ so has the unit of the labels, needs neither an optimiser nor a learning rate, and changes in training mode only.
    *Our choice:* the paper learns σ by gradient. That takes as long as its initial value and its learning rate say, and
    meanwhile a σ that is too large drives predictions apart, which keeps it large. :math:`\mathrm{E}[y' \mid x]` fits
    the labels at any σ, where x does not. A σ that is large beside the deviation :math:`s` of the labels is
    underestimated, by a factor :math:`\sqrt{1 + \sigma^2 / s^2}` if they are normal, and then balances less.

    Args:
        sigma: a fixed σ, positive; ``None`` follows the errors, as above.
        learn: learn the logarithm of σ by gradient, as the paper learns σ, from ``sigma`` on: give ``parameters()`` to
            an optimiser, without weight decay.
        momentum: the weight of a batch in the running mean, in (0, 1].
        mixture: the density of the training labels, or ``None`` for the labels of each batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        predictions and labels ``[n]``, or ``[n, k]`` without a mixture; weights ``[n]`` or ``None``. Half precision is
        computed in float32.

    Raises:
        ValueError: a σ that is not positive, or none to learn from, a momentum out of range, an invalid mixture, wrong
            shapes, an unknown reduction.

    Source: Ren, Zhang, Yu, Liu, "Balanced MSE for Imbalanced Visual Regression", CVPR 2022.
    """

    log_sigma: Tensor
    mixture_weights: Tensor
    mixture_means: Tensor
    mixture_variances: Tensor

    def __init__(
        self,
        sigma: float | None = None,
        *,
        learn: bool = False,
        momentum: float = 0.1,
        mixture: GaussianMixture | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if sigma is not None:
            check_positive(sigma=sigma)
        elif learn:
            raise ValueError("learn needs an initial sigma")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, got {momentum}")
        if mixture is not None:
            _check_mixture(mixture)
            for name, value in mixture._asdict().items():
                self.register_buffer(f"mixture_{name}", value.detach().clone())
        log_sigma = torch.tensor(math.nan if sigma is None else math.log(sigma))
        if learn:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)
        self.follows, self.momentum = sigma is None, momentum
        self.has_mixture, self.reduction = mixture is not None, reduction

    @property
    def sigma(self) -> float:
        """The current σ; NaN before the first batch if none was given."""
        return float(self.log_sigma.detach().exp())

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        if input.dim() not in ((1,) if self.has_mixture else (1, 2)):
            expected = "[n]" if self.has_mixture else "[n] or [n, k]"
            raise ValueError(f"expected predictions {expected}, got shape {list(input.shape)}")
        error = difference(input, target)
        dtype = torch.promote_types(error.dtype, torch.float32)
        x, y = input.to(dtype), target.to(dtype)
        follows = self.follows and x.numel() > 0
        variance = (2 * (self._followed(x.detach(), y) if follows else self.log_sigma.to(dtype))).exp()
        if self.has_mixture:
            log_density, _ = self._components(x, variance)
            loss = (x - y).square() / (2 * variance) + variance.log() / 2 + log_density.logsumexp(dim=1)
        else:
            classes = torch.arange(len(x), device=x.device)
            loss = F.cross_entropy(_log_likelihood(x, y, variance), classes, reduction="none")
        return weighted_mean(loss * (2 * variance.detach()), weight, self.reduction)

    @torch.no_grad()
    def _followed(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of a σ that follows the errors, after a step of its running mean in training mode."""
        sigma = self.log_sigma.to(x.dtype).exp()
        sigma = torch.where(sigma.isnan(), _deviation(y - x), sigma)
        if self.training:
            sigma = sigma.lerp(_deviation(y - self._expected(x, y, sigma.square())), self.momentum)
            self.log_sigma.copy_(sigma.log())
        return sigma.log()

    def _expected(self, x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
        """The mean label at each prediction, under the density of the training labels."""
        if self.has_mixture:
            log_density, means = self._components(x, variance)
            return (log_density.softmax(dim=1) * means).sum(dim=1)
        share = _log_likelihood(x, y, variance).fill_diagonal_(0).softmax(dim=1)  # x stands in for its own label
        own = share.diagonal()
        # No matrix product, which autocast would form in half precision.
        if y.dim() == 1:
            return (share * y).sum(dim=1) + own * (x - y)
        return (share[:, :, None] * y).sum(dim=1) + own[:, None] * (x - y)

    def _components(self, x: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """For each prediction and component, the logarithm of its share of p(x), but for a constant, and the mean of
        the labels from it: ``[n, K]``."""
        weights, means, variances = (
            value.to(x) for value in (self.mixture_weights, self.mixture_means, self.mixture_variances)
        )
        wider = variances + variance
        log_density = weights.log() - wider.log() / 2 - (x[:, None] - means).square() / (2 * wider)
        return log_density, (x[:, None] * variances + means * variance) / wider

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, follows={self.follows}, mixture={self.has_mixture}, reduction={self.reduction!r}"


def _log_likelihood(x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    """Of each label of the batch at each prediction, ``[n, n]``, but for a constant."""
    squares = (x[:, None] - y[None]).square()
    return -(squares.sum(dim=2) if squares.dim() == 3 else squares) / (2 * variance)


def _deviation(errors: Tensor) -> Tensor:
    """The deviation of normal errors, by the median of their size: a few large errors do not change it."""
    return (errors.abs().median() / NORMAL_QUARTILE).clamp_min(SMALLEST_SIGMA)


def _check_mixture(mixture: GaussianMixture) -> None:
    shapes = [list(value.shape) for value in mixture]
    if mixture.weights.dim() != 1 or len(mixture.weights) == 0 or shapes.count(shapes[0]) != 3:
        raise ValueError(f"weights, means and variances of a mixture must have the same shape [K], got {shapes}")
    weights, means, variances = mixture
    if not bool((weights > 0).all() and (variances >= 0).all() and means.isfinite().all()):
        raise ValueError("a mixture must have positive weights, finite means and non-negative variances")
    if abs(float(weights.sum()) - 1) > 1e-3:
        raise ValueError(f"the weights of a mixture must sum to 1, got {float(weights.sum()):g}")
