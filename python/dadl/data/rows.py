"""Rows of tensors that may not fit into memory: they are copied only when a batch asks for them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Rows(Protocol):
    """A tensor, or anything that returns rows of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor: ...


class ChosenRows:
    """The ``chosen`` rows of a tensor, in that order."""

    def __init__(self, tensor: Tensor, chosen: Tensor) -> None:
        self.tensor, self.chosen = tensor, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Any, /) -> Tensor:
        return self.tensor[self.chosen[rows]]

    def take(self, rows: Tensor | slice) -> "ChosenRows":
        """Some of these rows, without a copy."""
        return ChosenRows(self.tensor, self.chosen[rows])

    def split(self, sizes: Sequence[int]) -> "list[ChosenRows]":
        """Parts of these sizes, without a copy."""
        return [ChosenRows(self.tensor, part) for part in self.chosen.split(list(sizes))]


class TensorRows(Dataset[tuple[Tensor, ...]]):
    """Tensors with a common first dimension; a batch takes one indexing operation instead of one per sample."""

    def __init__(self, *tensors: Rows) -> None:
        if not tensors or any(len(tensor) != len(tensors[0]) for tensor in tensors):
            raise ValueError(f"expected tensors of one length, got lengths {[len(tensor) for tensor in tensors]}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def as_fetched(batch: Any) -> Any:
    """Collate nothing, for data sets whose ``__getitems__`` returns a whole batch."""
    return batch


def tensor_loader(*tensors: Rows, batch_size: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of tensors, e.g. ``(images, targets)``."""
    return DataLoader(TensorRows(*tensors), batch_size=batch_size, shuffle=shuffle, collate_fn=as_fetched)


def side_by_side(indices: Sequence[int], first: int, second: int) -> tuple[Tensor, Tensor]:
    """Rows of two parts of different lengths; within an epoch the rows of the shorter part repeat.

    The rows of the second part are shifted by a random number for each batch, so that no two samples always meet.
    """
    pairs, shift = torch.as_tensor(indices), torch.randint(second, ())
    return pairs % first, (pairs + shift) % second
