"""The shared loop on a tiny model: determinism, resume, accumulation, precision, several processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

from dadl.training import Method, fit, predict, tensor_loader
from lightning_fabric import Fabric
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS.sum(dim=1)


class Linear(Method):
    steps: Tensor

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, target = batch
        output = self.network(inputs).squeeze(-1)
        self.output_dtype = output.dtype
        return nn.functional.mse_loss(output.float(), target)

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs).squeeze(-1)  # type: ignore[no-any-return]

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        self.total_steps = total_steps
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer, StepLR(optimizer, step_size=3, gamma=0.7)

    def after_step(self) -> None:
        self.steps += 1


def cpu(**options: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **options)


def train(
    method: Linear, *, batch_size: int = 5, shuffle: bool = True, fabric: Fabric | None = None, **options: Any
) -> list[float]:
    loader = tensor_loader(INPUTS, TARGETS, batch_size=batch_size, shuffle=shuffle)
    return fit(fabric or cpu(), method, loader, **{"epochs": 4, **options})


def parameters(method: Method) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.parameters()])


def test_training_lowers_the_loss_and_counts_its_steps() -> None:
    method, steps = Linear(), []
    history = train(method, epochs=10, on_step=lambda: steps.append(1))
    assert len(history) == 10
    assert history[-1] < 0.2 * history[0]
    assert len(steps) == method.total_steps == method.steps == 10 * 5  # 24 samples are 5 batches of at most 5


def test_same_seed_same_numbers() -> None:
    one, two, other = Linear(0.3), Linear(0.3), Linear(0.3)
    assert train(one, seed=3) == train(two, seed=3)
    train(other, seed=4)
    assert torch.equal(parameters(one), parameters(two))
    assert not torch.equal(parameters(one), parameters(other))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Linear(0.3)
    history = train(whole, epochs=4)

    class Interrupted(Exception):
        pass

    steps: list[int] = []

    def interrupt_in_the_third_epoch() -> None:
        steps.append(1)
        if len(steps) == 12:
            raise Interrupted

    interrupted = Linear(0.3)
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(Interrupted):
        train(interrupted, epochs=4, checkpoint=checkpoint, on_step=interrupt_in_the_third_epoch)

    resumed = Linear(0.3)
    assert train(resumed, epochs=4, checkpoint=checkpoint) == history
    assert torch.equal(parameters(resumed), parameters(whole))
    assert resumed.steps == whole.steps


def test_accumulated_batches_equal_one_large_batch() -> None:
    small, large = Linear(), Linear()
    train(small, batch_size=4, accumulate=3, shuffle=False)
    train(large, batch_size=12, shuffle=False)
    assert small.steps == large.steps
    torch.testing.assert_close(parameters(small), parameters(large))


def test_a_last_incomplete_group_is_averaged_over_its_own_batches() -> None:
    small, large = Linear(), Linear()
    train(small, batch_size=4, accumulate=4, shuffle=False)  # groups of 4 and 2 batches: 16 and 8 samples
    train(large, batch_size=16, shuffle=False)
    torch.testing.assert_close(parameters(small), parameters(large))


def test_mixed_precision_needs_nothing_from_the_method() -> None:
    single, mixed = Linear(), Linear()
    train(single)
    train(mixed, fabric=cpu(precision="bf16-mixed"))
    assert single.output_dtype == torch.float32
    assert mixed.output_dtype == torch.bfloat16
    assert not torch.equal(parameters(mixed), parameters(single))
    torch.testing.assert_close(parameters(mixed), parameters(single), atol=0.03, rtol=0.03)


def test_predictions_are_in_order_in_evaluation_mode_and_without_gradients() -> None:
    method = Linear(dropout=0.5)
    predictions = predict(cpu(), method, tensor_loader(INPUTS, TARGETS, batch_size=7))
    method.eval()
    torch.testing.assert_close(predictions, method.predict(INPUTS).detach())
    assert not predictions.requires_grad
    hidden = predict(cpu(), method, tensor_loader(INPUTS, batch_size=7), method.network[:2])
    assert hidden.shape == (24, 8)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each process sees half of every batch: the same steps, and predictions in the same order."""
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from lightning_fabric import Fabric
            from test_training import INPUTS, TARGETS, Linear, parameters
            from dadl.training import fit, predict, tensor_loader

            def job(fabric):
                method = Linear()
                loader = tensor_loader(INPUTS[:20], TARGETS[:20], batch_size=2)
                history = fit(fabric, method, loader, epochs=3, accumulate=2)
                predictions = predict(fabric, method, tensor_loader(INPUTS[:19], batch_size=4))
                if fabric.global_rank == 0:
                    torch.save((parameters(method), predictions, history), sys.argv[1])
                fabric.barrier()
                torch.distributed.destroy_process_group()  # else gloo's threads may abort the exiting process

            if __name__ == "__main__":
                Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(job)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    result = tmp_path / "result.pt"
    job = subprocess.run(
        [sys.executable, str(script), str(result)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert job.returncode == 0, job.stderr
    two_parameters, two_predictions, two_history = torch.load(result)

    one = Linear()
    loader = tensor_loader(INPUTS[:20], TARGETS[:20], batch_size=4)
    history = fit(cpu(), one, loader, epochs=3, accumulate=2)
    torch.testing.assert_close(two_parameters, parameters(one))
    torch.testing.assert_close(two_history, history)
    torch.testing.assert_close(two_predictions, predict(cpu(), one, tensor_loader(INPUTS[:19], batch_size=4)))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"accumulate": 0}])
def test_nothing_to_do_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected epochs >= 1 and accumulate >= 1"):
        train(Linear(), **options)


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batches"):
        fit(cpu(), Linear(), tensor_loader(INPUTS[:0], TARGETS[:0], batch_size=2), epochs=1)


def test_tensors_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[24, 23\]"):
        tensor_loader(INPUTS, TARGETS[:23], batch_size=2)
