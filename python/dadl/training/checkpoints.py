"""Checkpoints, and errors that say what is wrong with them."""

import inspect
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError
from ..files import write_file

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or belongs to something else."""


def save_checkpoint(fabric: "Fabric", path: Path, state: dict[str, Any]) -> None:
    """Write the state of modules, optimisers and plain values to ``path``, in one piece; called by all processes."""
    plain = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in state.items()}
    if fabric.is_global_zero:
        write_file(path, lambda place: _write(place, plain))
    fabric.barrier()


def load_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Restore ``state`` in place from ``path``, which may hold more. Only tensors and plain values are unpickled.

    Raises a :class:`CheckpointError` if the file is missing or damaged, is not a checkpoint, is of another method, or
    holds NaN or infinity.
    """
    saved = read_checkpoint(path)
    with _readable(path):
        for name, part in state.items():
            if not hasattr(part, "load_state_dict"):
                state[name] = saved[name]
                continue
            own = tensors_of(part) if isinstance(part, nn.Module) else {}
            _check_types(own, saved[name])
            if hasattr(part, "zero_grad") and (spoilt := not_finite(saved[name]) - not_finite(own)):
                raise ValueError(f"{min(spoilt)} holds NaN or infinity")
            part.load_state_dict(saved[name])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of ``path``, on the CPU; errors as for :func:`load_checkpoint`."""
    with _readable(path), path.open("rb") as stream:
        # PyTorch does not compare checksums.
        with zipfile.ZipFile(stream) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                    raise ValueError(f"{record.filename} is compressed")
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        stream.seek(0)
        state = torch.load(stream, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    return state


def check_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Raise a ``ValueError`` if a loaded optimiser cannot make a step.

    Args:
        optimizer: after ``load_state_dict``.
        groups: its ``param_groups`` before that, without their parameters.
    """
    for before, after in zip(groups, optimizer.param_groups, strict=True):
        check_kind({key: value for key, value in before.items() if key != "params"}, after, "the optimiser")
    expected = _state_after_a_step(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if not isinstance(state, Mapping):
                raise ValueError(f"the optimiser's state of a parameter is a {type(state).__name__}")
            if not state or expected is None:
                continue
            if state.keys() != expected.keys():
                raise ValueError(f"an optimiser of {', '.join(expected)}, not of {', '.join(map(str, state))}")
            for key, value in expected.items():
                check_kind(value, state[key], key)
                if isinstance(value, Tensor) and state[key].shape != (parameter.shape if value.dim() else ()):
                    raise ValueError(f"the optimiser's {key} is {list(state[key].shape)}")


def check_kind(expected: Any, value: Any, name: str) -> None:
    """Raise a ``ValueError`` if ``value`` is not of the same kind as ``expected``, through dicts and sequences.

    Numbers and tensors are those of another step; texts and flags must be equal.
    """
    if isinstance(expected, Mapping):
        right = isinstance(value, Mapping) and expected.keys() <= value.keys()
        parts = [(expected[key], value[key], f"{name}, {key}") for key in expected] if right else []
    elif isinstance(expected, list | tuple):
        right = isinstance(value, list | tuple) and len(value) == len(expected)
        parts = [(*pair, name) for pair in zip(expected, value, strict=True)] if right else []
    elif isinstance(expected, bool | str):  # they choose what is done, and no step changes them
        right, parts = isinstance(value, type(expected)) and value == expected, []
    elif isinstance(expected, Tensor):
        right, parts = isinstance(value, Tensor), []
    elif isinstance(expected, int | float):
        right, parts = isinstance(value, int | float) and not isinstance(value, bool), []
    else:
        right, parts = True, []
    if not right:
        raise ValueError(f"{name} has a value that it cannot have")
    for part in parts:
        check_kind(*part)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers."""
    return {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}


def not_finite(state: Any) -> set[str]:
    """The names of what is NaN or infinite in a module's or an optimiser's state, such as a mask of a network."""
    if isinstance(state, Tensor):
        finite = not (state.is_floating_point() or state.is_complex()) or bool(state.isfinite().all())
    else:
        finite = not isinstance(state, float) or math.isfinite(state)
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, Mapping):
        return set() if finite else {""}
    return {f"{key} {name}".rstrip() for key, part in state.items() for name in not_finite(part)}


def _check_types(own: Mapping[str, Tensor], saved: Any) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"a state is a {type(saved).__name__}")
    for name in own.keys() & saved.keys():
        if not (isinstance(saved[name], Tensor) and saved[name].dtype == own[name].dtype):
            raise ValueError(f"{name} has another type")


def _state_after_a_step(optimizer: Optimizer) -> dict[str, Any] | None:
    """What an optimiser of this kind keeps for a vector; ``None`` if another one cannot be made."""
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key in accepted and key != "params"}
    vector = nn.Parameter(torch.zeros(2))
    vector.grad = torch.zeros(2)
    try:
        probe = type(optimizer)([vector], **settings)  # type: ignore[call-arg]
        probe.step()
    except TypeError:
        return None
    return dict(probe.state[vector])


def _write(place: Path, state: dict[str, Any]) -> None:
    with place.open("wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:
            # PyTorch's writer hides what happened as it wrote: a full disk, or Ctrl-C.
            raise (error.__context__ or error) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing: put it back, or start over in another folder")
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint of this training ({reason[:200]}): put it back, or start over in "
            "another folder"
        ) from None
