"""The base of the differentiable operators, which PyTorch's transforms understand."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Operation(torch.autograd.Function):
    """An operator with its gradient, for :func:`apply`.

    ``forward`` takes no context, as ``torch.func`` asks. A result that only serves the backward is an output too, and
    not differentiable. Under ``torch.vmap`` the operator is called for one example after the other.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "vmap" not in cls.__dict__:
            cls.vmap = staticmethod(functools.partial(_each, cls))  # type: ignore[method-assign]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, so that tensors may be wrappers."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def readable(value: Tensor) -> bool:
    """Whether the host may look at the values: it waits for no device, and there is a single value to look at."""
    if not value.is_cpu or torch.compiler.is_compiling() or isinstance(value, FakeTensor):
        return False
    return not batched(value)


def batched(value: Tensor) -> bool:
    """Whether this is one tensor for each example of ``torch.vmap``, at any level of transforms."""
    while transformed() and torch._C._functorch.is_functorch_wrapped_tensor(value):
        if torch._C._functorch.is_batchedtensor(value):
            return True
        value = torch._C._functorch.get_unwrapped(value)
    return False


def drawn(function: str, draw: Callable[[], Tensor]) -> Tensor:
    """``draw()``, where ``torch.vmap`` allows it."""
    if not transformed():
        return draw()
    try:
        return draw()
    except RuntimeError as error:
        if "randomness" not in str(error):
            raise
        raise RuntimeError(
            f'{function} draws random numbers: call vmap(..., randomness="different"), or "same"'
        ) from error


def apply(operation: type[Operation], *arguments: Any) -> Any:
    """``operation.apply(*arguments)``, without binding arguments by name first, which takes 20 µs."""
    compiling, transforming = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
    if compiling and transforming:
        # Of the argument of a transform, unlike of a result, the compiler does not know that it has a gradient.
        arguments = tuple(value.view_as(value) if isinstance(value, Tensor) else value for value in arguments)
    if compiling or transforming:
        return operation.apply(*arguments)
    return super(torch.autograd.Function, operation).apply(*arguments)  # type: ignore[misc]


def differentiated(*inputs: Tensor | None) -> bool:
    """Whether a gradient may be asked for. Behind a transform nobody can tell, so that it may."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs)


def keep(ctx: Any, *values: Any) -> None:
    """Save tensors and numbers for :func:`kept`."""
    ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
    ctx.numbers = tuple(None if isinstance(value, Tensor) else (value,) for value in values)


def kept(ctx: Any) -> tuple[Any, ...]:
    tensors = iter(ctx.saved_tensors)
    return tuple(next(tensors) if value is None else value[0] for value in ctx.numbers)


def _each(operation: type[Operation], info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    def example(i: int) -> Any:
        return operation.apply(
            *(value if dim is None else value.select(dim, i) for value, dim in zip(arguments, in_dims, strict=True))
        )

    if info.batch_size == 0:  # one example of zeros tells the shapes
        arguments = tuple(
            value if dim is None else value.new_zeros([1 if i == dim else size for i, size in enumerate(value.shape)])
            for value, dim in zip(arguments, in_dims, strict=True)
        )
    results = [example(i) for i in range(max(info.batch_size, 1))]

    def stack(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        return torch.stack(parts)[: info.batch_size]

    if isinstance(results[0], Tensor):
        return stack(results), 0
    stacked = tuple(None if parts[0] is None else stack(parts) for parts in zip(*results, strict=True))
    return stacked, tuple(None if value is None else 0 for value in stacked)
