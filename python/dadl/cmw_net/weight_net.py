"""CMW-Net: a small network that maps a sample's loss and the size of its class to the sample's weight."""

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_FORMAT = "dadl.CMWNet"


class CMWNet(nn.Module):
    r"""The weighting network of CMW-Net: :math:`v_i = \sigma(h_{f(y_i)}(\mathrm{ReLU}(a\,\ell_i + b)))`.

    All samples share the hidden layer. Each family f of classes has its own output :math:`h_f`, because a large loss
    may mean noise in a common class and a hard sample in a rare one. Families are found from the class sizes by exact
    one-dimensional k-means over the classes with samples, ordered from the smallest to the largest centre. With one
    family this is Meta-Weight-Net.

    Centres are kept as fractions of the largest class, and a class belongs to the family with the nearest centre. So a
    network trained on one data set can weight another one with other classes:

    >>> weigh = CMWNet.load("weights.safetensors").bind(class_counts)
    >>> ...
    >>> losses = F.cross_entropy(model(images), target, reduction="none")
    >>> (weigh(losses, target) * losses).mean().backward()

    :class:`dadl.MetaReweighter` trains it.

    Args:
        class_counts: training samples per class, by their given labels, ``[C]``. An empty class belongs to the family
            of the smallest classes.
        families: largest number of families; there are never more than distinct class sizes.
        hidden: width of the hidden layer.
        floor: smallest weight; the sigmoid is mapped to ``[floor, 1]``. Above 0 the weights cannot all vanish.

    Shape:
        losses ``[N]``, of any floating-point type and not differentiated; targets ``[N]``, integers in ``[0, C)``;
        weights ``[N]`` in ``[floor, 1]``, of the parameters' type, differentiable in them.

    Raises:
        ValueError: counts that are not a vector of non-negative whole numbers or are all zero; ``families`` or
            ``hidden`` below 1; a floor outside ``[0, 1)``; losses and targets of other shapes, targets that are not
            classes.

    Initial parameters are drawn from PyTorch's generator; everything else is deterministic.

    Sources: Shu, Yuan, Meng, Xu, "CMW-Net: Learning a Class-Aware Sample Weighting Mapping for Robust Deep Learning",
    TPAMI 2023; Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019.
    """

    centers: Tensor
    family: Tensor

    def __init__(
        self,
        class_counts: Tensor | npt.ArrayLike,
        families: int = 3,
        hidden: int = 100,
        *,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        if families < 1 or hidden < 1:
            raise ValueError(f"expected families >= 1 and hidden >= 1, got families={families}, hidden={hidden}")
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be in [0, 1), got {floor}")
        self.floor = floor
        sizes = _relative_sizes(class_counts)
        self.register_buffer("centers", torch.from_numpy(_kmeans_centers(sizes[sizes > 0], families)))
        self.shared = nn.Linear(1, hidden)
        self.heads = nn.Linear(hidden, len(self.centers))
        self._assign(sizes)

    def _assign(self, sizes: npt.NDArray[np.float64]) -> None:
        nearest = np.abs(sizes[:, None] - self.centers.double().cpu().numpy()).argmin(axis=1)
        self.register_buffer("family", torch.from_numpy(nearest).to(self.centers.device))

    def forward(self, losses: Tensor, targets: Tensor) -> Tensor:
        if losses.dim() != 1 or losses.shape != targets.shape:
            raise ValueError(
                "losses and targets must be vectors of one length, "
                f"got shapes {list(losses.shape)} and {list(targets.shape)}"
            )
        outside = (targets < 0) | (targets >= len(self.family))
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"the target of batch row {row} is {targets[row].item()}; there are {len(self.family)} classes"
            )
        # Autocast would round weights to eight bits, so that they hardly change.
        with torch.autocast(losses.device.type, enabled=False):
            return self._curves(losses).gather(1, self.family[targets].unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def curves(self, losses: Tensor) -> Tensor:
        """The weights of losses ``[N]`` in each family: ``[N, families]``, without a graph."""
        return self._curves(losses)

    def _curves(self, losses: Tensor) -> Tensor:
        features = self.shared(losses.detach().to(self.shared.weight.dtype).unsqueeze(1)).relu()
        weights: Tensor = self.floor + (1 - self.floor) * self.heads(features).sigmoid()
        return weights

    def bind(self, class_counts: Tensor | npt.ArrayLike) -> "CMWNet":
        """A copy of this network for other classes; each belongs to the family whose centre is nearest to its size.

        Sizes are compared as fractions of the largest class of either data set.
        """
        bound = copy.deepcopy(self)
        bound._assign(_relative_sizes(class_counts))
        return bound

    def save(self, path: str | Path) -> None:
        """Write parameters, centres, the family of each class and the hyper-parameters as a safetensors file."""
        from safetensors.torch import save_file

        metadata = {"format": _FORMAT, "hyperparameters": json.dumps({"floor": self.floor})}
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "CMWNet":
        """Load a network that :meth:`save` wrote, for the same classes; use :meth:`bind` for others.

        Raises a ``ValueError`` if the file holds something else.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"{path} does not hold a CMWNet; CMWNet.save writes one")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is not a mapping
        families, hidden = state["heads.weight"].shape
        network = cls(range(1, families + 1), families, hidden, **json.loads(metadata["hyperparameters"]))
        network.register_buffer("family", state["family"])
        network.load_state_dict(state, assign=True)
        return network

    def extra_repr(self) -> str:
        return f"classes={len(self.family)}, families={len(self.centers)}, floor={self.floor}"


def _relative_sizes(class_counts: Tensor | npt.ArrayLike) -> npt.NDArray[np.float64]:
    values: Any = class_counts.detach().cpu().numpy() if isinstance(class_counts, Tensor) else class_counts
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1 or len(counts) == 0:
        raise ValueError(f"class_counts must be a vector [C], got shape {list(counts.shape)}")
    if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts == np.rint(counts)).all()):
        raise ValueError(f"class_counts must be the number of samples of each class, integers from 0, got {counts}")
    if counts.max() == 0:
        raise ValueError("class_counts are all zero: give the number of training samples of each class")
    sizes: npt.NDArray[np.float64] = counts / counts.max()
    return sizes


def _kmeans_centers(values: npt.NDArray[np.float64], clusters: int) -> npt.NDArray[np.float64]:
    """Ascending centres ``[min(clusters, distinct values)]`` of the best k-means clustering of numbers ``[n]``.

    In one dimension the clusters are intervals of the sorted values. The best split of the first j of them into k
    intervals follows from those into k − 1, so dynamic programming finds the optimum instead of a local one.
    """
    distinct, multiplicity = np.unique(values, return_counts=True)
    n = len(distinct)
    weight, total, square = (np.concatenate([[0.0], np.cumsum(multiplicity * distinct**power)]) for power in (0, 1, 2))
    start, end = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = square[end] - square[start] - (total[end] - total[start]) ** 2 / (weight[end] - weight[start])
    cost = np.where(start < end, np.maximum(spread, 0), np.inf)  # of one interval [start, end)
    best = cost[0]
    splits = []
    for _ in range(min(clusters, n) - 1):
        candidates = best[:, None] + cost
        splits.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    edges = [n]
    for split in reversed(splits):
        edges.append(int(split[edges[-1]]))
    edges.append(0)
    edges.reverse()
    return np.array([(total[b] - total[a]) / (weight[b] - weight[a]) for a, b in pairwise(edges)])
