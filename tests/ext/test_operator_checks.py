"""The operators themselves, called past the functions that check arguments first, refuse what they cannot compute."""

from typing import Any

import pytest
import torch
from torch import Tensor

import dadl_ext  # noqa: F401, registers the operators

ops = torch.ops.dadl

N, D, C = 6, 4, 3
X, LONG, WIDE = torch.randn(N, D), torch.arange(N), torch.randn(N, D, dtype=torch.float64)
LABELS, PRIORITY, ROWS = torch.arange(N).float(), torch.rand(N, dtype=torch.float64), torch.randn(N)
INDEX, ORDER, COUNT = ops.ranksim_select(LABELS, PRIORITY)
QUEUE, TARGET, SLOTS = torch.randn(C, 2, D), LONG % C, torch.tensor([1, 2, 0])
WEIGHT, BIAS, SEED = torch.randn(C, D), torch.randn(C), torch.tensor(1)
MATRIX = torch.randn(N, N)

# An operator with arguments by name that it accepts, then for some of them a value that it refuses, and what it says.
Wrong = list[tuple[str, Any, str]]
FEATURES: Wrong = [
    ("features", LONG[:, None], r"features must be \[n, d\], in float32"),
    ("features", X[None], r"features must be \[n, d\], in float32"),
]
OF_LABELS: Wrong = [
    ("labels", torch.randn(N, 1, 1), r"labels must be \[n\] or \[n, k\]"),
    ("labels", LABELS[1:], r"labels must be \[n\] or \[n, k\]"),
]
OF_RANKSIM: Wrong = [
    *FEATURES,
    *OF_LABELS,
    ("labels", X, "vector labels need a label-similarity matrix"),
    ("label_similarity", MATRIX.long(), "label_similarity must be float32 or float64"),
    ("label_similarity", MATRIX[None], "label_similarity must be a square matrix"),
    ("label_similarity", MATRIX[:, 1:], "label_similarity must be a square matrix"),
    ("label_similarity", MATRIX[1:, 1:], r"m must be in 6\.\.6, got 5"),
    ("label_similarity", torch.randn(N + 1, N + 1), r"m must be in 6\.\.6, got 7"),
]
OF_SUBSET: Wrong = [
    ("index", INDEX[1:], r"index and order must be int64 \[n\]"),
    ("order", ORDER.int(), r"index and order must be int64 \[n\]"),
    ("index", INDEX[None], r"index and order must be int64 \[n\]"),
    ("count", INDEX, "count must be one int64"),
    ("count", COUNT.int(), "count must be one int64"),
    ("count", COUNT - N - 1, r"count must be in 0\.\.6, got -1"),
    ("count", COUNT + 1, r"count must be in 0\.\.6, got 7"),
]
OF_RANK_N_CONTRAST: Wrong = [
    *FEATURES,
    *OF_LABELS,
    ("labels", LABELS.bool(), "labels must be int64, float32"),
    ("temperature", 0.0, "temperature must be positive, got 0"),
    ("temperature", float("nan"), "temperature must be positive"),
    ("similarity", 2, r"similarity must be 0 \(L2\) or 1"),
    ("similarity", -1, r"similarity must be 0 \(L2\) or 1"),
    ("label_distance", 2, r"label_distance must be 0 \(L1\) or 1"),
    ("label_distance", -1, r"label_distance must be 0 \(L1\) or 1"),
]
OF_CONTRAST: Wrong = [
    ("query", LONG[:, None], "query and key must be float32, float64, float16"),
    ("key", LONG[:, None], "query and key must be float32, float64, float16"),
    ("query", X[0], r"query must be \[B, d\] and key \[N, d\]"),
    ("key", X[:, 1:], r"query must be \[B, d\] and key \[N, d\]"),
    ("key", WIDE, "query and key must both be float64, or neither"),
    ("scale", float("inf"), "scale must be finite, got inf"),
    ("key", torch.randn(N + 1, D), "exclude_self needs one key per query"),
    ("key_mask", torch.ones(N), r"key_mask must be bool \[N\]"),
    ("key_mask", torch.ones(N + 1, dtype=torch.bool), r"key_mask must be bool \[N\]"),
    ("key_mask", torch.ones(N, 1, dtype=torch.bool), r"key_mask must be bool \[N\]"),
]
OF_DROPOUT: Wrong = [
    ("features", X[0], r"features must be \[B, F\] and weight \[C, F\]"),
    ("weight", WEIGHT[0], r"features must be \[B, F\] and weight \[C, F\]"),
    ("weight", WEIGHT[:, 1:], r"features must be \[B, F\] and weight \[C, F\]"),
    ("weight", WEIGHT.double(), r"features must be \[B, F\] and weight \[C, F\]"),
    ("seed", LONG, "seed must be one int64"),
    ("seed", SEED.int(), "seed must be one int64"),
    ("p", 1.0, r"p must be in \[0, 1 - 2\^-17\), got 1"),
    ("p", 1 - 2**-18, r"p must be in \[0, 1 - 2\^-17\)"),
    ("p", -0.1, r"p must be in \[0, 1 - 2\^-17\), got -0\.1"),
]
OF_BIAS: Wrong = [
    ("bias", BIAS[1:], r"bias must be \[C\], in the features' dtype"),
    ("bias", BIAS[None], r"bias must be \[C\], in the features' dtype"),
    ("bias", BIAS.double(), r"bias must be \[C\], in the features' dtype"),
    ("samples", 0, "samples must be at least 1, got 0"),
]
OF_MEASURE: Wrong = [
    ("measure", -1, r"measure must be in 0\.\.\d, got -1"),
    ("measure", 100, r"measure must be in 0\.\.\d, got 100"),
]
RANKSIM = {"features": X, "labels": LABELS, "label_similarity": None, "interp_strength": 2.0, "weight": 1.0}
SUBSET = {"index": INDEX, "order": ORDER, "count": COUNT}
RANK_N_CONTRAST = {"features": X, "labels": LABELS, "temperature": 2.0, "similarity": 0, "label_distance": 0}
CONTRAST = {"query": X, "key": X, "key_mask": None, "scale": 2.0, "exclude_self": True}
DROPOUT = {"features": X, "weight": WEIGHT, "seed": SEED, "p": 0.5}
OPERATORS: dict[str, tuple[dict[str, Any], Wrong]] = {
    "rank": ({"input": X, "interp_strength": 2.0}, [("input", torch.tensor(1.0), "at least one dimension")]),
    "rank_backward": (
        {"grad": X, "input": X, "ranks": ops.rank(X, 2.0), "interp_strength": 2.0},
        [
            ("grad", WIDE, "grad and ranks in rank's output dtype"),
            ("ranks", WIDE, "grad and ranks in rank's output dtype"),
            ("grad", X[1:], "grad, input and ranks of one shape"),
            ("ranks", X[1:], "grad, input and ranks of one shape"),
        ],
    ),
    "ranksim_select": (
        {"labels": LABELS, "priority": PRIORITY},
        [
            ("labels", torch.randn(N, 1, 1), r"labels must be \[n\] or \[n, k\]"),
            ("priority", PRIORITY[1:], r"priority must be float64 \[n\]"),
            ("priority", PRIORITY[:, None], r"priority must be float64 \[n\]"),
            ("priority", PRIORITY.float(), r"priority must be float64 \[n\]"),
        ],
    ),
    "ranksim_loss": ({**RANKSIM, "priority": PRIORITY, "mean": True, "with_gradient": True}, OF_RANKSIM),
    "ranksim_rows": ({**RANKSIM, **SUBSET}, [*OF_RANKSIM, *OF_SUBSET]),
    "ranksim_rows_backward": (
        {**RANKSIM, **SUBSET, "grad": ROWS},
        [
            *OF_RANKSIM,
            *OF_SUBSET,
            ("grad", X, r"grad must be \[n\], in the dtype of ranksim_rows"),
            ("grad", ROWS[1:], r"grad must be \[n\], in the dtype of ranksim_rows"),
            ("grad", ROWS.double(), r"grad must be \[n\], in the dtype of ranksim_rows"),
        ],
    ),
    "rank_n_contrast": (
        {**RANK_N_CONTRAST, "reduction": 1, "with_gradient": True},
        [
            *OF_RANK_N_CONTRAST,
            ("reduction", -1, r"reduction must be 0 \(none\), 1"),
            ("reduction", 3, r"reduction must be 0 \(none\), 1"),
        ],
    ),
    "rank_n_contrast_backward": (
        {**RANK_N_CONTRAST, "grad": ROWS},
        [
            *OF_RANK_N_CONTRAST,
            ("grad", X, r"grad must be \[n\], in the dtype of the anchors' losses"),
            ("grad", ROWS[1:], r"grad must be \[n\], in the dtype of the anchors' losses"),
            ("grad", ROWS.double(), r"grad must be \[n\], in the dtype of the anchors' losses"),
        ],
    ),
    "similarity_logsumexp": ({**CONTRAST, "with_slope": True}, OF_CONTRAST),
    "similarity_logsumexp_key_gradient": (
        {**CONTRAST, "grad": ROWS, "lse": ROWS},
        [
            *OF_CONTRAST,
            ("grad", X, r"grad and lse must be \[B\]"),
            ("lse", X, r"grad and lse must be \[B\]"),
            ("grad", ROWS[1:], r"grad and lse must be \[B\]"),
            ("lse", ROWS.double(), r"grad and lse must be \[B\]"),
        ],
    ),
    "pseudo_group_contrast": (
        {
            "query": X,
            "key": X,
            "queue": QUEUE,
            "target": TARGET,
            "slot_count": SLOTS,
            "temperature": 0.1,
            "form": 0,
            "ignore_index": -1,
            "reduction": 1,
            "with_slope": True,
        },
        [
            ("query", X.long(), "query, key and queue must be float32, float64"),
            ("queue", QUEUE.long(), "query, key and queue must be float32, float64"),
            ("key", X[1:], r"query and key must be \[B, d\] and queue \[C, D, d\]"),
            ("queue", QUEUE[:, :, 1:], r"query and key must be \[B, d\] and queue \[C, D, d\]"),
            ("queue", QUEUE[:0], r"query and key must be \[B, d\] and queue \[C, D, d\]"),
            ("key", WIDE, "query, key and queue must all be float64, or none"),
            ("queue", QUEUE.double(), "query, key and queue must all be float64, or none"),
            ("target", TARGET[1:], r"target must be int64 \[B\]"),
            ("target", TARGET.int(), r"target must be int64 \[B\]"),
            ("slot_count", SLOTS[1:], r"slot_count must be int64 \[C\]"),
            ("slot_count", SLOTS.float(), r"slot_count must be int64 \[C\]"),
            ("temperature", 0.0, "temperature must be positive and finite, got 0"),
            ("temperature", float("inf"), "temperature must be positive and finite, got inf"),
            ("form", 2, r"form must be 0 \(cross_entropy\) or 1"),
            ("ignore_index", 0, "ignore_index must not be a class, got 0"),
            ("ignore_index", C - 1, "ignore_index must not be a class, got 2"),
            ("reduction", -1, r"reduction must be 0 \(none\), 1"),
            ("reduction", 3, r"reduction must be 0 \(none\), 1"),
        ],
    ),
    "disagreement": (
        {"predictions": torch.randn(2, 3, 1, 4), "measure": 0, "mean": True, "with_gradient": True},
        [
            *OF_MEASURE,
            ("predictions", torch.randn(2, 3, 4), r"predictions must be \[K, B, R, C\] with K, R and C >= 1"),
            ("predictions", torch.randn(0, 3, 1, 4), r"predictions must be \[K, B, R, C\] with K, R and C >= 1"),
            ("predictions", torch.randn(2, 3, 0, 4), r"predictions must be \[K, B, R, C\] with K, R and C >= 1"),
            ("predictions", torch.randn(2, 3, 1, 0), r"predictions must be \[K, B, R, C\] with K, R and C >= 1"),
        ],
    ),
    "dropout_linear": ({**DROPOUT, "bias": BIAS, "samples": 2}, [*OF_DROPOUT, *OF_BIAS]),
    "dropout_linear_backward": (
        {**DROPOUT, "grad": torch.randn(2, N, C), "for_features": True, "for_weight": True},
        [
            ("grad", torch.randn(N, C), r"grad must be \[K, B, C\], in the features' dtype"),
            ("grad", torch.randn(2, N, C).double(), r"grad must be \[K, B, C\], in the features' dtype"),
            ("grad", torch.randn(0, N, C), "samples must be at least 1, got 0"),
            ("grad", torch.randn(2, N + 1, C), r"grad must be \[K, B, C\] for features \[B, F\]"),
            ("grad", torch.randn(2, N, C + 1), r"grad must be \[K, B, C\] for features \[B, F\]"),
            *OF_DROPOUT,
        ],
    ),
    "dropout_disagreement": (
        {**DROPOUT, "bias": BIAS, "samples": 2, "measure": 0, "mean": True, "minimax": False, "with_gradient": True},
        [*OF_DROPOUT, *OF_BIAS, *OF_MEASURE],
    ),
    "scale_gradient": (
        {"grad": ROWS, "gradient": X, "input": X, "dim": 0},
        [
            ("gradient", X[1:], "gradient must have the input's shape, in float32"),
            ("gradient", X[None], "gradient must have the input's shape, in float32"),
            ("gradient", WIDE, "gradient must have the input's shape, in float32"),
            ("grad", ROWS[1:], r"grad must be \[\] or as long as the input's dimension 0"),
            ("grad", X, r"grad must be \[\] or as long as the input's dimension 0"),
            ("grad", ROWS.double(), "in the gradient's dtype"),
            ("dim", 2, r"grad must be \[\] or as long as the input's dimension 2"),
            ("dim", -1, r"grad must be \[\] or as long as the input's dimension -1"),
        ],
    ),
}


def call(name: str, arguments: dict[str, Any]) -> Any:
    return getattr(ops, name)(**arguments)


def test_every_operator_is_tried() -> None:
    named = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("dadl::")}
    assert set(OPERATORS) == {name for name in named if "." not in name}  # an overload calls the operator


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_accepts_the_arguments_that_are_spoilt_below(name: str) -> None:
    call(name, OPERATORS[name][0])


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [(name, *wrong) for name, (_, found) in OPERATORS.items() for wrong in found],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else None,
)
def test_an_operator_refuses_each_wrong_argument(name: str, argument: str, value: Any, message: str) -> None:
    arguments = OPERATORS[name][0]
    assert argument in arguments
    with pytest.raises(RuntimeError, match=message):
        call(name, {**arguments, argument: value})


def test_dropout_disagreement_is_for_few_outputs() -> None:
    arguments = {**OPERATORS["dropout_disagreement"][0], "bias": None}
    most = next(most for most in range(1, 1000) if not accepted(arguments, most + 1))
    with pytest.raises(RuntimeError, match=f"is for 1 to {most} outputs, got {most + 1}"):
        call("dropout_disagreement", {**arguments, "weight": torch.randn(most + 1, D)})


def accepted(arguments: dict[str, Any], outputs: int) -> bool:
    try:
        call("dropout_disagreement", {**arguments, "weight": torch.randn(outputs, D)})
    except RuntimeError:
        return False
    return True


def test_scale_gradient_scales_along_the_dimension() -> None:
    gradient = torch.randn(2, 3, 4)
    for dim, (name) in enumerate("abc"):
        grad = torch.randn(gradient.shape[dim])
        expected = torch.einsum(f"abc,{name}->abc", gradient, grad)
        assert torch.equal(ops.scale_gradient(grad, gradient, gradient, dim), expected)
        half: Tensor = ops.scale_gradient(grad, gradient, gradient.half(), dim)
        assert torch.equal(half, expected.half())
    assert torch.equal(ops.scale_gradient(torch.tensor(2.0), gradient, gradient, 0), 2 * gradient)
    with pytest.raises(RuntimeError, match="as long as the input's dimension -1"):  # though the sizes are equal
        ops.scale_gradient(torch.randn(4), gradient, gradient, -1)
