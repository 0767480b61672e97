"""Validation of arguments."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .dtypes import FLOATING, INTEGER
from .members import CLASS_MEASURES, MEASURES
from .operation import readable

LabelSimilarity: TypeAlias = str | Tensor | Callable[[Tensor], Tensor] | None

REDUCTIONS = ("none", "mean", "sum")
LABEL_SIMILARITIES = ("negative_l1", "negative_l2", "cosine")


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


def check_no_tangent(function: str, *values: Tensor) -> None:
    """Raise in forward mode: custom operators would drop tangents silently."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(value).tangent is not None for value in values):
        raise NotImplementedError(
            f"{function} has no forward-mode derivative, only a reverse-mode gradient; leave it out of what is "
            "differentiated in forward mode"
        )


def check_interp_strength(interp_strength: float) -> None:
    if not 0 < interp_strength < math.inf:
        raise ValueError(f"interp_strength (λ) must be positive and finite, got {interp_strength}")


def check_rank(input: Tensor, interp_strength: float) -> None:
    check_floating("input", input)
    if input.dim() == 0:
        raise ValueError("input must have at least one dimension to rank along, got a 0-dimensional tensor")
    check_interp_strength(interp_strength)
    check_no_tangent("rank", input)


def _check_labelled(features: Tensor, labels: Tensor, most_dims: float, expected: str) -> Tensor:
    """Return the labels as ``[n]`` or ``[n, k]``, detached and in a dtype of the operators."""
    check_floating("features", features)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype not in FLOATING + INTEGER:
        raise TypeError(f"labels must be floating-point or integer, got {labels.dtype}")
    if (
        not 2 <= features.dim() <= most_dims
        or labels.dim() not in (1, 2)
        or features.shape[:1] != labels.shape[:1]
        or 0 in labels.shape[1:]
    ):
        raise ValueError(
            f"features must be {expected} and labels [n] or [n, k], k >= 1, one row per sample, got features "
            f"{tuple(features.shape)} and labels {tuple(labels.shape)}"
        )
    if features.device != labels.device:
        raise ValueError(
            f"features and labels must be on one device, got features {tuple(features.shape)} on {features.device} and "
            f"labels {tuple(labels.shape)} on {labels.device}; move them with labels.to(features.device)"
        )
    if labels.requires_grad:
        labels = labels.detach()
    if labels.dtype in INTEGER:
        labels = labels.long()
    return labels[:, 0] if labels.dim() == 2 and labels.shape[1] == 1 else labels


def check_ranksim(
    features: Tensor,
    labels: Tensor,
    interp_strength: float,
    weight: float,
    reduction: str,
    label_similarity: LabelSimilarity,
) -> tuple[Tensor, Tensor]:
    """Return features as ``[n, d]``, and labels as ``[n]`` or ``[n, k]``, detached and in a dtype of the operators."""
    labels = _check_labelled(features, labels, math.inf, "[n, d] (or [n, ...], flattened)")
    check_ranksim_settings(interp_strength, weight, reduction, label_similarity)
    check_no_tangent("ranksim_loss", features)
    if isinstance(label_similarity, Tensor):
        check_similarity_matrix(label_similarity, features.device)

    return features if features.dim() == 2 else features.flatten(1), labels


def check_ranksim_settings(
    interp_strength: float, weight: float, reduction: str, label_similarity: LabelSimilarity
) -> None:
    check_interp_strength(interp_strength)
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight (γ) must be non-negative and finite, got {weight}")
    check_reduction(reduction)
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
        raise ValueError(
            f"the label-similarity matrix is on {matrix.device}, the features are on {device}; move one of them"
        )


SIMILARITIES = ("negative_l2", "cosine")  # in the order of csrc/core/rank_n_contrast.h
LABEL_DISTANCES = ("l1", "l2")


def check_rank_n_contrast(
    features: Tensor, labels: Tensor, temperature: float, similarity: str, label_distance: str, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return features as ``[n, d]`` with their labels; views ``[n, v, d]`` are concatenated view by view."""
    labels = _check_labelled(features, labels, 3, "[n, d] or [n, views, d]")
    check_rank_n_contrast_settings(temperature, similarity, label_distance, reduction)
    check_no_tangent("rank_n_contrast", features)
    return concatenate_views(features, labels)


def check_rank_n_contrast_settings(temperature: float, similarity: str, label_distance: str, reduction: str) -> None:
    check_temperature(temperature)
    for name, value, known in (
        ("similarity", similarity, SIMILARITIES),
        ("label_distance", label_distance, LABEL_DISTANCES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    check_reduction(reduction)


FORMS = ("cross_entropy", "kl")


def check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature (τ) must be positive and finite, got {temperature}")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def class_labels(labels: Tensor) -> Tensor:
    """Class labels of any integer dtype, ``[n]`` or ``[n, 1]``, as int64 ``[n]``."""
    if isinstance(labels, Tensor):
        if labels.dtype != torch.int64 and labels.dtype in INTEGER:
            labels = labels.long()
        if labels.dim() == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
    return labels


def check_integer(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be of an integer dtype, got {value.dtype}; convert with {name}.long()")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the query on {device}; move it with {name}.to(query.device)")


def _check_rows(function: str, reference: Tensor, **others: Tensor) -> None:
    for name, value in others.items():
        if value.device != reference.device:
            raise ValueError(f"{name} is on {value.device}, the query on {reference.device}; move one of them")
        if (value.dtype == torch.float64) != (reference.dtype == torch.float64):
            raise TypeError(
                f"{name} is {value.dtype}, the query {reference.dtype}; {function} mixes float64 with no other dtype"
            )
        if value.shape[-1] != reference.shape[-1]:
            raise ValueError(
                f"{name} {tuple(value.shape)} must have the query's last dimension, {tuple(reference.shape)}"
            )


def check_contrast(query: Tensor, key: Tensor, scale: float, key_mask: Tensor | None, exclude_self: bool) -> None:
    check_floating("query", query)
    check_floating("key", key)
    if query.dim() != 2 or key.dim() != 2:
        raise ValueError(f"query must be [B, d] and key [N, d], got {tuple(query.shape)} and {tuple(key.shape)}")
    _check_rows("similarity_logsumexp", query, key=key)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    if key_mask is not None:
        if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
            got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
            raise TypeError(f"key_mask must be a bool tensor, True for the keys that take part, got {got}")
        if key_mask.shape != key.shape[:1] or key_mask.device != key.device:
            raise ValueError(
                f"key_mask must be [{key.shape[0]}] on {key.device}, got {tuple(key_mask.shape)} on {key_mask.device}"
            )
    if exclude_self and query.shape[0] != key.shape[0]:
        raise ValueError(
            f"exclude_self needs one key per query, got query {tuple(query.shape)} and key {tuple(key.shape)}"
        )


def check_group_contrast(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    target: Tensor,
    slot_count: Tensor | None,
    temperature: float,
    form: str,
    ignore_index: int,
    reduction: str,
) -> None:
    check_floating("query", query)
    check_floating("key", key)
    check_floating("queue", queue)
    if query.dim() != 2 or key.shape != query.shape or queue.dim() != 3:
        raise ValueError(
            "query and key must be [B, d] and queue [C, D, d], got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(queue.shape)}"
        )
    if queue.shape[0] == 0:
        raise ValueError(f"queue must have at least one class, got {tuple(queue.shape)}")
    _check_rows("pseudo_group_contrast", query, key=key, queue=queue)
    check_integer("target", target, (query.shape[0],), query.device)
    check_temperature(temperature)
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    check_reduction(reduction)
    if 0 <= ignore_index < queue.shape[0]:
        raise ValueError(f"ignore_index must not be a class, got {ignore_index} with {queue.shape[0]} classes")
    if slot_count is not None:
        check_integer("slot_count", slot_count, (queue.shape[0],), query.device)


def check_sample_weight(sample_weight: Tensor, target: Tensor) -> None:
    check_floating("sample_weight", sample_weight)
    if sample_weight.shape != target.shape or sample_weight.device != target.device:
        raise ValueError(
            f"sample_weight must be {tuple(target.shape)} on {target.device}, got "
            f"{tuple(sample_weight.shape)} on {sample_weight.device}"
        )


def check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    if not readable(target):
        return
    outside = (target != ignore_index) & ((target < 0) | (target >= classes))
    if outside.any():
        raise ValueError(
            f"target must hold classes 0..{classes - 1} or ignore_index={ignore_index}, got {target[outside][0].item()}"
        )


def check_supervised_contrast(
    features: Tensor, labels: Tensor, temperature: float, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return features as ``[n, d]`` and labels as ``[n]``; views ``[n, v, d]`` are concatenated view by view."""
    check_floating("features", features)
    if features.dim() not in (2, 3):
        raise ValueError(f"features must be [n, d], or [n, views, d], got {tuple(features.shape)}")
    labels = class_labels(labels)
    check_integer("labels", labels, (features.shape[0],), features.device)
    check_temperature(temperature)
    check_reduction(reduction)
    check_no_tangent("supervised_contrast", features)
    return concatenate_views(features, labels)


def concatenate_views(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[n, views, d]`` and the labels of their samples view by view; features ``[n, d]`` as they are."""
    if features.dim() == 2:
        return features, labels
    return features.transpose(0, 1).flatten(0, 1), labels.repeat(features.shape[1], *(1,) * (labels.dim() - 1))


def check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {MEASURES}, got {measure!r}")


def check_disagreement(predictions: Tensor, measure: str, reduction: str) -> None:
    check_floating("predictions", predictions)
    check_measure(measure)
    check_reduction(reduction)
    least = 3 if measure in CLASS_MEASURES else 2
    if predictions.dim() < least or 0 in (predictions.shape[0], *predictions.shape[2:]):
        expected = "[K, B, ..., C], or heatmaps [K, B, J, H, W]," if least == 3 else "[K, B, ...]"
        raise ValueError(
            f"predictions must be {expected} with at least one member and one output for {measure}, "
            f"got {tuple(predictions.shape)}"
        )
    check_no_tangent("disagreement", predictions)


def check_p(p: float) -> None:
    if not 0 <= p * 65536 < 65535.5:
        raise ValueError(f"p must be in [0, 1) and below 1 - 2^-17, got {p}")
    if 0 < p * 65536 <= 0.5:
        raise ValueError(f"p is rounded to 16 bits, and {p} would round to 0; use p=0 for no dropout")


def check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples (K) must be at least 1, got {samples}")


def check_dropout(
    features: Tensor, weight: Tensor, bias: Tensor | None, p: float, samples: int, seed: int | Tensor
) -> None:
    check_floating("features", features)
    if features.dim() < 2 or features.shape[-1] == 0:
        raise ValueError(f"features must be [B, F] (or [..., F]) with F >= 1, got {tuple(features.shape)}")
    for name, value, dims in (("weight", weight, 2), ("bias", bias, 1)):
        if value is None:
            continue
        check_floating(name, value)
        if value.dim() != dims or (name == "weight" and value.shape[1] != features.shape[-1]):
            raise ValueError(
                f"weight must be [C, F] and bias [C], got features {tuple(features.shape)} and {name} "
                f"{tuple(value.shape)}"
            )
        if value.dtype != features.dtype:
            raise TypeError(f"{name} is {value.dtype}, the features {features.dtype}; convert one of them")
        if value.device != features.device:
            raise ValueError(f"{name} is on {value.device}, the features on {features.device}; move one of them")
        check_no_tangent("dropout_linear", value)
    if weight.shape[0] == 0 or (bias is not None and bias.shape[0] != weight.shape[0]):
        shapes = f"weight {tuple(weight.shape)}" + ("" if bias is None else f" and bias {tuple(bias.shape)}")
        raise ValueError(f"weight and bias must have the same number of outputs, at least one, got {shapes}")
    check_no_tangent("dropout_linear", features)
    check_p(p)
    check_samples(samples)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"a seed tensor must hold one int64, got {seed.dtype} of shape {tuple(seed.shape)}")
        if seed.device != features.device:
            raise ValueError(
                f"the seed is on {seed.device}, the features are on {features.device}; use an int, or move it with "
                "seed.to(features.device)"
            )
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or an int64 tensor, got {type(seed).__name__}")
    elif not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in 64 bits, got {seed}")
