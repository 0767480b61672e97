"""Labels made imbalanced, noisy or ambiguous on purpose, and meta sets, from any labels ``[n]``, repeatable by seed.

Labels are a tensor, an array or a list of classes 0 ... C − 1. Results are int64 tensors on the CPU, and inputs are
never changed. Every function raises a ``ValueError`` for labels that are not classes and for fractions outside [0, 1].

Sources: Shu, Yuan, Meng, Xu, "CMW-Net", TPAMI 2023, for the settings; Cui et al., "Class-Balanced Loss Based on
Effective Number of Samples", CVPR 2019, for the long tail; Zhang et al., "Learning with Feature-Dependent Label Noise:
A Progressive Approach", ICLR 2021, for noise that depends on the posterior (PMD).
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy.typing as npt
import torch
from torch import Tensor

Labels = Tensor | npt.ArrayLike
PmdType = Literal[1, 2, 3]

CIFAR10_FLIPS: Mapping[int, int] = {2: 0, 4: 7, 9: 1, 3: 5}
"""Bird to airplane, deer to horse, truck to automobile, cat to dog."""


def long_tail_counts(largest: int, imbalance: float, num_classes: int) -> list[int]:
    r"""How many samples each class keeps: :math:`n_c = \lfloor n_{max} \rho^{-c / (C - 1)} \rfloor`.

    ``imbalance`` ρ is the size of the largest class over that of the smallest, at least 1.
    """
    if largest < 1 or num_classes < 1 or not imbalance >= 1:
        raise ValueError(
            f"expected largest >= 1, num_classes >= 1 and imbalance >= 1, got {largest}, {num_classes} and {imbalance}"
        )
    steps = max(num_classes - 1, 1)
    return [int(largest * (1 / imbalance) ** (c / steps)) for c in range(num_classes)]


def long_tail(labels: Labels, imbalance: float, *, largest: int | None = None, seed: int = 0) -> Tensor:
    """Ascending indices of a subset with a long tail: class c keeps :func:`long_tail_counts` random samples.

    ``largest`` is the size of class 0; the default is the size of the largest class. Raises a ``ValueError`` that names
    a class with fewer samples than it should keep.
    """
    classes, num_classes = _classes(labels, None)
    sizes = torch.bincount(classes, minlength=num_classes)
    counts = long_tail_counts(int(sizes.max()) if largest is None else largest, imbalance, num_classes)
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for c, count in enumerate(counts):
        members = (classes == c).nonzero()[:, 0]
        if len(members) < count:
            raise ValueError(f"class {c} has {len(members)} samples and should keep {count}; choose a smaller largest")
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values


def symmetric_noise(labels: Labels, rate: float, *, num_classes: int | None = None, seed: int = 0) -> Tensor:
    """Give exactly ``int(rate * n)`` random samples a label drawn uniformly from all classes, possibly their own."""
    classes, num_classes = _classes(labels, num_classes)
    generator = torch.Generator().manual_seed(seed)
    chosen = _choose(len(classes), rate, generator)
    classes[chosen] = torch.randint(0, num_classes, (len(chosen),), generator=generator)
    return classes


def flip_noise(
    labels: Labels,
    rate: float,
    flips: Mapping[int, int] | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Replace the label of exactly ``int(rate * n)`` random samples by the one that ``flips`` maps it to, if any.

    Asymmetric noise on CIFAR-10 is ``flips=CIFAR10_FLIPS``. By default each class becomes the next one, and the last
    becomes the first.
    """
    classes, num_classes = _classes(labels, num_classes)
    table = torch.arange(num_classes)
    for old, new in ({c: (c + 1) % num_classes for c in range(num_classes)} if flips is None else flips).items():
        if not (0 <= old < num_classes and 0 <= new < num_classes):
            raise ValueError(f"flips takes class {old} to {new}; there are {num_classes} classes")
        table[old] = new
    chosen = _choose(len(classes), rate, torch.Generator().manual_seed(seed))
    classes[chosen] = table[classes[chosen]]
    return classes


def pmd_noise(posterior: Tensor, kind: PmdType, rate: float | None = None, *, seed: int = 0) -> Tensor:
    r"""Labels drawn from a class posterior, wrong where it is uncertain.

    Let u and s be the most and the second most probable class of a sample and d the difference of their probabilities.
    The label is u with probability q and s otherwise. Type 1: :math:`q = \frac12 + \frac12 d^2`, type 2: :math:`q =
    d^3`, type 3: :math:`q = \frac13 (d + d^2 + d^3)`. With ``rate``, q is divided by a common factor and cut off at 1,
    so that this fraction of the labels is expected to be s.

    Args:
        posterior: probabilities ``[n, C]`` of at least two classes, e.g. of a network trained for a few epochs.
        kind: 1, 2 or 3.
        rate: expected fraction of second most probable labels, or ``None`` to leave q as it is.
        seed: of the random draws.

    Raises:
        ValueError: not a posterior, an unknown type, a rate outside [0, 1) or larger than possible.
    """
    if kind not in get_args(PmdType):
        raise ValueError(f"kind must be one of {get_args(PmdType)}, got {kind!r}")
    probability = posterior.detach().cpu().double()
    if probability.dim() != 2 or probability.shape[1] < 2:
        raise ValueError(f"posterior must be [n, C] with C >= 2, got shape {list(probability.shape)}")
    if not bool((probability >= 0).all()) or not torch.allclose(
        probability.sum(dim=1), torch.ones(()).double(), 0, 1e-3
    ):
        raise ValueError("posterior must hold probabilities that sum to 1 in each row; use softmax")
    top, (first, second) = (part.T for part in probability.topk(2, dim=1))
    d = top[0] - top[1]
    keep = {1: 0.5 + d**2 / 2, 2: d**3, 3: (d + d**2 + d**3) / 3}[kind]
    if rate is not None:
        keep = _scaled_to(keep, 1 - _fraction(rate))
    kept = torch.rand(len(keep), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < keep
    return torch.where(kept, first, second)


def hybrid_noise(
    posterior: Tensor,
    kind: PmdType,
    then: Literal["symmetric", "flip"],
    *,
    pmd_rate: float = 0.35,
    rate: float = 0.3,
    flips: Mapping[int, int] | None = None,
    seed: int = 0,
) -> Tensor:
    """:func:`pmd_noise` at ``pmd_rate``, then :func:`symmetric_noise` or :func:`flip_noise` at ``rate``."""
    if then not in ("symmetric", "flip"):
        raise ValueError(f'then must be "symmetric" or "flip", got {then!r}')
    labels = pmd_noise(posterior, kind, pmd_rate, seed=seed)
    num_classes = posterior.shape[1]
    if then == "symmetric":
        return symmetric_noise(labels, rate, num_classes=num_classes, seed=seed + 1)
    return flip_noise(labels, rate, flips, num_classes=num_classes, seed=seed + 1)


def partial_labels(labels: Labels, q: float, *, num_classes: int | None = None, seed: int = 0) -> Tensor:
    """Candidate sets ``[n, C]``, boolean: the true label, and each wrong one with probability ``q``.

    Every sample has at least one wrong candidate: if none is drawn, it gets one at random.
    """
    classes, num_classes = _classes(labels, num_classes)
    if num_classes < 2:
        raise ValueError("partial labels need two classes")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(classes))
    candidates = torch.rand(len(classes), num_classes, generator=generator) < _fraction(q)
    candidates[rows, classes] = False
    wrong = (classes + torch.randint(1, num_classes, (len(classes),), generator=generator)) % num_classes
    alone = ~candidates.any(dim=1)
    candidates[rows[alone], wrong[alone]] = True
    candidates[rows, classes] = True
    return candidates


def balanced_subset(labels: Labels, per_class: int | None = None, *, seed: int = 0) -> Tensor:
    """Ascending indices of equally many random samples of every class that has any.

    Use it for a meta set. With noisy labels, hold out clean samples. With a long tail, use ``per_class=None``, which
    takes as many samples of each class as the smallest class has, and draw again in each epoch with another seed.
    Raises a ``ValueError`` that names a class with too few samples.
    """
    classes, _ = _classes(labels, None)
    present, sizes = classes.unique(return_counts=True)
    count = int(sizes.min()) if per_class is None else per_class
    if count < 1 or count > int(sizes.min()):
        raise ValueError(
            f"cannot take {count} samples of every class: class {int(present[sizes.argmin()])} has {int(sizes.min())}"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in present:
        members = (classes == c).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def lowest_loss_subset(losses: Tensor, labels: Labels, per_class: int = 10) -> Tensor:
    """Ascending indices of the ``per_class`` samples of each label with the lowest losses ``[n]``.

    Use it for a meta set with noisy labels: wrong labels seldom have low losses. Choose again in each epoch. Smaller
    classes give all their samples; among equal losses the first is taken.
    """
    classes, _ = _classes(labels, None)
    if losses.shape != classes.shape or per_class < 1:
        raise ValueError(
            f"expected a loss of each of {len(classes)} labels and per_class >= 1, "
            f"got shape {list(losses.shape)} and {per_class}"
        )
    order = losses.detach().cpu().argsort(stable=True)
    by_class = order[classes[order].argsort(stable=True)]
    sizes = torch.bincount(classes)
    rank = torch.arange(len(classes)) - (sizes.cumsum(0) - sizes)[classes[by_class]]
    return by_class[rank < per_class].sort().values


def _classes(labels: Labels, num_classes: int | None) -> tuple[Tensor, int]:
    """A copy of the labels, and the number of classes."""
    values = torch.as_tensor(labels)
    if values.dim() != 1 or len(values) == 0 or values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"labels must be a non-empty vector of integers, got {values.dtype} of shape {list(values.shape)}"
        )
    classes = values.detach().to("cpu", torch.int64, copy=True)
    most = int(classes.max()) + 1
    if int(classes.min()) < 0 or (num_classes is not None and most > num_classes):
        expected = "C - 1" if num_classes is None else str(num_classes - 1)
        raise ValueError(f"labels must be from 0 to {expected}, got {int(classes.min())} to {most - 1}")
    return classes, most if num_classes is None else num_classes


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"expected a fraction from 0 to 1, got {value}")
    return value


def _choose(n: int, rate: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[: int(_fraction(rate) * n)]


def _scaled_to(probability: Tensor, mean: float) -> Tensor:
    """``probability`` times the factor for which its mean, after cutting off at 1, is the given one."""
    if mean > float((probability > 0).double().mean()):
        raise ValueError(f"no factor keeps a fraction of {mean:g}: too many samples have two equally probable classes")
    low, high = 0.0, 2.0**60
    for _ in range(200):
        middle = (low + high) / 2
        if float((middle * probability).clamp(max=1).mean()) < mean:
            low = middle
        else:
            high = middle
    return (high * probability).clamp(max=1)


def class_weights(kind: str, counts: Tensor) -> Tensor | None:
    """Weights ``[C]`` of classes with ``counts`` ``[C]`` samples, N in all.

    ``"inverse"``: N/n; ``"sqrt-inverse"``: √(N/n); ``"effective"``: 1/(1 − βⁿ) with β = 1 − 1/N, after Cui et al.,
    "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019; ``"none"``: ``None``. A class without samples
    has weight 0.
    """
    if kind == "none":
        return None
    n = counts.double()
    total = n.sum()
    share = n / total
    effective = -((n * (-1 / total).log1p()).expm1())
    weights = {"inverse": 1 / share, "sqrt-inverse": share.rsqrt(), "effective": 1 / effective}[kind]
    return weights.where(n > 0, 0.0).float()
