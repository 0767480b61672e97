"""Feature distribution smoothing: samples with rare labels borrow the feature statistics of their neighbours.

Source: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..processes.sums import process_count
from .reweighting import Kernel, LabelDistributionSmoothing, bin_labels

Parts = tuple[Tensor, Tensor, Tensor]
CONSTANT = 1e-10
"""A bucket whose variances sum to less has constant features, which carry no information."""


class FeatureDistributionSmoothing(nn.Module):
    r"""Feature distribution smoothing (FDS): calibrates features to statistics smoothed over neighbouring labels.

    Labels fall into buckets. Bucket b has the running mean :math:`\mu_b` and variance :math:`\sigma_b^2` of each
    feature, and :math:`\tilde\mu_b = \sum_{b'} k(b - b')\, \mu_{b'}` and :math:`\tilde\sigma_b^2` likewise, with a
    window k that sums to 1 and buckets mirrored at both ends (reflect padding). Features z of bucket b become

    .. math::
        z' = (z - \mu_b) \sqrt{\operatorname{clip}(\tilde\sigma_b^2 / \sigma_b^2, lo, hi)} + \tilde\mu_b .

    Features are unchanged in evaluation mode, before the first :meth:`end_epoch`, in buckets whose variances sum to
    less than 1e-10, and in dimensions whose variance is 0. Nothing is changed in place, and the gradient passes through
    z alone. A regulariser such as RankSim takes the features before FDS.

    >>> fds = FeatureDistributionSmoothing(2048, 3, 100, 97)  # AgeDB: one bucket a year
    >>> for epoch in range(epochs):
    ...     for images, ages in loader:
    ...         features = encoder(images)
    ...         loss = F.l1_loss(head(fds(features, ages)).squeeze(-1), ages)
    ...         ...
    ...     for images, ages in loader:  # without gradients
    ...         fds.observe(encoder(images), ages)
    ...     fds.end_epoch()

    The variance of an epoch is unbiased, and 0 for a bucket with one sample. The first epoch with samples in a bucket
    sets its statistics; later epochs are mixed in, ``momentum * past + (1 - momentum) * epoch``. A bucket without
    samples in an epoch keeps its statistics. Buckets that never had samples are left out of the window, whose other
    weights are rescaled to sum to 1.

    ``state_dict`` holds the statistics after the last ``end_epoch``, not the features observed since. With several
    processes each observes its own samples; ``end_epoch``, which all must call, combines them.

    Args:
        num_features: d.
        low: the lower edge of the first bucket.
        high: the upper edge of the last one; labels outside go to the edge buckets, see :func:`dadl.bin_labels`.
        num_buckets: B, of equal width. STS-B: ``low=0, high=5, num_buckets=50``.
        kernel: of the window, see :class:`dadl.LabelDistributionSmoothing`.
        ks: buckets in the window, odd.
        sigma: width of the kernel in buckets.
        momentum: weight of the past, from 0 to 1.
        clip: bounds of the ratio of variances, ``0 < lo <= hi``; usually ``(0.1, 10)`` for ages and ``(0.5, 2)`` for
            STS-B.

    Shape:
        features ``[n, d]`` and labels ``[n]`` to features ``[n, d]`` of the same dtype.

    Raises:
        ValueError: arguments outside these bounds, wrong shapes, NaN labels, and in ``observe`` features that are not
            finite (``forward`` lets them through, so that they show in the loss).
        RuntimeError: ``end_epoch`` without features observed since the last one.
    """

    met: Tensor
    mean: Tensor
    var: Tensor
    centre: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        num_features: int,
        low: float,
        high: float,
        num_buckets: int,
        *,
        kernel: Kernel = "gaussian",
        ks: int = 5,
        sigma: float = 2.0,
        momentum: float = 0.9,
        clip: tuple[float, float] = (0.1, 10.0),
    ) -> None:
        super().__init__()
        if num_features < 1 or num_buckets < 1 or not low < high:
            raise ValueError(
                "expected num_features >= 1, low < high and num_buckets >= 1, "
                f"got {num_features}, low={low}, high={high} and {num_buckets}"
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        if not 0 < clip[0] <= clip[1]:
            raise ValueError(f"clip must be 0 < low <= high, got {clip}")
        self.num_features, self.num_buckets, self.low, self.high = num_features, num_buckets, low, high
        self.momentum, self.clip = momentum, clip
        self._window = LabelDistributionSmoothing(kernel, ks, sigma).window
        # The number of samples in this epoch, their mean, and the sum of squared distances from it. These are not
        # buffers, because DistributedDataParallel would overwrite them with those of the first process.
        self._epoch: Parts | None = None
        # Running statistics, zero without samples.
        self.register_buffer("met", torch.zeros(num_buckets, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(num_buckets, num_features))
        self.register_buffer("var", torch.zeros(num_buckets, num_features))
        # The calibration (z - centre) * scale + shift: exactly z where nothing is to be changed.
        self.register_buffer("centre", torch.zeros(num_buckets, num_features))
        self.register_buffer("scale", torch.ones(num_buckets, num_features))
        self.register_buffer("shift", torch.zeros(num_buckets, num_features))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Calibrate ``features [n, d]`` of samples with ``labels [n]``; in evaluation mode return them unchanged."""
        if not self.training:
            return features
        bucket = self._bucket(features, labels)
        calibrated = (features - self.centre[bucket]) * self.scale[bucket] + self.shift[bucket]
        return calibrated.to(features.dtype)

    @torch.no_grad()
    def observe(self, features: Tensor, labels: Tensor) -> None:
        """Add ``features [n, d]`` with ``labels [n]``, before FDS, to the statistics of this epoch."""
        bucket = self._bucket(features, labels)
        if not bool(features.isfinite().all()):
            raise ValueError("features hold NaN or infinity, which would spoil the statistics of every later epoch")
        z = features.to(self.mean.dtype)
        count = torch.bincount(bucket, minlength=self.num_buckets)
        # Distances from one of the bucket's samples are summed, so that the mean of equal values is exactly that value
        # and their variance 0.
        origin = torch.zeros_like(self.mean).index_put((bucket,), z)
        offset = torch.zeros_like(origin).index_add(0, bucket, z - origin[bucket])
        mean = origin + offset / count.clamp(min=1)[:, None]
        squares = torch.zeros_like(mean).index_add(0, bucket, (z - mean[bucket]).square())
        parts = zip(self._observed(), (count, mean, squares), strict=True)
        self._epoch = _merged(*(torch.stack(pair) for pair in parts))

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Mix the observed features into the running statistics, smooth these, and begin another epoch."""
        count, mean, squares = _merged(*map(_of_all_processes, self._observed()))
        if not bool(count.any()):
            raise RuntimeError("no features since the last epoch: call observe(features, labels) before end_epoch()")
        var = squares / (count - 1).clamp(min=1)[:, None]
        past = (self.momentum * self.met.to(mean))[:, None]
        here = (count > 0)[:, None]
        self.mean.copy_(torch.where(here, past * self.mean + (1 - past) * mean, self.mean))
        self.var.copy_(torch.where(here, past * self.var + (1 - past) * var, self.var))
        self.met |= count > 0
        self._calibrate()
        self._epoch = None

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, {self.low:g}, {self.high:g}, {self.num_buckets}, "
            f"momentum={self.momentum}, clip={self.clip}"
        )

    def _calibrate(self) -> None:
        # Buckets without samples are left out. A bucket with samples always has weight in its own window.
        weights = _reflected(self._window, self.num_buckets).to(self.mean) * self.met
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        smooth_mean, smooth_var = weights @ self.mean, weights @ self.var
        changes = (self.var.sum(dim=1, keepdim=True) >= CONSTANT) & (self.var > 0)
        self.centre.copy_(torch.where(changes, self.mean, 0))
        self.scale.copy_(torch.where(changes, (smooth_var / self.var).clamp(*self.clip).sqrt(), 1))
        self.shift.copy_(torch.where(changes, smooth_mean, 0))

    def _observed(self) -> Parts:
        if self._epoch is not None:
            return self._epoch
        return torch.zeros_like(self.met, dtype=torch.int64), torch.zeros_like(self.mean), torch.zeros_like(self.var)

    def _bucket(self, features: Tensor, labels: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.num_features or labels.shape != features.shape[:1]:
            raise ValueError(
                f"expected features [n, {self.num_features}] and labels [n], "
                f"got shapes {list(features.shape)} and {list(labels.shape)}"
            )
        return bin_labels(labels, self.low, self.high, self.num_buckets)


def _reflected(window: Tensor, num_buckets: int) -> Tensor:
    """Convolution with a window as a matrix ``[B, B]``, mirrored at the centres of the edge buckets."""
    half = len(window) // 2
    position = (torch.arange(num_buckets)[:, None] + torch.arange(-half, half + 1)).abs()
    period = max(2 * num_buckets - 2, 1)
    position = torch.minimum(position % period, -position % period)
    matrix = window.new_zeros(num_buckets, num_buckets)
    return matrix.scatter_add(1, position, window.expand(num_buckets, -1))


def _merged(count: Tensor, mean: Tensor, squares: Tensor) -> Parts:
    """Combine counts ``[k, B]``, means and sums of squared distances ``[k, B, d]`` of k parts."""
    total = count.sum(dim=0)
    share = count.to(mean) / total.clamp(min=1)
    origin = mean[count.argmax(dim=0), torch.arange(mean.shape[1], device=mean.device)]
    whole = origin + (share[..., None] * (mean - origin)).sum(dim=0)
    between = (count[..., None] * (mean - whole).square()).sum(dim=0)
    return total, whole, squares.sum(dim=0) + between


def _of_all_processes(value: Tensor) -> Tensor:
    """Every process's value, ``[k, ...]``."""
    if process_count() == 1:
        return value[None]
    gathered = [torch.empty_like(value) for _ in range(process_count())]
    dist.all_gather(gathered, value)
    return torch.stack(gathered)
