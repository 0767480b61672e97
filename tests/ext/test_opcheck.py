"""Every operator under ``torch.library.opcheck``: schema, autograd registration, fake kernel and tracing."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import dadl_ext  # noqa: F401, registers the operators

ops = torch.ops.dadl


class Inputs:
    """Random tensors of one device and dtype."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    @property
    def arithmetic(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def results(self, *shape: int) -> Tensor:
        """In the dtype of results and of gradients formed with them."""
        return torch.randn(shape, dtype=self.arithmetic, device=self.device)

    def classes(self, count: int, n: int) -> Tensor:
        return torch.randint(count, (n,), device=self.device)

    def mask(self, n: int) -> Tensor:
        return torch.rand(n, device=self.device) < 0.5

    def seed(self) -> Tensor:
        return torch.tensor(1, device=self.device)


Calls = Iterable[tuple[Any, ...]]


def rank(x: Inputs) -> Calls:
    for shape in ((4, 9), (0,), (3, 0), (0, 5)):
        yield x.floats(*shape), 2.0


def rank_backward(x: Inputs) -> Calls:
    for shape in ((4, 9), (0,), (3, 0), (0, 5)):
        values = x.floats(*shape)
        yield x.results(*shape), values, ops.rank(values, 2.0), 2.0


def ranksim_batches(x: Inputs) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Features, labels and priorities: distinct labels, tied ones, and none."""
    for n, values in ((9, 100), (9, 4), (0, 1)):
        priority = torch.rand(n, dtype=torch.float64, device=x.device)
        yield x.floats(n, 5), x.classes(values, n), priority


def similarity_matrices(x: Inputs, n: int) -> list[Tensor | None]:
    return [None, torch.randn(n, n, device=x.device)]


def ranksim_select(x: Inputs) -> Calls:
    for _, labels, priority in ranksim_batches(x):
        yield labels, priority


def ranksim_loss(x: Inputs) -> Calls:
    for features, labels, priority in ranksim_batches(x):
        for matrix in similarity_matrices(x, len(labels)):
            for mean in (False, True):
                yield features, labels, priority, matrix, 2.0, 1.0, mean, True
    yield features, labels, priority, None, 2.0, 1.0, True, False


def ranksim_rows(x: Inputs) -> Calls:
    for features, labels, priority in ranksim_batches(x):
        subset = ops.ranksim_select(labels, priority)
        for matrix in similarity_matrices(x, len(labels)):
            yield features, labels, *subset, matrix, 2.0, 1.0


def ranksim_rows_backward(x: Inputs) -> Calls:
    for features, labels, priority in ranksim_batches(x):
        subset = ops.ranksim_select(labels, priority)
        for matrix in similarity_matrices(x, len(labels)):
            yield x.results(len(labels)), features, labels, *subset, matrix, 2.0, 1.0


def rank_n_contrast(x: Inputs) -> Calls:
    for labels in (x.classes(4, 9), x.floats(9), x.floats(9, 2)):
        for similarity, reduction in ((0, 0), (1, 1)):
            yield x.floats(9, 5), labels, 2.0, similarity, 1, reduction, reduction != 0
    yield x.floats(0, 5), x.floats(0), 2.0, 0, 0, 2, True
    yield x.floats(9, 5), x.floats(9), 2.0, 0, 0, 2, False


def rank_n_contrast_backward(x: Inputs) -> Calls:
    for labels in (x.floats(9), x.floats(9, 2)):
        yield x.results(9), x.floats(9, 5), labels, 2.0, 0, 1


def similarity_logsumexp(x: Inputs) -> Calls:
    query, key = x.floats(6, 8), x.floats(6, 8)
    yield query, key, x.mask(6), 2.0, True, True
    yield query, key, None, 2.0, False, False


def similarity_logsumexp_key_gradient(x: Inputs) -> Calls:
    query, key, mask = x.floats(6, 8), x.floats(6, 8), x.mask(6)
    lse, _ = ops.similarity_logsumexp(query, key, mask, 2.0, True, False)
    yield x.results(6), query, key, mask, lse, 2.0, True


def pseudo_group_contrast(x: Inputs) -> Calls:
    query, key, queue, target = x.floats(6, 8), x.floats(6, 8), x.floats(3, 2, 8), x.classes(3, 6)
    counts = torch.tensor([0, 1, 2], device=x.device)
    yield query, key, queue, target, counts, 0.1, 1, -1, 1, True
    yield query, key, queue, target, None, 0.1, 0, -1, 0, False


def disagreement(x: Inputs) -> Calls:
    yield x.floats(3, 4, 2, 5), 3, True, True
    yield x.floats(3, 4, 2, 5), 0, False, False


def dropout_linear(x: Inputs) -> Calls:
    yield x.floats(6, 20), x.floats(3, 20), x.floats(3), x.seed(), 0.5, 2
    yield x.floats(6, 20), x.floats(11, 20), None, x.seed(), 0.5, 2


def dropout_linear_backward(x: Inputs) -> Calls:
    for for_features, for_weight in ((True, True), (False, True), (True, False)):
        yield x.floats(2, 6, 3), x.floats(6, 20), x.floats(3, 20), x.seed(), 0.5, for_features, for_weight


def dropout_disagreement(x: Inputs) -> Calls:
    yield x.floats(6, 20), x.floats(3, 20), x.floats(3), x.seed(), 0.5, 2, 1, True, True, True
    yield x.floats(6, 20), x.floats(3, 20), None, x.seed(), 0.5, 2, 4, True, False, False


def scale_gradient(x: Inputs) -> Calls:
    for grad, dim in ((x.results(), 0), (x.results(3), 0), (x.results(4), 1)):
        yield grad, x.results(3, 4, 5), x.floats(3, 4, 5), dim


CALLS: list[Callable[[Inputs], Calls]] = [
    rank,
    rank_backward,
    ranksim_select,
    ranksim_loss,
    ranksim_rows,
    ranksim_rows_backward,
    rank_n_contrast,
    rank_n_contrast_backward,
    similarity_logsumexp,
    similarity_logsumexp_key_gradient,
    pseudo_group_contrast,
    disagreement,
    dropout_linear,
    dropout_linear_backward,
    dropout_disagreement,
    scale_gradient,
]


@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.__name__)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.slow),
        pytest.param(torch.float16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_opcheck(device: str, dtype: torch.dtype, calls: Callable[[Inputs], Calls]) -> None:
    operator = getattr(ops, calls.__name__).default
    for arguments in calls(Inputs(device, dtype)):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.__name__)
def test_opcheck_of_numbers_as_tensors(device: str, calls: Callable[[Inputs], Calls]) -> None:
    operator = getattr(ops, calls.__name__)
    floats = any(isinstance(argument.type, torch.FloatType) for argument in operator.default._schema.arguments)
    assert ("numbers" in operator.overloads()) == floats
    if not floats:
        return
    for arguments in calls(Inputs(device, torch.float32)):
        numbers = [torch.tensor(v, dtype=torch.float64) if isinstance(v, float) else v for v in arguments]
        torch.library.opcheck(operator.numbers, numbers)


def test_no_operator_is_left_out() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dadl::")}
    assert {name.removesuffix(".numbers") for name in names} == {f"dadl::{calls.__name__}" for calls in CALLS}
