"""The CUDA kernels of the contrasts, run on the host, against the reference in float64."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulator.helpers import EXAMPLES, FLAVOUR, FLOATING, arithmetic, in_every_order, name, to_numpy, to_torch
from torch import Tensor

from dadl_ext import reference

# Queries and keys as they are stored; half precision on both sides goes to the tensor cores.
STORED = [(dtype, dtype) for dtype in FLOATING] + [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
# By the keys' dtype where it is the queries' too, of the largest value.
WEIGHTED = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

query_counts = st.sampled_from([0, 1, 31, 32, 33, 70])
key_counts = st.integers(0, 70) | st.sampled_from([127, 128, 129, 300])
feature_counts = st.integers(0, 40) | st.sampled_from([64, 96, 127, 128, 136, 257])
multiprocessors = st.sampled_from([1, 2, 3, 100])


def optional(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.contiguous().numpy()


IGNORED = -100  # a target


def run_contrast(
    simulator,
    query: Tensor,
    key: Tensor,
    *options,
    own=None,
    target=None,
    slot_count=None,
    kl=False,
    mean=False,
    processors=1,
    split=False,
):
    """Values and slope; the values alone must be the same. `split`: on a GPU that prefers split products."""
    mask, exclude_self, scale = options
    sides = to_numpy(query), name(query.dtype), to_numpy(key), name(key.dtype)
    group = optional(own), optional(target), optional(slot_count), kl, IGNORED, mean
    arguments = (*sides, optional(mask), exclude_self, *group, scale)
    values, slope = in_every_order(simulator.contrast, *arguments, True, processors, split)
    alone, nothing = in_every_order(simulator.contrast, *arguments, False, processors, split)
    assert alone.tobytes() == values.tobytes()
    assert nothing.shape == (0, query.shape[1])
    return torch.from_numpy(values), torch.from_numpy(slope)


def close_to_largest(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale + 1e-30)


@settings(max_examples=EXAMPLES)
@given(
    b=query_counts,
    n=key_counts,
    d=feature_counts,
    stored=st.sampled_from(STORED),
    scale=st.sampled_from([-2.0, 0.1, 1.0, 5.0]),
    masked=st.booleans(),
    exclude_self=st.booleans(),
    processors=multiprocessors,
    split=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(70, 300, 40, STORED[2], 1.0, True, False, 1, False, 0)  # whole tiles of keys, some of them left out
@example(70, 70, 127, STORED[3], 1.0, True, True, 2, False, 0)
@example(70, 300, 40, STORED[0], 1.0, True, False, 1, True, 0)
@example(70, 70, 136, STORED[0], -2.0, True, True, 2, True, 0)
def test_similarity_logsumexp(simulator, b, n, d, stored, scale, masked, exclude_self, processors, split, seed) -> None:
    torch.manual_seed(seed)
    n = b if exclude_self else n
    query, key = torch.randn(b, d).to(stored[0]), torch.randn(n, d).to(stored[1])
    mask = torch.rand(n) < 0.3 if masked else None
    if masked:
        key[~mask] = torch.nan  # what does not take part does not show
    scale /= max(d, 1) ** 0.5
    clean = key if mask is None else key.masked_fill(~mask[:, None], 0)
    leaves = query.double().requires_grad_(), clean.double().requires_grad_()
    expected = reference.similarity_logsumexp(*leaves, scale=scale, key_mask=mask, exclude_self=exclude_self)
    met = expected > -torch.inf
    weight = torch.randn(b, dtype=torch.float64)
    slope, key_gradient = (torch.zeros_like(leaf) for leaf in leaves)
    if met.any():
        (slope,) = torch.autograd.grad(expected[met].sum(), leaves[0], retain_graph=True)
        (key_gradient,) = torch.autograd.grad((expected * weight)[met].sum(), leaves[1])
    expected = expected.detach()

    lse, actual = run_contrast(simulator, query, key, mask, exclude_self, scale, processors=processors, split=split)
    exact = 1e-12 if stored[1] == torch.float64 else 1e-5
    torch.testing.assert_close(lse.double(), expected, rtol=exact, atol=exact)
    tolerance = WEIGHTED[stored[1] if stored[0] == stored[1] else torch.float32]
    close_to_largest(actual, slope, tolerance)

    if stored[0] != stored[1]:
        return
    # As large as a loss scale makes them, and beyond what weights in float16 could be.
    upstream = 1e4 / max(key_gradient.abs().max().item(), 1e-4) if key_gradient.numel() else 1.0
    gradient = in_every_order(
        simulator.contrast_key_gradient,
        *((weight * upstream).to(lse.dtype).numpy(), to_numpy(query), to_numpy(key), name(key.dtype)),
        *(optional(mask), expected.to(lse.dtype).numpy(), scale, exclude_self, processors, split),
    )
    close_to_largest(to_torch(gradient, key.dtype), key_gradient * upstream, tolerance)


class Group:
    """A random batch of group contrast, and the kernels' row losses and slopes for it."""

    def __init__(
        self, simulator, seed, b, classes, slots, d, stored, temperature, partial, form, processors, split
    ) -> None:
        torch.manual_seed(seed)
        unit = [
            torch.nn.functional.normalize(torch.randn(shape), dim=-1) for shape in ((b, d), (b, d), (classes, slots, d))
        ]
        self.simulator, self.classes, self.temperature = simulator, classes, temperature
        self.query, self.own, self.queue = (
            unit[0].to(stored[0]),
            unit[1].to(arithmetic(stored[0])),
            unit[2].to(stored[1]),
        )
        self.target = torch.randint(classes, (b,))
        counts = torch.cat([torch.tensor([-3]), torch.randint(-1, slots + 3, (classes - 1,))])
        self.slot_count = counts if partial else None
        self.form, self.device = form, {"processors": processors, "split": split}

    def run(self, target: Tensor, mean: bool = False) -> tuple[Tensor, Tensor]:
        return run_contrast(
            self.simulator,
            self.query,
            self.queue,
            None,
            False,
            1 / self.temperature,
            own=self.own,
            target=target,
            slot_count=self.slot_count,
            kl=self.form == "kl",
            mean=mean,
            **self.device,
        )

    def with_targets_outside(self) -> Tensor:
        """About half of the targets are no class; some of these are ignored."""
        b = len(self.target)
        outside = torch.tensor([-1, self.classes, -(2**63), 2**63 - 1, IGNORED])[torch.randint(5, (b,))]
        return torch.where(torch.rand(b) < 0.5, outside, self.target)


groups = st.fixed_dictionaries(
    {
        "b": query_counts,
        "classes": st.integers(1, 12),
        "slots": st.integers(0, 12) | st.just(33),
        "d": feature_counts.filter(bool),
        "stored": st.sampled_from(STORED),
        "temperature": st.sampled_from([0.07, 1.0, 10.0]),
        "partial": st.booleans(),
        "form": st.sampled_from(["cross_entropy", "kl"]),
        "processors": multiprocessors,
        "split": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


@settings(max_examples=EXAMPLES)
@given(options=groups)
def test_group_contrast(simulator, options) -> None:
    group, (query_dtype, key_dtype) = Group(simulator, **options), options["stored"]
    leaf = group.query.double().requires_grad_()
    expected = reference.pseudo_group_contrast(
        leaf,
        group.own.double(),
        group.queue.double(),
        group.target,
        temperature=group.temperature,
        slot_count=group.slot_count,
        reduction="none",
        form=group.form,
    )
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    rows, slope = group.run(group.target)
    exact = 1e-12 if key_dtype == torch.float64 else 2e-6
    torch.testing.assert_close(rows.double(), expected.detach(), rtol=exact, atol=exact * max(1, 1 / group.temperature))
    tolerance = WEIGHTED[key_dtype if query_dtype == key_dtype else torch.float32]
    torch.testing.assert_close(slope.double(), gradient, rtol=0, atol=tolerance / group.temperature)


@settings(max_examples=EXAMPLES // 4)
@given(options=groups)
def test_targets_that_are_no_class(simulator, options) -> None:
    """Their losses are NaN, those of ignored rows 0, and neither has a slope; the other rows do not notice."""
    group = Group(simulator, **options)
    rows, slope = group.run(group.target)
    target = group.with_targets_outside()
    wrong, ignored = target != group.target, target == IGNORED
    shown, shown_slope = group.run(target)
    assert not shown[ignored].any()
    assert shown[wrong & ~ignored].isnan().all()
    assert not shown_slope[wrong].any()
    assert torch.equal(shown[~wrong], rows[~wrong])
    assert torch.equal(shown_slope[~wrong], slope[~wrong])


@settings(max_examples=EXAMPLES // 4)
@given(options=groups)
def test_the_mean_is_over_the_rows_that_count(simulator, options) -> None:
    group = Group(simulator, **options)
    target = group.with_targets_outside()
    shown, shown_slope = group.run(target)
    means, mean_slope = group.run(target, mean=True)
    counted = max(1, int((target != IGNORED).sum()))
    torch.testing.assert_close(means * counted, shown, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(mean_slope * counted, shown_slope, rtol=1e-5, atol=0)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape), dim=-1)


def far_apart(rows: int, d: int, least: int, most: int) -> Tensor:
    """Rows whose sizes are powers of two, 2^least to 2^most."""
    return torch.randn(rows, d) * torch.randint(least, most + 1, (rows, 1)).double().exp2().float()


# Queries, keys and scale.
SPLIT = {
    "queue": lambda: (unit(16, 128), unit(2000, 128), 1 / 0.07),
    "features": lambda: (unit(16, 256), unit(500, 256), 1 / 0.07),
    "few features": lambda: (unit(16, 20), unit(2000, 20), 1 / 0.07),
    # What tensor cores cut off is always on the same side.
    "one sign": lambda: ((torch.randn(16, 128) / 20 + 1) / 11, (torch.randn(3000, 128) / 20 + 1) / 11, 1.0),
    "sizes": lambda: (far_apart(16, 128, -20, 20), far_apart(2000, 128, -30, 4), 2.0**-24),
    "large keys": lambda: (far_apart(16, 64, -66, -66), far_apart(500, 64, 66, 66), 0.1),
    "small keys": lambda: (far_apart(16, 64, 100, 100), far_apart(500, 64, -103, -103), 0.1),
    "subnormal": lambda: (far_apart(16, 64, 120, 120), far_apart(500, 64, -130, -130), 2.0**9),
}


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for fewer")
@pytest.mark.parametrize("case", SPLIT)
def test_split_products_are_as_exact_as_float32(simulator, case: str) -> None:
    """Against float64, by the same measure as the way that multiplies in float32."""
    torch.manual_seed(0)
    query, key, scale = SPLIT[case]()
    leaves = query.double().requires_grad_(), key.double().requires_grad_()
    expected = reference.similarity_logsumexp(*leaves, scale=scale)
    upstream = torch.randn(len(query))
    (slope,) = torch.autograd.grad(expected.sum(), leaves[0], retain_graph=True)
    (key_gradient,) = torch.autograd.grad((expected * upstream).sum(), leaves[1])
    expected = expected.detach()
    schedule = simulator.Schedule(simulator.Order.FORWARD, 0)
    sides = query.numpy(), "float32", key.numpy(), "float32"
    group = None, None, None, False, IGNORED, False

    def errors(split: bool) -> list[float]:
        lse, of_query = simulator.contrast(*sides, None, False, *group, scale, True, 3, split, schedule)
        of_key = simulator.contrast_key_gradient(
            upstream.numpy(), *sides[:1], *sides[2:], None, expected.float().numpy(), scale, False, 3, split, schedule
        )
        rows = (torch.from_numpy(of_query) - slope).norm(dim=1) / slope.norm(dim=1)
        keys = (torch.from_numpy(of_key) - key_gradient).norm() / key_gradient.norm()
        return [
            ((torch.from_numpy(lse) - expected).abs() / expected.abs()).max().item(),
            rows.max().item(),
            keys.item(),
        ]

    for split, plain in zip(errors(split=True), errors(split=False), strict=True):
        assert split <= 3 * max(plain, torch.finfo(torch.float32).eps)


HALF = [torch.float16, torch.bfloat16]  # tensor cores, which take long to simulate


# Each dtype, and float32 in split products.
WAYS = [*((dtype, False) for dtype in FLOATING), (torch.float32, True)]


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for fewer")
@pytest.mark.parametrize(
    ("b", "n", "d", "processors"),
    [(2, 20000, 2, 100), (3, 70, 4097, 1)],
    ids=["keys", "features"],
)
@pytest.mark.parametrize(
    ("dtype", "split"),
    [pytest.param(*way, marks=[pytest.mark.slow] if way[0] in HALF or way[1] else []) for way in WAYS],
)
def test_contrast_of_many(simulator, b: int, n: int, d: int, processors: int, dtype: torch.dtype, split: bool) -> None:
    size = torch.linspace(0.1, 1, n)[:, None]  # the largest logits come last
    query, key = torch.randn(b, d).to(dtype), (size * torch.randn(n, d)).to(dtype)
    leaf = query.double().requires_grad_()
    expected = reference.similarity_logsumexp(leaf, key.double(), scale=d**-0.5)
    expected.sum().backward()
    lse, slope = run_contrast(simulator, query, key, None, False, d**-0.5, processors=processors, split=split)
    torch.testing.assert_close(lse.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    close_to_largest(slope, leaf.grad, WEIGHTED[dtype])


@pytest.mark.skipif(FLAVOUR != "plain", reason="the same code as for fewer")
def test_more_tiles_than_ranges_that_can_be_combined(simulator) -> None:
    """257 tiles, on a GPU that holds a block for each."""
    query, key = torch.zeros(1, 2), torch.zeros(257 * 64, 2)
    sides = to_numpy(query.bfloat16()), "bfloat16", to_numpy(key.bfloat16()), "bfloat16"
    group = None, None, None, False, IGNORED, False
    schedule = simulator.Schedule(simulator.Order.FORWARD, 0)
    lse, _ = simulator.contrast(*sides, None, False, *group, 1.0, False, 200, False, schedule)
    assert lse.item() == pytest.approx(np.log(len(key)))


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize(("dtype", "split"), WAYS)
def test_large_logits_do_not_overflow(simulator, dtype: torch.dtype, split: bool, scale: float) -> None:
    query = torch.tensor([[100.0], [-100.0], [0.0]]).to(dtype)
    key = torch.tensor([[100.0], [-100.0]]).repeat(64, 1).to(dtype)  # whole tiles
    lse, slope = run_contrast(simulator, query, key, None, False, scale, split=split)
    torch.testing.assert_close(lse, torch.tensor([1e4 + np.log(64), 1e4 + np.log(64), np.log(128)]).to(lse.dtype))
    close_to_largest(slope, torch.tensor([[100], [-100], [0]]), WEIGHTED[dtype])


@pytest.mark.parametrize(("dtype", "split"), WAYS)
def test_numbers_that_are_not_finite_stay_visible(simulator, dtype: torch.dtype, split: bool) -> None:
    query, key = torch.randn(40, 5).to(dtype), torch.randn(200, 5).to(dtype)
    query[33, 2], query[5, 0] = torch.nan, torch.inf
    lse, slope = run_contrast(simulator, query, key, None, False, 1.0, processors=3, split=split)
    assert lse.isfinite().logical_not().nonzero().tolist() == [[5], [33]]
    assert slope.isnan().all(dim=1).nonzero().tolist() == [[5], [33]]
    key[170] = torch.nan
    lse, slope = run_contrast(simulator, query, key, None, False, 1.0, processors=3, split=split)
    assert lse.isnan().all()
    assert slope.isnan().all()


def test_places_beyond_31_bits(simulator) -> None:
    """Of what many ranges leave for many rows, together more than 2^31 numbers."""
    splits, rows = 256, 2**30
    assert simulator.place_of_partial(splits, rows, splits - 1, rows - 1) == splits * rows - 1
