"""Rows of tensors that may be more than fit into memory, copied when they are asked for and not before."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Rows(Protocol):
    """A tensor, or what gives rows of one."""

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
        """Some of them, not copied."""
        return ChosenRows(self.tensor, self.chosen[rows])

    def split(self, sizes: Sequence[int]) -> "list[ChosenRows]":
        """Parts of these sizes, not copied."""
        return [ChosenRows(self.tensor, part) for part in self.chosen.split(list(sizes))]
