"""What else a loss meets in people's training code."""

import threading
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from support.losses import LOSSES, make
from support.transforms import plain_gradients, reference_gradients, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dadl_ext import ClassQueue, PseudoGroupContrastLoss, SupervisedContrastLoss, functional, reference

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_another_default_dtype(device: str, dtype: torch.dtype, name: str, double_by_default: None) -> None:
    call = make(name, device, dtype)
    same(call, call.of_inputs(*call.inputs), call.reference_of_inputs(*call.inputs))
    same(call, plain_gradients(call.of_inputs, call.inputs), reference_gradients(call))


def spread(value: Tensor) -> Tensor:
    """The same values, neither contiguous nor at the beginning of their storage."""
    larger = value.new_zeros([2 * size + 1 for size in value.shape])
    view = larger[tuple(slice(1, None, 2) for _ in value.shape)]
    view.copy_(value)
    return view


@pytest.mark.parametrize("layout", ["spread", "transposed", "expanded rows"])
@pytest.mark.parametrize("name", LOSSES)
def test_inputs_of_any_layout(device: str, dtype: torch.dtype, name: str, layout: str) -> None:
    call = make(name, device, dtype)

    def lay_out(value: Tensor) -> Tensor:
        if layout == "spread":
            return spread(value)
        if layout == "expanded rows" and value.is_floating_point():
            return value[:1].expand_as(value)
        return value.mT.contiguous().mT if value.dim() > 1 else value

    inputs, constants = [tuple(map(lay_out, values)) for values in (call.inputs, call.constants)]
    if layout == "expanded rows":
        constants = call.constants
    dense = tuple(value.contiguous() for value in inputs)
    actual = plain_gradients(lambda *v: call.function(*v, *constants), inputs)
    assert call.function(*inputs, *constants).equal(call.function(*dense, *(c.contiguous() for c in constants)))
    same(call, actual, plain_gradients(lambda *v: call.reference(*v, *constants), dense))


def test_channels_last_heatmaps(device: str) -> None:
    heatmaps = torch.randn(6, 5, 4, 3, device=device)
    members = torch.stack([heatmaps, heatmaps.flip(0)])
    for measure in ("js", "l1"):
        value = functional.disagreement(members, measure)
        moved = torch.stack([m.to(memory_format=torch.channels_last) for m in members])
        torch.testing.assert_close(functional.disagreement(moved, measure), value)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_integer_dtype_and_as_a_column(device: str, dtype: torch.dtype) -> None:
    classes = torch.arange(8, device=device) % 3
    x, key, queue = (torch.randn(shape, device=device) for shape in ((8, 6), (8, 6), (3, 4, 6)))
    for labels in (classes.to(dtype), classes.to(dtype)[:, None]):
        for module in (functional, reference):
            assert module.supervised_contrast(x, labels).equal(module.supervised_contrast(x, classes))
            expected = module.pseudo_group_contrast(x, key, queue, classes)
            assert module.pseudo_group_contrast(x, key, queue, labels).equal(expected)
            assert module.ranksim_loss(x[:3], labels[:3]).equal(module.ranksim_loss(x[:3], classes[:3]))
        queues = [ClassQueue(3, 6, 4).to(device) for _ in range(2)]
        queues[1].load_state_dict(queues[0].state_dict())
        queues[0].enqueue(key, labels)
        queues[1].enqueue(key, classes)
        assert queues[0].keys.equal(queues[1].keys)
        contrast = PseudoGroupContrastLoss(3, 6).to(device)
        assert contrast(x, key, labels, update=False).equal(contrast(x, key, classes, update=False))
        contrast(x, key, labels)
        assert contrast.queue.slot_count.tolist() == [3, 3, 2]


def test_labels_that_are_not_classes_are_refused(device: str) -> None:
    x = torch.randn(8, 6, device=device)
    with pytest.raises(TypeError, match=r"labels must be of an integer dtype, got torch.float32; convert with"):
        functional.supervised_contrast(x, torch.zeros(8, device=device))
    with pytest.raises(ValueError, match=r"labels must be of shape \(8,\), got \(8, 2\)"):
        functional.supervised_contrast(x, torch.zeros(8, 2, dtype=torch.int32, device=device))


def test_gradient_scaler_skips_an_overflow(device: str) -> None:
    model = nn.Linear(6, 5, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    classes = torch.arange(8, device=device) % 3

    def loss(scale: float) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            features = model(torch.ones(8, 6, device=device).cumsum(0) * scale)
            return functional.supervised_contrast(features, classes, temperature=2.0) + functional.ranksim_loss(
                features, torch.arange(8.0, device=device)
            )

    before = model.weight.detach().clone()
    scaler.scale(loss(torch.inf)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.equal(before)
    assert scaler.get_scale() == 2.0**9
    optimizer.zero_grad()
    scaler.scale(loss(0.1)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.isfinite().all()
    assert not model.weight.equal(before)


def test_scaled_gradients_are_the_gradients_scaled(device: str) -> None:
    """So that loss scales and gradient accumulation change nothing."""
    for name in LOSSES:
        if name == "rank":
            continue  # documented: the blackbox gradient of a bare rank is not linear
        call = make(name, device, torch.float64)
        scaled = plain_gradients(lambda *v, c=call: c.of_inputs(*v) * 1024, call.inputs)
        plain = plain_gradients(call.of_inputs, call.inputs)
        torch.testing.assert_close(scaled, tuple(1024 * g for g in plain))


def test_several_python_threads(device: str) -> None:
    calls = [make(name, device) for name in LOSSES]
    expected = [plain_gradients(call.of_inputs, call.inputs) for call in calls]
    wrong: list[str] = []

    def work(first: int) -> None:
        for i in range(3 * len(calls)):
            j = (first + i) % len(calls)
            try:
                torch.testing.assert_close(plain_gradients(calls[j].of_inputs, calls[j].inputs), expected[j])
            except Exception as error:
                wrong.append(f"{list(LOSSES)[j]}: {error}")

    threads = [threading.Thread(target=work, args=(5 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class LossesInWorkers(Dataset[list[Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        calls = [make(name) for name in LOSSES]
        return [gradient for call in calls for gradient in plain_gradients(call.of_inputs, call.inputs)]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(context: str) -> None:
    expected = LossesInWorkers()[0]  # also starts the threads of this process before the fork
    loader = DataLoader(LossesInWorkers(), num_workers=2, batch_size=None, multiprocessing_context=context, timeout=120)
    count = 0
    for gradients in loader:
        torch.testing.assert_close(gradients, expected)
        count += 1
    assert count == 4


def test_accelerate_with_gradient_accumulation() -> None:
    classes, x = torch.arange(16) % 4, torch.randn(16, 6)

    def trained(accumulate: int) -> Tensor:
        accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
        torch.manual_seed(0)
        model = nn.Linear(6, 5)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        contrast = SupervisedContrastLoss()
        for _ in range(2):  # the same rows twice, whose mean gradient is that of once
            with accelerator.accumulate(model):
                loss = contrast(model(x), classes)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accumulate == 1:
                break
        return model.weight.detach()

    torch.testing.assert_close(trained(2), trained(1))
