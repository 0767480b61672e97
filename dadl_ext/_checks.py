"""Validation of arguments, shared by the compiled functions and the reference."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

LabelSimilarity: TypeAlias = str | Tensor | Callable[[Tensor], Tensor] | None

REDUCTIONS = ("none", "mean", "sum")
LABEL_SIMILARITIES = ("negative_l1", "negative_l2", "cosine")
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGER = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype} of shape {tuple(value.shape)}; "
            f"convert with {name}.float()"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; convert with {name}.to_dense()")


def check_no_tangent(function: str, value: Tensor) -> None:
    """Custom operators drop forward-mode tangents silently; ranks have none to give, so say so."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise NotImplementedError(
            f"{function} has no forward-mode derivative: ranks are piecewise constant and their surrogate gradient is "
            "defined for reverse mode only"
        )


def check_interp_strength(interp_strength: float) -> None:
    if not (math.isfinite(interp_strength) and interp_strength > 0):
        raise ValueError(f"interp_strength (λ) must be positive and finite, got {interp_strength}")


def check_rank(input: Tensor, interp_strength: float) -> None:
    check_floating("input", input)
    if input.dim() == 0:
        raise ValueError("input must have at least one dimension to rank along, got a 0-dimensional tensor")
    check_interp_strength(interp_strength)
    check_no_tangent("rank", input)


def check_ranksim(
    features: Tensor,
    labels: Tensor,
    interp_strength: float,
    weight: float,
    reduction: str,
    label_similarity: LabelSimilarity,
) -> tuple[Tensor, Tensor]:
    """Return features as ``[n, d]`` and labels, without gradient, as ``[n]`` or ``[n, k]`` of a supported dtype."""
    check_floating("features", features)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype not in FLOATING + INTEGER:
        raise TypeError(f"labels must be floating-point or integer, got {labels.dtype}")
    shapes = f"features {tuple(features.shape)} and labels {tuple(labels.shape)}"
    if features.dim() < 2:
        raise ValueError(f"features must be [n, d] (or [n, ...], flattened), got {shapes}")
    if labels.dim() not in (1, 2):
        raise ValueError(f"labels must be [n] or [n, k], got {shapes}")
    if features.shape[0] != labels.shape[0]:
        raise ValueError(f"features and labels must have one row per sample, got {shapes}")
    if labels.dim() == 2 and labels.shape[1] == 0:
        raise ValueError(f"labels [n, k] must have k >= 1, got {shapes}")
    if features.device != labels.device:
        raise ValueError(
            f"features and labels must be on one device, got features {tuple(features.shape)} on {features.device} and "
            f"labels {tuple(labels.shape)} on {labels.device}; move them with labels.to(features.device)"
        )
    check_ranksim_settings(interp_strength, weight, reduction, label_similarity)
    check_no_tangent("ranksim_loss", features)
    if isinstance(label_similarity, Tensor):
        check_similarity_matrix(label_similarity, features.device)

    labels = labels.detach()
    if labels.dtype in INTEGER:
        labels = labels.long()
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return features.flatten(1), labels


def check_ranksim_settings(
    interp_strength: float, weight: float, reduction: str, label_similarity: LabelSimilarity
) -> None:
    check_interp_strength(interp_strength)
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight (γ) must be non-negative and finite, got {weight}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if isinstance(label_similarity, str):
        if label_similarity not in LABEL_SIMILARITIES:
            raise ValueError(
                f"label_similarity must be one of {LABEL_SIMILARITIES}, a callable or a matrix, "
                f"got {label_similarity!r}"
            )
    elif not (label_similarity is None or isinstance(label_similarity, Tensor) or callable(label_similarity)):
        raise TypeError(
            f"label_similarity must be None, a string, a callable or a tensor, got {type(label_similarity).__name__}"
        )


def check_similarity_matrix(matrix: Tensor, device: torch.device) -> None:
    if not isinstance(matrix, Tensor):
        raise TypeError(f"a label_similarity callable must return a torch.Tensor, got {type(matrix).__name__}")
    if matrix.dtype not in FLOATING + INTEGER:
        raise TypeError(f"the label-similarity matrix must be floating-point or integer, got {matrix.dtype}")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the label-similarity matrix must be square, [m, m], got {tuple(matrix.shape)}")
    if matrix.device != device:
        raise ValueError(f"the label-similarity matrix is on {matrix.device}, the features are on {device}")
