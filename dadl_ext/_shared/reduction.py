"""Reduction of row losses, shared by the compiled functions and the reference."""

from torch import Tensor


def reduce_rows(rows: Tensor, counted: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
    """Rows that do not count are 0, whatever they hold; the mean is over those that do, and 0 without any."""
    rows = rows.masked_fill(~counted, 0)
    if sample_weight is not None:
        rows = rows * sample_weight
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if reduction == "sum" else total / counted.sum().clamp_min(1)
