"""Every function under every transform of PyTorch."""

from pathlib import Path

import pytest
import torch
from support.fuzz import repeat
from support.losses import LOSSES
from support.transforms import EAGER, WHOLE, expected, outcome, table

from dadl_ext import DropoutDisagreementLoss, functional


@pytest.mark.parametrize("transform", EAGER)
@pytest.mark.parametrize("name", LOSSES)
def test_transform(device: str, dtype: torch.dtype, name: str, transform: str) -> None:
    assert outcome(name, transform, device, dtype) == expected(name, transform)


@pytest.mark.slow
@pytest.mark.parametrize("transform", WHOLE)
@pytest.mark.parametrize("name", LOSSES)
def test_whole_program(device: str, name: str, transform: str) -> None:
    assert outcome(name, transform, device, torch.float32) == expected(name, transform)


def test_the_table_of_the_documentation_says_so() -> None:
    recorded = Path(__file__).parents[2] / "benchmarks" / "results" / "transforms.md"
    assert recorded.read_text(encoding="utf-8") == table(expected)


@pytest.mark.parametrize("case", (Path(__file__).parent / "fuzz_cases.txt").read_text(encoding="utf-8").splitlines())
def test_what_the_fuzzer_found(case: str) -> None:
    repeat(case)


def test_vmap_draws_for_each_example_or_says_why_not() -> None:
    x, tied = torch.randn(64, 6, 5), torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 3.0])
    batch = x[:1].expand_as(x)

    def losses(**settings: str) -> torch.Tensor:
        value: torch.Tensor = torch.vmap(lambda v: functional.ranksim_loss(v, tied, weight=2.0), **settings)(batch)
        return value

    assert len(losses(randomness="different").unique()) > 1
    assert len(losses(randomness="same").unique()) == 1
    with pytest.raises(
        RuntimeError, match=r'ranksim_loss draws random numbers: call vmap\(..., randomness="different"'
    ):
        losses()
    with pytest.raises(RuntimeError, match='use "sum" or "mean"'):
        torch.vmap(lambda v: functional.ranksim_loss(v, tied, reduction="none"), randomness="different")(batch)


def test_a_head_with_dropout_draws_for_each_example() -> None:
    loss, batch = DropoutDisagreementLoss(torch.nn.Linear(5, 2)), torch.randn(1, 6, 5).expand(8, 6, 5)
    assert len(torch.vmap(loss, randomness="different")(batch).unique()) == 8
    with pytest.raises(RuntimeError, match="DropoutDisagreementLoss draws random numbers"):
        torch.vmap(loss)(batch)
