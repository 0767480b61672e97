"""On a GPU: every loss in a CUDA graph, on a stream of its own, and on a device that is not the current one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dadl_ext import functional

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def rank(x: Tensor) -> Tensor:
    return functional.rank(x)


def ranksim(x: Tensor) -> Tensor:
    return functional.ranksim_loss(x, torch.arange(len(x), device=x.device) % 37, generator=None)


def ranksim_of_distinct_labels(x: Tensor) -> Tensor:
    return functional.ranksim_loss(x, torch.arange(len(x), device=x.device))


def rank_n_contrast(x: Tensor) -> Tensor:
    return functional.rank_n_contrast(x, torch.arange(len(x), device=x.device) % 37)


def rank_n_contrast_of_vector_labels(x: Tensor) -> Tensor:
    return functional.rank_n_contrast(x, x.detach()[:, :2], similarity="cosine", reduction="none")


def logsumexp(x: Tensor) -> Tensor:
    return functional.similarity_logsumexp(F.normalize(x, dim=1), F.normalize(x.flip(0), dim=1), scale=5.0)


def group_contrast(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    queue = unit.detach().reshape(-1, 4, x.shape[1])
    target = torch.arange(len(x), device=x.device) % len(queue)
    return functional.pseudo_group_contrast(unit, unit.detach(), queue, target)


def disagreement(x: Tensor) -> Tensor:
    return functional.disagreement(torch.stack([x, x.flip(0)]), "js")


def dropout(x: Tensor) -> Tensor:
    seed = torch.ones((), dtype=torch.int64, device=x.device)
    return functional.dropout_disagreement(x, x[:2], None, p=0.5, samples=3, seed=seed)


def dropout_of_many_outputs(x: Tensor) -> Tensor:
    seed = torch.ones((), dtype=torch.int64, device=x.device)
    return functional.dropout_linear(x, x[:20], None, p=0.5, samples=3, seed=seed)


# Without a choice among equal labels, which would differ from call to call.
LOSSES = [rank, ranksim_of_distinct_labels, rank_n_contrast, rank_n_contrast_of_vector_labels, logsumexp]
LOSSES += [group_contrast, disagreement, dropout, dropout_of_many_outputs]
HALF = [rank_n_contrast, logsumexp, group_contrast, disagreement, dropout_of_many_outputs]
CASES = [(loss, torch.float32) for loss in LOSSES] + [(loss, torch.bfloat16) for loss in HALF]


def step(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def features(dtype: torch.dtype, device: str = "cuda") -> Tensor:
    return torch.randn(200, 96, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()


@pytest.mark.parametrize(("loss", "dtype"), CASES)
def test_a_cuda_graph_replays_it(loss: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = features(dtype)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(loss, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, x)
    with torch.no_grad():
        x.copy_(x.flip(1) * 1.5)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, expected in zip(captured, step(loss, x), strict=True):
        assert torch.equal(replayed, expected)


def test_ranksim_draws_anew_at_every_replay() -> None:
    x = features(torch.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(ranksim, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = step(ranksim, x)
    seen = set()
    for _ in range(5):
        graph.replay()
        seen.add(loss.item())
    assert len(seen) > 1


@pytest.mark.parametrize(("loss", "dtype"), CASES)
def test_it_follows_the_stream(loss: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = features(dtype)
    expected = step(loss, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.full_like(x, torch.nan)
        torch.cuda._sleep(20_000_000)  # whoever did not wait would see NaN
        late.copy_(x)
        results = step(loss, late.detach().requires_grad_())
    torch.cuda.synchronize()
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("loss", "dtype"), CASES)
def test_a_device_that_is_not_the_current_one(loss: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    assert torch.cuda.current_device() == 0
    results = step(loss, features(dtype, "cuda:1"))
    for ours, theirs in zip(results, step(loss, features(dtype)), strict=True):
        assert ours.device.index == 1
        torch.testing.assert_close(ours.cpu(), theirs.cpu())
    assert torch.cuda.current_device() == 0
