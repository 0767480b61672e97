"""Reduction of row losses."""

from torch import Tensor


def reduce_rows(rows: Tensor, counted: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
    """Set rows that do not count to 0, whatever they hold. The mean is over the others, and 0 if there are none."""
    rows = rows.masked_fill(~counted, 0)
    if sample_weight is not None:
        rows = rows * sample_weight
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if reduction == "sum" else total / counted.sum().clamp_min(1)
