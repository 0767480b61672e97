"""Contrast operators, the class queue and the losses on them."""

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.devices import CAPABILITIES, DEVICES
from support.gradients import gradients
from torch import Tensor
from torch.autograd import forward_ad

from dadl_ext import ClassQueue, PseudoGroupContrastLoss, SupervisedContrastLoss, functional, reference
from dadl_ext._shared.checks import FORMS, REDUCTIONS


def numpy_group_contrast(
    query: np.ndarray, key: np.ndarray, queue: np.ndarray, target: np.ndarray, temperature: float, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row losses and their gradients, sample by sample in float64."""
    losses, gradients = [], []
    for q, k, y in zip(query, key, target, strict=True):
        valid = [queue[c, : counts[c]] for c in range(len(queue))]
        keys = np.concatenate([k[None], *valid])
        positives = np.concatenate([k[None], valid[y]])
        s = keys @ q / temperature
        p = np.exp(s - s.max())
        lse, p = s.max() + np.log(p.sum()), p / p.sum()
        losses.append(lse - (positives @ q).mean() / temperature)
        gradients.append((p @ keys - positives.mean(0)) / temperature)
    return np.array(losses), np.array(gradients)


def group_batch(
    seed: int, b: int, c: int, slots: int, d: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, b, d, generator=generator, dtype=torch.float64)
    queue = torch.randn(c, slots, d, generator=generator, dtype=torch.float64)
    target = torch.randint(c, (b,), generator=generator)
    unit = [torch.nn.functional.normalize(value, dim=-1).to(device, dtype) for value in (query, key, queue)]
    return *unit, target.to(device)  # type: ignore[return-value]


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=st.integers(0, 1000),
    b=st.integers(0, 60),
    c=st.integers(1, 30),
    slots=st.integers(1, 40),
    d=st.integers(1, 70),
    temperature=st.sampled_from([0.01, 0.07, 1.0, 10.0]),
    partial=st.booleans(),
    double=st.booleans(),
)
def test_group_contrast_matches_an_independent_float64_computation(
    device: str, seed: int, b: int, c: int, slots: int, d: int, temperature: float, partial: bool, double: bool
) -> None:
    query, key, queue, target = group_batch(seed, b, c, slots, d, torch.float64 if double else torch.float32, device)
    counts = (torch.randint(slots + 1, (c,)) if partial else torch.full((c,), slots)).to(device)
    query.requires_grad_()
    rows = functional.pseudo_group_contrast(
        query, key, queue, target, temperature=temperature, slot_count=counts if partial else None, reduction="none"
    )
    rows.sum().backward()
    expected, gradient = numpy_group_contrast(
        *(value.detach().double().cpu().numpy() for value in (query, key, queue)),
        target.cpu().numpy(),
        temperature,
        counts.cpu().numpy(),
    )
    scale = max(1, 1 / temperature)
    loss_error = np.abs(rows.detach().cpu().numpy() - expected).max(initial=0)
    assert loss_error <= (1e-12 if double else 1e-6) * scale
    if b:
        error = np.abs(query.grad.cpu().numpy() - gradient.reshape(b, d)).max() / max(
            np.abs(gradient).max(), 1e-3 * scale
        )
        assert error <= (1e-10 if double else 1e-4)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("form", ["cross_entropy", "kl"])
@pytest.mark.parametrize("weighted", [False, True])
def test_group_contrast_matches_the_reference(
    device: str, dtype: torch.dtype, form: str, reduction: str, weighted: bool
) -> None:
    query, key, queue, target = group_batch(0, 37, 11, 5, 48, dtype, device)
    target[::4] = -1
    options = {
        "form": form,
        "reduction": reduction,
        "sample_weight": torch.rand(37, device=device).to(query.dtype) if weighted else None,
        "slot_count": torch.tensor([0, 1, 2, 3, 4, 5, 5, 6, 100, -1, -100], device=device),  # those outside: 0 or all
    }
    results = []
    for module in (functional, reference):
        leaf = query.clone().requires_grad_()
        loss = module.pseudo_group_contrast(leaf, key, queue, target, **options)
        (loss * torch.arange(1, loss.numel() + 1, device=device).view_as(loss)).sum().backward()
        results.append((loss.detach(), leaf.grad))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 2e-2)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-5)
    largest = results[1][1].abs().max()
    torch.testing.assert_close(results[0][1] / largest, results[1][1] / largest, rtol=0, atol=tolerance)
    assert not results[0][1][::4].any()
    if reduction == "none":
        assert not results[0][0][::4].any()


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=st.integers(0, 1000),
    b=st.integers(0, 60),
    n=st.integers(0, 200),
    d=st.integers(1, 40),
    scale=st.sampled_from([-2.0, 0.1, 1.0, 14.0]),
    masked=st.booleans(),
    exclude_self=st.booleans(),
)
def test_similarity_logsumexp_matches_the_reference(
    device: str, seed: int, b: int, n: int, d: int, scale: float, masked: bool, exclude_self: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = b if exclude_self else n
    query, key = (torch.randn(rows, d, generator=generator, dtype=torch.float64).to(device) for rows in (b, n))
    mask = (torch.rand(n, generator=generator) < 0.3).to(device) if masked else None
    weight = torch.randn(b, generator=generator, dtype=torch.float64).to(device)
    results = []
    for module in (functional, reference):
        leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
        lse = module.similarity_logsumexp(*leaves, scale=scale, key_mask=mask, exclude_self=exclude_self)
        (lse.masked_fill(lse == -torch.inf, 0) * weight).sum().backward()
        results.append((lse.detach(), *(leaf.grad for leaf in leaves)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_similarity_logsumexp_spans_tiles_and_chunks(device: str) -> None:
    options = {"dtype": torch.float64, "device": device}
    for b, n, d in ((3, 5000, 300), (300, 3000, 64), (40, 40, 4096)):
        query, key = torch.randn(b, d, **options), torch.randn(n, d, **options)
        weight, leaves = torch.randn(b, **options), (query.requires_grad_(), key.requires_grad_())
        lse = functional.similarity_logsumexp(query, key, scale=0.3)
        expected = reference.similarity_logsumexp(query, key, scale=0.3)
        torch.testing.assert_close(lse, expected, rtol=1e-12, atol=1e-12)
        for a, e in zip(
            torch.autograd.grad(lse, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
        ):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_side_may_have_its_own_dtype(device: str, query_dtype: torch.dtype, key_dtype: torch.dtype) -> None:
    query, key, queue, target = group_batch(0, 40, 11, 9, 48, torch.float32, device)
    query, queue = query.to(query_dtype), queue.to(key_dtype)
    results = []
    for module in (functional, reference):
        leaves = query.clone().requires_grad_(), queue.flatten(0, 1).requires_grad_()
        loss = module.pseudo_group_contrast(leaves[0], key, queue, target)
        loss = loss + module.similarity_logsumexp(*leaves, scale=3.0).mean()
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for leaf, actual, expected in zip(leaves, results[0][1:], results[1][1:], strict=True):
        assert actual.dtype == leaf.dtype
        largest = expected.abs().max()
        torch.testing.assert_close(actual / largest, expected / largest, rtol=0, atol=2e-2)


def test_a_target_that_is_not_a_class(device: str) -> None:
    query, key, queue, target = group_batch(0, 5, 3, 2, 8, torch.float32, device)
    target[1], target[3] = 3, -7
    if device == "cpu":
        for ignored, found in ((-1, 3), (3, -7), (-7, 3)):
            message = f"target must hold classes 0..2 or ignore_index={ignored}, got {found}"
            with pytest.raises(RuntimeError, match=message):
                torch.ops.dadl.pseudo_group_contrast(query, key, queue, target, None, 0.1, 1, ignored, 2, True)
            for module in (functional, reference):
                with pytest.raises(ValueError, match=message):
                    module.pseudo_group_contrast(query, key, queue, target, ignore_index=ignored)
        return
    rows, slope = torch.ops.dadl.pseudo_group_contrast(query, key, queue, target, None, 0.1, 1, -1, 0, True)
    assert rows.isnan().tolist() == [False, True, False, True, False]
    assert not slope[1::2].any()
    rows = functional.pseudo_group_contrast(query, key, queue, target, ignore_index=-7, reduction="none")
    assert rows.isnan().tolist() == [False, True, False, False, False]
    assert rows[3] == 0


@pytest.mark.parametrize("keys", [1, 5, 33])
def test_fewer_keys_than_threads_could_share(device: str, keys: int) -> None:
    query = torch.randn(2048, 256, device=device)
    key = torch.randn(keys, 256, device=device)
    results = []
    for module in (functional, reference):
        leaf = query.clone().requires_grad_()
        lse = module.similarity_logsumexp(leaf, key, scale=0.1)
        lse.sum().backward()
        results.append((lse.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys", [3000, 9999])
def test_threads_share_much_work_and_repeat_their_bits(keys: int) -> None:
    """Whoever takes a chunk of the keys first: its part is added up in the chunk's place."""
    query, key = torch.randn(256, 128), torch.randn(keys, 128)
    expected = torch.logsumexp(query.double() @ key.double().T * 0.1, dim=1)
    probability = (query.double() @ key.double().T * 0.1).softmax(dim=1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results = []
            for _ in range(5):
                leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
                lse = functional.similarity_logsumexp(*leaves, scale=0.1)
                lse.sum().backward()
                results.append((lse.detach(), *(leaf.grad for leaf in leaves)))
            for other in results[1:]:
                assert all(map(torch.equal, results[0], other))
            wanted = expected, 0.1 * probability @ key.double(), 0.1 * probability.T @ query.double()
            for got, exact in zip(results[0], wanted, strict=True):
                assert (got - exact).abs().max() <= 2e-6 * exact.abs().max()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [1, 2])
def test_threads_share_many_queries(count: int) -> None:
    """Each takes blocks of them; a query of any block leaves out its own key, and knows its own positives."""
    n = 2085
    features, mask = torch.randn(n, 5), torch.arange(n) % 3 > 0
    queue, target = torch.randn(7, 3, 5), torch.arange(n) % 8 - 1
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for module in (functional, reference):
            leaf = features.clone().requires_grad_()
            lse = module.similarity_logsumexp(leaf, features, scale=0.7, key_mask=mask, exclude_self=True)
            group = module.pseudo_group_contrast(leaf, features.flip(0), queue, target, reduction="none")
            (lse.sum() + group.sum()).backward()
            if module is functional:
                ours = lse, group, leaf.grad
        for got, exact in zip(ours, (lse, group, leaf.grad), strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


def test_large_logits_do_not_overflow(device: str) -> None:
    query = torch.tensor([[1e4], [-1e4], [0.0]], device=device, requires_grad=True)
    key = torch.tensor([[1.0], [-1.0]], device=device)
    lse = functional.similarity_logsumexp(query, key)
    torch.testing.assert_close(lse, torch.tensor([1e4, 1e4, math.log(2)], device=device))
    lse.sum().backward()
    torch.testing.assert_close(query.grad, torch.tensor([[1.0], [-1.0], [0.0]], device=device))


def test_nothing_to_sum_is_minus_infinity_without_gradient(device: str) -> None:
    query, key = torch.randn(3, 4, device=device, requires_grad=True), torch.randn(5, 4, device=device)
    for keys, mask in ((key[:0], None), (key, torch.zeros(5, dtype=torch.bool, device=device))):
        lse = functional.similarity_logsumexp(query, keys, key_mask=mask)
        assert (lse == -torch.inf).all()
        (gradient,) = torch.autograd.grad(lse.sum(), query)
        assert not gradient.any()


def test_nothing_for_one_query_is_something_for_the_others(device: str) -> None:
    """Of all keys only one takes part, and it is left out for its own query."""
    query, key = (torch.randn(70, 4, device=device, requires_grad=True) for _ in range(2))
    mask = torch.arange(70, device=device) == 7
    lse = functional.similarity_logsumexp(query, key, key_mask=mask, exclude_self=True)
    assert (lse == -torch.inf).nonzero().flatten().tolist() == [7]
    to_query, to_key = torch.autograd.grad(lse.sum(), (query, key))
    torch.testing.assert_close(to_query, key[7] * (~mask)[:, None])
    torch.testing.assert_close(to_key, (query.sum(dim=0) - query[7]) * mask[:, None], rtol=1e-5, atol=1e-5)


def test_nan_stays_visible(device: str) -> None:
    query, key = torch.randn(3, 4, device=device), torch.randn(50, 4, device=device)
    query[1, 2] = torch.nan
    assert functional.similarity_logsumexp(query, key).isnan().tolist() == [False, True, False]
    key[7] = torch.nan
    assert functional.similarity_logsumexp(query, key).isnan().all()


@pytest.mark.parametrize("views", [0, 2])
def test_supervised_contrast_matches_the_reference(device: str, dtype: torch.dtype, views: int) -> None:
    shape = (24, views, 16) if views else (24, 16)
    features = torch.nn.functional.normalize(torch.randn(shape, device=device), dim=-1).to(dtype)
    labels = torch.randint(8, (24,), device=device)
    labels[0] = 100
    for reduction in ("none", "mean", "sum"):
        results = []
        for module in (functional, reference):
            leaf = features.clone().requires_grad_()
            loss = module.supervised_contrast(leaf, labels, reduction=reduction)
            loss.square().sum().backward()
            results.append((loss.detach(), leaf.grad))
        tolerance = {torch.float64: 1e-11, torch.float32: 2e-4}.get(dtype, 5e-2)
        torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=tolerance)
        largest = results[1][1].abs().max()
        torch.testing.assert_close(results[0][1] / largest, results[1][1] / largest, rtol=0, atol=tolerance)
        if reduction == "none" and not views:
            assert results[0][0][0] == 0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_supervised_contrast_without_positives(device: str, n: int) -> None:
    features = torch.randn(n, 4, device=device, requires_grad=True)
    loss = functional.supervised_contrast(features, torch.arange(n, device=device))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.usefixtures("no_warnings")
def test_supervised_contrast_of_a_column_of_labels(device: str) -> None:
    features, labels = torch.randn(10, 6, device=device), torch.randint(3, (10, 2), device=device)
    loss = functional.supervised_contrast(features, labels[:, 1])
    assert torch.equal(loss, functional.supervised_contrast(features, labels[:, 1].contiguous()))


@pytest.mark.slow
def test_supervised_contrast_compiles(device: str) -> None:
    features, labels = torch.randn(12, 6, device=device), torch.randint(4, (12,), device=device)
    results = []
    for function in (functional.supervised_contrast, torch.compile(functional.supervised_contrast)):
        leaf = features.clone().requires_grad_()
        loss = function(leaf, labels)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


def test_supervised_contrast_module_normalises(device: str) -> None:
    features, labels = torch.randn(10, 6, device=device), torch.randint(3, (10,), device=device)
    loss = SupervisedContrastLoss(temperature=0.5)(features * 100, labels)
    unit = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(loss, reference.supervised_contrast(unit, labels, temperature=0.5))


def sequential_enqueue(queue: dict[str, Tensor], key: Tensor, target: Tensor, mask: Tensor) -> None:
    """One sample after the other."""
    for k, y, kept in zip(key, target.tolist(), mask.tolist(), strict=True):
        if not kept:
            continue
        slots = queue["keys"].shape[1]
        queue["keys"][y, queue["pointer"][y]] = k.to(queue["keys"].dtype)
        queue["pointer"][y] = (queue["pointer"][y] + 1) % slots
        queue["slot_count"][y] = min(int(queue["slot_count"][y]) + 1, slots)


@given(
    seed=st.integers(0, 1000),
    classes=st.integers(1, 5),
    slots=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
)
def test_the_queue_equals_a_sequential_one(seed: int, classes: int, slots: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = ClassQueue(classes, 3, slots, dtype=torch.float16)
    expected = {name: value.clone() for name, value in queue.state_dict().items()}
    for size in sizes:
        key, target = torch.randn(size, 3, generator=generator), torch.randint(classes, (size,), generator=generator)
        mask = torch.rand(size, generator=generator) < 0.8
        queue.enqueue(key, target, mask)
        sequential_enqueue(expected, key, target, mask)
    for name, value in queue.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_loss_scores_before_it_enqueues(device: str) -> None:
    contrast = PseudoGroupContrastLoss(4, 8, slots=2, valid_only=True).to(device)
    query, key = torch.randn(2, 5, 8, device=device)
    target = torch.tensor([0, 1, 1, -1, 3], device=device)
    contrast.eval()
    scored = contrast(query, key, target)
    contrast.train()
    assert torch.equal(contrast(query, key, target, update=False), scored)
    assert contrast.queue.slot_count.tolist() == [0, 0, 0, 0]
    # Without written slots each query meets only its own key.
    torch.testing.assert_close(scored, torch.zeros((), device=device), atol=1e-5, rtol=0)
    assert torch.equal(contrast(query, key, target), scored)
    assert contrast.queue.slot_count.tolist() == [1, 2, 0, 1]
    assert contrast(query, key, target) > scored
    restored = PseudoGroupContrastLoss(4, 8, slots=2, valid_only=True).to(device)
    restored.load_state_dict(contrast.state_dict())
    assert torch.equal(restored(query, key, target), contrast(query, key, target))


def test_reset_forgets() -> None:
    queue = ClassQueue(3, 4, 2)
    queue.enqueue(torch.full((3, 4), 7.0), torch.arange(3))
    queue.reset(torch.Generator().manual_seed(0))
    assert not queue.slot_count.any()
    assert not queue.pointer.any()
    assert not (queue.keys == 7).any()
    torch.testing.assert_close(queue.keys.norm(dim=-1), torch.ones(3, 2))


# What differs from good input, and what the error says.
BAD_GROUP_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": torch.tensor([0, 1, 2, 3])}, ValueError, r"target must hold classes 0..2 or ignore_index=-1, got 3"),
    ({"key": torch.randn(3, 8)}, ValueError, r"\(4, 8\), \(3, 8\)"),
    ({"query": torch.randn(4)}, ValueError, r"query and key must be \[B, d\]"),
    ({"queue": torch.randn(3, 2, 7)}, ValueError, r"queue \(3, 2, 7\) must have the query's last dimension"),
    ({"queue": torch.randn(0, 2, 8)}, ValueError, "at least one class"),
    ({"target": torch.zeros(4)}, TypeError, r"integer dtype.*target\.long\(\)"),
    ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target must be of shape \(4,\)"),
    ({"query": torch.ones(4, 8, dtype=torch.int64)}, TypeError, r"query.*query\.float\(\)"),
    ({"key": torch.ones(4, 8, dtype=torch.int64)}, TypeError, r"key.*key\.float\(\)"),
    ({"queue": torch.ones(3, 2, 8, dtype=torch.int64)}, TypeError, r"queue.*queue\.float\(\)"),
    ({"queue": torch.randn(3, 2, 8, dtype=torch.float64)}, TypeError, "mixes float64"),
    ({"key": torch.randn(4, 8).to_sparse()}, TypeError, r"key.*to_dense"),
    ({"query": [1.0]}, TypeError, r"query must be a torch\.Tensor, got list"),
    ({"target": [0, 1, 2, 0]}, TypeError, r"target must be a torch\.Tensor, got list"),
    ({"ignore_index": 0}, ValueError, "ignore_index must not be a class"),
    ({"slot_count": torch.zeros(4, dtype=torch.int64)}, ValueError, r"slot_count must be of shape \(3,\)"),
    ({"slot_count": torch.zeros(3)}, TypeError, "slot_count must be of an integer dtype"),
    ({"temperature": 0.0}, ValueError, "temperature"),
    ({"temperature": float("nan")}, ValueError, "temperature"),
    ({"form": "nce"}, ValueError, "form must be one of"),
    ({"ignore_index": 1}, ValueError, "ignore_index must not be a class"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD_GROUP_INPUT)
def test_bad_input_is_refused_by_the_function_the_operator_and_the_reference(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    query, key, queue, target = group_batch(0, 4, 3, 2, 8, torch.float32)
    tensors = {"query": query, "key": key, "queue": queue, "target": target}
    settings = {"slot_count": None, "temperature": 0.1, "form": "kl", "ignore_index": -1, "reduction": "mean"}
    arguments = tensors | settings | changed
    for requires_grad in (False, True):
        if requires_grad and isinstance(arguments["query"], torch.Tensor) and arguments["query"].is_floating_point():
            arguments["query"] = arguments["query"].requires_grad_()
        for module in (functional, reference):
            with pytest.raises(error, match=message):
                module.pseudo_group_contrast(**arguments)
    # The function asks only where the operator has refused.
    for name, choices in (("form", FORMS), ("reduction", REDUCTIONS)):
        arguments[name] = choices.index(arguments[name]) if arguments[name] in choices else len(choices)
    with pytest.raises((RuntimeError, TypeError)):
        torch.ops.dadl.pseudo_group_contrast.default(*arguments.values(), False)


BAD_SIMILARITY_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"key": torch.randn(3, 8), "exclude_self": True}, ValueError, "one key per query"),
    ({"key": torch.randn(3, 7)}, ValueError, "last dimension"),
    ({"key": torch.randn(3)}, ValueError, r"key \[N, d\]"),
    ({"key": torch.ones(4, 8, dtype=torch.int32)}, TypeError, r"key\.float\(\)"),
    ({"query": torch.ones(4, 8, dtype=torch.bool)}, TypeError, r"query\.float\(\)"),
    ({"query": torch.randn(4, 8, dtype=torch.float64)}, TypeError, "mixes float64"),
    ({"key_mask": torch.ones(4)}, TypeError, "bool"),
    ({"key_mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"key_mask must be \[4\]"),
    ({"scale": float("inf")}, ValueError, "scale must be finite"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD_SIMILARITY_INPUT)
def test_bad_similarities_are_refused_by_the_function_the_operator_and_the_reference(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"query": torch.randn(4, 8), "key": torch.randn(4, 8), "key_mask": None, "scale": 1.0}
    arguments = arguments | {"exclude_self": False} | changed
    for module in (functional, reference):
        with pytest.raises(error, match=message):
            module.similarity_logsumexp(**arguments)
    with pytest.raises((RuntimeError, TypeError)):
        torch.ops.dadl.similarity_logsumexp.default(*arguments.values(), False)


def test_bad_weights_are_refused() -> None:
    batch = group_batch(0, 4, 3, 2, 8, torch.float32)
    for module in (functional, reference):
        with pytest.raises(ValueError, match=r"sample_weight must be \(4,\)"):
            module.pseudo_group_contrast(*batch, sample_weight=torch.ones(3))
        with pytest.raises(TypeError, match="sample_weight must be"):
            module.pseudo_group_contrast(*batch, sample_weight=torch.ones(4, dtype=torch.int64))
        with pytest.raises(ValueError, match="reduction must be one of"):
            module.pseudo_group_contrast(*batch, sample_weight=torch.ones(4), reduction="max")
        with pytest.raises(TypeError, match=r"target must be a torch\.Tensor, got list"):
            module.pseudo_group_contrast(*batch[:3], [0, 1, 2, 0], sample_weight=torch.ones(4))


def test_forward_mode_raises() -> None:
    query, key, queue, target = group_batch(0, 4, 3, 2, 8, torch.float32)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            functional.pseudo_group_contrast(dual, key, queue, target)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            functional.supervised_contrast(dual, target)
        for pair in ((dual, key), (query, dual)):
            with pytest.raises(NotImplementedError, match="forward-mode"):
                functional.similarity_logsumexp(*pair)


def test_a_bad_queue_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes 0\.\.2, got 5"):
        ClassQueue(3, 8).enqueue(torch.randn(4, 8), torch.tensor([0, 1, 2, 5]))
    with pytest.raises(ValueError, match="positive"):
        ClassQueue(0, 8)


def test_second_derivatives_raise(device: str) -> None:
    query, key, queue, target = group_batch(0, 4, 3, 2, 8, torch.float64, device)
    query.requires_grad_()
    for loss in (
        functional.pseudo_group_contrast(query, key, queue, target),
        functional.similarity_logsumexp(query, queue.flatten(0, 1)).sum(),
        functional.supervised_contrast(query, target),
    ):
        (gradient,) = torch.autograd.grad(loss, query, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            gradient.sum().backward()


def test_compiles_without_a_graph_break(device: str) -> None:
    query, key, queue, target = group_batch(0, 6, 3, 2, 8, torch.float32, device)

    def step(query: Tensor, key: Tensor) -> Tensor:
        contrast = functional.pseudo_group_contrast(query, key, queue, target)
        return contrast + functional.similarity_logsumexp(query, key, exclude_self=True).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
        loss = function(*leaves)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(results[0], results[1])


def test_autocast_computes_in_float32(device: str) -> None:
    query, key, queue, target = group_batch(0, 6, 3, 2, 8, torch.bfloat16, device)
    query.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        loss = functional.pseudo_group_contrast(query, key, queue, target)
    assert loss.dtype == torch.float32
    loss.backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_keeps_half_precision_where_keys_have_it(device: str, half: torch.dtype) -> None:
    """The values are those of the dtypes that meet, bit for bit; gradients are rounded to the leaf's dtype."""

    def results(query: Tensor, queue: Tensor, enabled: bool) -> tuple[Tensor, Tensor]:
        leaf = query.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            rows = functional.pseudo_group_contrast(leaf, key, queue, target, reduction="none")
            lse = functional.similarity_logsumexp(leaf, queue.flatten(0, 1))
        (rows.sum() + lse.sum()).backward()
        assert leaf.grad is not None
        return torch.stack([rows, lse]).detach(), leaf.grad

    query, key, queue, target = group_batch(1, 20, 7, 4, 24, half, device)
    for cast, kept, (sides, queues) in (
        (query, query, (queue, queue)),
        (query.float(), query, (queue, queue)),
        (query, query.float(), (queue.float(), queue.float())),
    ):
        values, gradient = results(cast, sides, True)
        expected, slope = results(kept, queues, False)
        assert torch.equal(values, expected)
        assert gradient.dtype == cast.dtype
        close = 2 * torch.finfo(half).eps * slope.abs().max().item()
        torch.testing.assert_close(gradient.float(), slope.float(), rtol=0, atol=close)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a process's peak")
def test_memory_does_not_grow_with_the_similarities() -> None:
    """B = 1024 against N = 262144: the similarities would be 1 GiB; the whole process may take 64 MiB more."""
    code = """
        from pathlib import Path
        import torch
        from dadl_ext import functional

        def peak():
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return int(fields["VmHWM"].split()[0]) / 1024  # MiB of the process, memory of C++ included

        def group_contrast(query, queue):
            target = torch.arange(len(query)) % len(queue)
            functional.pseudo_group_contrast(query, query.detach(), queue, target).backward()

        def logsumexp(query, queue):
            functional.similarity_logsumexp(query, queue.flatten(0, 1)).sum().backward()

        for step in (group_contrast, logsumexp):
            query, queue = torch.randn(1024, 128, requires_grad=True), torch.randn(8192, 32, 128)
            step(torch.randn(128, 128, requires_grad=True), queue[:128])  # loads what the libraries load
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
            before = peak()
            step(query, queue)
            print(peak() - before)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    job = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert job.returncode == 0, job.stderr
    extra = [float(line) for line in job.stdout.split()]
    assert len(extra) == 2
    assert max(extra) < 64, extra


@pytest.mark.parametrize("d", [3, 5, 20, 21])
def test_what_left_out_keys_hold_does_not_show(device: str, dtype: torch.dtype, d: int) -> None:
    """Nor as the padding of the keys before them, where d fills no vector."""
    query, key = (torch.randn(n, d, device=device).to(dtype).requires_grad_() for n in (5, 70))
    mask = torch.rand(70, device=device) < 0.5
    spoilt = key.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    losses = [functional.similarity_logsumexp(query, k, key_mask=mask) for k in (key, spoilt)]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss.sum(), (query, k)) for loss, k in zip(losses, (key, spoilt), strict=True)]
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_processors_without_amx(capability: str) -> None:
    """Everything once more with vectors of every width that this processor has."""
    chosen = "matches or spans or large or nothing or nan_stays or left_out"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout


# ---- what is not finite, and what is not there ----------------------------------------------------------------------


def both(loss: Callable[[ModuleType, Tensor, Tensor], Tensor], query: Tensor, key: Tensor) -> list[Any]:
    return [gradients(lambda q, k, m=module: loss(m, q, k), query, key) for module in (functional, reference)]


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("shape", [(4, 5, 8), (4, 5, 5), (1, 3, 8), (70, 33, 8), (4, 200, 16), (4, 5, 300)])
@pytest.mark.parametrize("place", ["query", "key", "masked key"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(
    device: str, dtype: torch.dtype, number: float, place: str, shape: tuple[int, int, int], scale: float
) -> None:
    queries, keys, d = shape
    zero_times_infinity = torch.zeros(1, keys) @ torch.full((keys, d), torch.inf)
    if queries == 1 and place == "key" and number == number and not zero_times_infinity.isnan().all():
        pytest.skip("PyTorch's product of one row leaves out zeros here, and with them NaN")
    query, key = torch.randn(queries, d, device=device).to(dtype), torch.randn(keys, d, device=device).to(dtype)
    (query if place == "query" else key)[1 if place != "query" else 0, 2] = number
    mask = torch.arange(keys, device=device) != 1 if place == "masked key" else None
    (value, slopes), (expected, references) = both(
        lambda module, q, k: module.similarity_logsumexp(q, k, scale=scale, key_mask=mask), query, key
    )
    torch.testing.assert_close(value, expected, equal_nan=True)
    half = dtype in (torch.float16, torch.bfloat16)
    torch.testing.assert_close(slopes[0], references[0], equal_nan=True, rtol=2e-2 if half else 1e-4, atol=1e-3)
    if place == "masked key":
        assert value.isfinite().all()
        assert all(slope.isfinite().all() for slope in slopes)
        assert slopes[1][1].eq(0).all()
    elif place == "query" or number != number:
        assert value.isnan().any()


def test_a_row_that_is_nan_leaves_its_own_loss_where_it_is_left_out(device: str, dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 5, 8, device=device).to(dtype)
    key[0, 0] = torch.nan
    value, expected = (module.similarity_logsumexp(query, key, exclude_self=True) for module in (functional, reference))
    assert value.isnan().tolist() == [False, True, True, True, True]
    torch.testing.assert_close(value, expected, equal_nan=True)


def test_the_only_key_left_out_gives_no_gradient(device: str, dtype: torch.dtype) -> None:
    query, key = torch.randn(1, 8, device=device).to(dtype), torch.full((1, 8), torch.nan, device=device, dtype=dtype)
    value, (slope, _) = gradients(lambda q, k: functional.similarity_logsumexp(q, k, exclude_self=True), query, key)
    assert value.item() == -torch.inf
    assert slope.eq(0).all()


@pytest.mark.parametrize("slot_count", [None, (0, 1, 2)])
def test_keys_without_numbers_count(device: str, dtype: torch.dtype, slot_count: tuple[int, ...] | None) -> None:
    """Of length 0: all similarities are 0, so that the loss is the logarithm of the number of keys."""
    query, queue = torch.zeros(4, 0, dtype=dtype, device=device), torch.zeros(3, 2, 0, dtype=dtype, device=device)
    counts = None if slot_count is None else torch.tensor(slot_count, device=device)
    keys = 6 if slot_count is None else sum(slot_count)
    target = torch.tensor([0, 1, 2, 1], device=device)
    for module in (functional, reference):
        loss = module.pseudo_group_contrast(query, query, queue, target, slot_count=counts, reduction="none")
        torch.testing.assert_close(loss.double(), torch.full_like(loss, 1 + keys).double().log())
        lse = module.similarity_logsumexp(query, torch.zeros(5, 0, dtype=dtype, device=device))
        torch.testing.assert_close(lse.double(), torch.full_like(lse, 5).double().log())


def test_sample_weights_and_reductions_by_hand(device: str) -> None:
    """The reference shares the reduction with the functions, so that numbers must say what it is."""
    query, key, queue, target = group_batch(3, 6, 4, 2, 8, torch.float64, device)
    target[1] = target[4] = -1
    weight = torch.rand(6, dtype=torch.float64, device=device)
    contrast = functional.pseudo_group_contrast
    rows = contrast(query, key, queue, target, reduction="none").tolist()
    weighted = [w * row for w, row in zip(weight.tolist(), rows, strict=True)]
    for given_weight, expected in ((None, rows), (weight, weighted)):
        loss = {
            name: contrast(query, key, queue, target, sample_weight=given_weight, reduction=name)
            for name in ("none", "sum", "mean")
        }
        assert loss["none"].tolist() == pytest.approx(expected)
        assert loss["sum"].item() == pytest.approx(sum(expected))
        assert loss["mean"].item() == pytest.approx(sum(expected) / 4)
