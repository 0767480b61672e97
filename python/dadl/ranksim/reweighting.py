"""Sample weights for imbalanced labels: reweighting of label bins, and label distribution smoothing.

Source: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["gaussian", "triangular", "laplace"]
Reweighting = Literal["inverse", "sqrt_inv"]
Reduction = Literal["mean", "sum", "none"]


def bin_labels(labels: Tensor, low: float, high: float, num_bins: int) -> Tensor:
    """The index of each label's bin among ``num_bins`` bins of equal width on ``[low, high]``, as int64.

    A bin includes its lower edge, and the last one also its upper edge. Labels outside go to the edge bins.
    Ages: ``bin_labels(age, 0, 121, 121)``; STS-B scores: ``bin_labels(score, 0, 5, 50)``.

    Raises:
        ValueError: no bin, an empty range, or NaN among the labels.
    """
    if num_bins < 1 or not low < high:
        raise ValueError(f"expected num_bins >= 1 and low < high, got num_bins={num_bins}, low={low}, high={high}")
    if labels.is_floating_point() and bool(labels.isnan().any()):
        raise ValueError("labels hold NaN, which belongs to no bin; remove those samples first")
    values = (labels if labels.is_floating_point() else labels.double()).contiguous()  # bucketize warns of others
    # Edges are rounded like the labels: 0.7 in float32 must not fall below an edge at 0.7.
    edges = torch.linspace(low, high, num_bins + 1, dtype=torch.float64, device=labels.device)[1:-1]
    return torch.bucketize(values, edges.to(values.dtype), right=True)


def bin_weights(
    counts: Tensor,
    reweighting: Reweighting = "sqrt_inv",
    *,
    clip: tuple[float, float] | None = (5.0, 1000.0),
    smoothing: "LabelDistributionSmoothing | None" = None,
) -> Tensor:
    """A weight for each label bin, larger where training samples are rare.

    ``inverse``: ``w = 1 / clip(n)``; ``sqrt_inv``: ``w = 1 / sqrt(n)``, with n the bin's count. With ``smoothing``, the
    clipped counts or the square roots are smoothed before they are inverted. The weights are rescaled to mean 1 over
    the training *samples*, ``sum(n * w) = sum(n)``; a bin without samples has weight 0. A sample's weight is that of
    its bin: ``bin_weights(counts)[bins]``.

    Args:
        counts: training samples per bin, ``[num_bins]``, integers or floating point.
        reweighting: ``"inverse"`` or ``"sqrt_inv"``.
        clip: bounds of the counts for ``inverse`` (the default is the usual one for ages); ``None`` is unbounded.
        smoothing: label distribution smoothing, or ``None``.

    Returns:
        ``[num_bins]``, float32, or float64 for float64 counts.

    Raises:
        ValueError: counts not 1-D, negative or all zero; an unknown reweighting; bounds that are not 0 < low <= high.
    """
    _check_counts(counts)
    values = counts if counts.dtype == torch.float64 else counts.float()
    total = values.sum()
    if total == 0:
        raise ValueError("counts are all zero: give the number of training samples of each label bin")
    if reweighting == "inverse":
        if clip is not None:
            low, high = clip
            if not 0 < low <= high:
                raise ValueError(f"clip must be 0 < low <= high, got {clip}; clip=None leaves the counts as they are")
            density = values.clamp(low, high)
        else:
            density = values
    elif reweighting == "sqrt_inv":
        density = values.sqrt()
    else:
        raise ValueError(f"reweighting must be one of {get_args(Reweighting)}, got {reweighting!r}")
    if smoothing is not None:
        density = smoothing(density)
    weights = torch.where(values > 0, 1 / density, 0.0)
    return weights * (total / (values * weights).sum())


class LabelDistributionSmoothing(torch.nn.Module):
    r"""Label distribution smoothing (LDS): the effective density of continuous labels.

    Neighbouring labels share information. So the effective density is the empirical one convolved with a symmetric
    kernel k over the label bins: :math:`\tilde p_i = \sum_j k(i - j)\, p_j`. The kernel is scaled to a maximum of 1;
    outside the bins the density is zero. :func:`bin_weights` inverts the result.

    Kernels, with distance d from the centre: ``gaussian``, the response of a truncated, reflecting gaussian filter to
    a unit impulse, :math:`e^{-d^2 / 2\sigma^2}` but larger at the window's ends; ``triangular``, linear from the centre
    to zero just outside the window; ``laplace``, :math:`e^{-|d| / \sigma}`.

    Args:
        kernel: ``"gaussian"``, ``"triangular"`` or ``"laplace"``.
        ks: bins in the window, odd.
        sigma: width of the kernel in bins; ``triangular`` has none.

    Shape:
        counts ``[num_bins]`` to densities ``[num_bins]``, floating point.

    Raises:
        ValueError: an unknown kernel, an even or non-positive ``ks``, a non-positive ``sigma``, counts that are not
            1-D and non-negative.

    Example:
        >>> lds = LabelDistributionSmoothing("gaussian", ks=5, sigma=2)
        >>> weights = bin_weights(torch.bincount(bins), "sqrt_inv", smoothing=lds)[bins]  # doctest: +SKIP
    """

    window: Tensor

    def __init__(self, kernel: Kernel = "gaussian", ks: int = 5, sigma: float = 2.0) -> None:
        super().__init__()
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {get_args(Kernel)}, got {kernel!r}")
        if ks < 1 or ks % 2 == 0:
            raise ValueError(f"ks must be odd and positive so that the window has a centre, got {ks}")
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.kernel, self.ks, self.sigma = kernel, ks, sigma
        self.register_buffer("window", smoothing_window(kernel, ks, sigma), persistent=False)

    def forward(self, counts: Tensor) -> Tensor:
        _check_counts(counts)
        values = counts if counts.dtype == torch.float64 else counts.float()
        window = self.window.to(values)
        return F.conv1d(values[None, None], window[None, None], padding=self.ks // 2)[0, 0]

    def extra_repr(self) -> str:
        return f"{self.kernel!r}, ks={self.ks}, sigma={self.sigma}"


def smoothing_window(kernel: Kernel, ks: int, sigma: float) -> Tensor:
    """The window of :class:`LabelDistributionSmoothing`, ``[ks]``, float64, largest value 1."""
    half = ks // 2
    distance = torch.arange(-half, half + 1, dtype=torch.float64)
    if kernel == "triangular":
        window = half + 1 - distance.abs()
    elif kernel == "laplace":
        window = torch.exp(-distance.abs() / sigma)
    else:
        # Reflection folds the filter's tails, cut off at 4 sigma, back into the window: a tap lands where the sequence
        # of period 2 ks that mirrors the window at its ends has its position.
        radius = int(4 * sigma + 0.5)
        tap = torch.arange(-radius, radius + 1)
        response = torch.exp(-0.5 * (tap.double() / sigma).square())
        position = (tap + half) % (2 * ks)
        position = torch.minimum(position, 2 * ks - 1 - position)
        window = torch.zeros(ks, dtype=torch.float64).index_add_(0, position, response)
    return window / window.max()


def weighted_l1_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """``w |x - y|``. The mean is over elements, not weighted by w: :func:`bin_weights` already average to 1.

    Args:
        input: predictions, any shape.
        target: as ``input``.
        weight: as ``input``, or one weight per sample ``[N]`` of an input ``[N, ...]``; ``None`` is all ones.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: shapes that differ (they are not broadcast), an unknown reduction.
    """
    return weighted_mean(difference(input, target).abs(), weight, reduction)


def weighted_mse_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """``w (x - y)²``; arguments and errors as for :func:`weighted_l1_loss`."""
    return weighted_mean(difference(input, target).square(), weight, reduction)


def difference(input: Tensor, target: Tensor) -> Tensor:
    """``input - target``; raises a ``ValueError`` if the shapes differ, instead of broadcasting."""
    if input.shape != target.shape:
        raise ValueError(
            f"input and target must have the same shape, got {list(input.shape)} and {list(target.shape)}; "
            "remove a trailing dimension of size 1 with .squeeze(-1)"
        )
    return input - target


def weighted_mean(loss: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """``weight * loss``, reduced as described in :func:`weighted_l1_loss`."""
    if weight is not None:
        if weight.shape != loss.shape:
            if weight.shape != loss.shape[:1]:
                raise ValueError(
                    f"weight must have the input's shape {list(loss.shape)} or one value per sample "
                    f"{list(loss.shape[:1])}, got {list(weight.shape)}"
                )
            weight = weight.reshape(-1, *[1] * (loss.dim() - 1))
        loss = loss * weight
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")


def _check_counts(counts: Tensor) -> None:
    if counts.dim() != 1 or len(counts) == 0:
        raise ValueError(f"counts must be a non-empty vector [num_bins], got shape {list(counts.shape)}")
    if not bool((counts >= 0).all()):
        raise ValueError("counts must be non-negative numbers: the training samples of each label bin")
