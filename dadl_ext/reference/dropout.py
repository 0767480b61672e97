"""Linear maps under many dropout masks, in plain PyTorch. All masks are formed."""

import torch
from torch import Tensor

from .._shared.checks import check_dropout
from .._shared.dtypes import arithmetic_dtype
from .._shared.reversal import reverse_gradient
from .disagreement import disagreement

__all__ = ["dropout_disagreement", "dropout_linear", "dropout_masks", "philox"]

_LOW = 0xFFFFFFFF


def _high_and_low(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low words of a 64-bit product. It is formed from 16 bits at a time, because it overflows int64."""
    upper, lower = factor * (word >> 16), factor * (word & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _LOW
    return high, low


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011) on words in int64 tensors, which broadcast."""
    x0, x1, x2, x3 = counter
    low, high = key
    for _ in range(10):
        (a_high, a_low), (b_high, b_low) = _high_and_low(0xD2511F53, x0), _high_and_low(0xCD9E8D57, x2)
        x0, x1, x2, x3 = b_high ^ x1 ^ low, b_low, a_high ^ x3 ^ high, a_low
        low, high = (low + 0x9E3779B9) & _LOW, (high + 0xBB67AE85) & _LOW
    return x0, x1, x2, x3


def dropout_masks(seed: int | Tensor, samples: int, rows: int, features: int, p: float) -> Tensor:
    """Which features are kept, ``[K, B, F]`` bool. csrc/core/philox.h describes the layout of the draws."""
    seed = torch.as_tensor(seed).reshape(())
    device = seed.device
    feature = torch.arange(features, device=device)
    row, member = torch.arange(rows, device=device)[:, None], torch.arange(samples, device=device)[:, None, None]
    counter = (feature // 128 * 16 + feature % 16, row & _LOW, row >> 32, member)
    words = torch.stack(torch.broadcast_tensors(*philox(counter, (seed & _LOW, (seed >> 32) & _LOW))))
    chosen = (feature // 32 % 4).expand(words.shape[1:])
    word = words.gather(0, chosen[None])[0]
    draw = torch.where(feature // 16 % 2 == 0, word & 0xFFFF, word >> 16)
    return draw >= round(p * 65536)


def dropout_linear(
    features: Tensor, weight: Tensor, bias: Tensor | None = None, *, p: float, samples: int, seed: int | Tensor
) -> Tensor:
    """See :func:`dadl_ext.functional.dropout_linear`."""
    check_dropout(features, weight, bias, p, samples, seed)
    dtype = arithmetic_dtype(features)
    rows = features.reshape(-1, features.shape[-1]).to(dtype)
    keep = dropout_masks(seed, samples, len(rows), rows.shape[1], p).to(rows.device)
    masked = rows * keep * (65536 / (65536 - round(p * 65536)))
    result = masked @ weight.to(dtype).T
    if bias is not None:
        result = result + bias.to(dtype)
    return result.to(features.dtype).reshape(samples, *features.shape[:-1], len(weight))


def dropout_disagreement(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float,
    samples: int,
    seed: int | Tensor,
    measure: str = "mse",
    minimax: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """See :func:`dadl_ext.functional.dropout_disagreement`."""
    check_dropout(features, weight, bias, p, samples, seed)
    if minimax:
        weight, bias = reverse_gradient(weight), None if bias is None else reverse_gradient(bias)
    dtype = arithmetic_dtype(features)
    wide_bias = None if bias is None else bias.to(dtype)
    predictions = dropout_linear(features.to(dtype), weight.to(dtype), wide_bias, p=p, samples=samples, seed=seed)
    return disagreement(predictions.reshape(samples, -1, len(weight)), measure, reduction=reduction)
