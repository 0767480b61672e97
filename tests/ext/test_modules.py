"""The modules as other code treats them: copied, pickled, converted, built without memory, saved and loaded."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dadl_ext
from dadl_ext import (
    ChiModelLoss,
    ClassQueue,
    DisagreementLoss,
    DropoutDisagreementLoss,
    GradientReversal,
    PseudoGroupContrastLoss,
    RankNContrastLoss,
    RankSimLoss,
    SupervisedContrastLoss,
)

FEATURES, KEYS, LABELS = torch.randn(8, 6), torch.randn(8, 6), torch.arange(8) % 3
Use = Callable[[nn.Module, torch.dtype], Tensor]


def queue_use(queue: nn.Module, dtype: torch.dtype) -> Tensor:
    assert isinstance(queue, ClassQueue)
    queue.enqueue(KEYS.to(dtype), LABELS)
    return queue.keys.clone()


MODULES: dict[str, tuple[Callable[[], nn.Module], Use]] = {
    "RankSimLoss": (lambda: RankSimLoss(weight=3.0), lambda m, t: m(FEATURES.to(t), torch.arange(8.0))),
    "RankNContrastLoss": (RankNContrastLoss, lambda m, t: m(FEATURES.to(t), torch.arange(8.0))),
    "SupervisedContrastLoss": (SupervisedContrastLoss, lambda m, t: m(FEATURES.to(t), LABELS)),
    "ClassQueue": (lambda: ClassQueue(3, 6, 4), queue_use),
    "PseudoGroupContrastLoss": (
        lambda: PseudoGroupContrastLoss(3, 6, slots=4, valid_only=True),
        lambda m, t: m(FEATURES.to(t), KEYS.to(t), LABELS),
    ),
    "DisagreementLoss": (lambda: DisagreementLoss("js"), lambda m, t: m(torch.stack([FEATURES, KEYS]).to(t))),
    "DropoutDisagreementLoss": (
        lambda: DropoutDisagreementLoss(nn.Linear(6, 2), samples=3),
        lambda m, t: m(FEATURES.to(t), generator=torch.Generator().manual_seed(1)),
    ),
    "ChiModelLoss": (
        lambda: ChiModelLoss(nn.Linear(6, 3), nn.Linear(6, 3), nn.MSELoss(), ramp_steps=5, clamp=2.0),
        lambda m, t: m(FEATURES.to(t), KEYS[:, :3].to(t), KEYS.to(t), FEATURES.to(t)),
    ),
    "GradientReversal": (lambda: GradientReversal(0.5), lambda m, t: m(FEATURES.to(t))),
}


def make(name: str) -> tuple[nn.Module, Use]:
    torch.manual_seed(4)
    build, use = MODULES[name]
    module = build()
    use(module, torch.float32)  # so that there is state to keep
    return module, use


def same_from_here(one: nn.Module, other: nn.Module, use: Use, dtype: torch.dtype = torch.float32) -> None:
    for _ in range(2):
        assert torch.equal(use(one, dtype), use(other, dtype))
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_no_module_is_left_out() -> None:
    public = {name for name in dadl_ext.__all__ if isinstance(getattr(dadl_ext, name), type)}
    assert public == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_copies_share_nothing(name: str) -> None:
    module, use = make(name)
    other = copy.deepcopy(module)
    storages = {v.data_ptr() for v in module.state_dict().values()}
    assert not storages & {v.data_ptr() for v in other.state_dict().values()}
    same_from_here(module, other, use)


@pytest.mark.parametrize("name", MODULES)
def test_pickles_and_saved_modules(name: str) -> None:
    module, use = make(name)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    pickled = pickle.loads(pickle.dumps(module))
    same_from_here(copy.deepcopy(module), loaded, use)
    same_from_here(module, pickled, use)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_state_of_another_module(name: str, assign: bool) -> None:
    module, use = make(name)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(9)
    other = MODULES[name][0]()
    other.load_state_dict(state, strict=True, assign=assign)
    same_from_here(module, other, use)


@pytest.mark.parametrize("name", MODULES)
def test_a_state_that_lacks_or_adds_something(name: str) -> None:
    module, _ = make(name)
    state = module.state_dict()
    added = {**state, "other": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        copy.deepcopy(module).load_state_dict(added)
    keys = copy.deepcopy(module).load_state_dict(added, strict=False)
    assert keys.unexpected_keys == ["other"]
    for missing in state:
        rest = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(RuntimeError, match="Missing key"):
            copy.deepcopy(module).load_state_dict(rest)
        assert copy.deepcopy(module).load_state_dict(rest, strict=False).missing_keys == [missing]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_conversion(name: str, dtype: torch.dtype) -> None:
    module, use = make(name)
    module.to(dtype)
    floating = [value for value in module.state_dict().values() if value.is_floating_point()]
    assert all(value.dtype == dtype for value in floating)
    assert use(module, dtype).isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_built_without_memory(name: str) -> None:
    module, use = make(name)
    with torch.device("meta"):
        empty = MODULES[name][0]()
    assert all(value.is_meta for value in empty.state_dict().values())
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    empty.to_empty(device="cpu").load_state_dict(module.state_dict())
    same_from_here(copy.deepcopy(module), assigned, use)
    same_from_here(module, empty, use)


def test_an_empty_queue_is_reset() -> None:
    with torch.device("meta"):
        queue = ClassQueue(3, 6, 4)
    queue.to_empty(device="cpu").reset()
    torch.testing.assert_close(queue.keys.norm(dim=-1), torch.ones(3, 4))
    assert queue.slot_count.tolist() == queue.pointer.tolist() == [0, 0, 0]


def test_state_of_version_0_1() -> None:
    chi, _ = make("ChiModelLoss")
    state = {key: value for key, value in chi.state_dict().items() if key != "step"}
    other = copy.deepcopy(chi)
    other.load_state_dict({**state, "_extra_state": 4})
    assert other.step.item() == 4
    nested = nn.ModuleDict({"chi": copy.deepcopy(chi)})
    nested.load_state_dict({**{f"chi.{key}": value for key, value in state.items()}, "chi._extra_state": 3})
    assert nested["chi"].step.item() == 3
    old = copy.deepcopy(chi)
    del old._buffers["step"]
    old.__dict__["step"] = 2
    assert pickle.loads(pickle.dumps(old)).step.item() == 2
