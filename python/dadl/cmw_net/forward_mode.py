"""Forward-mode derivatives of a network that has just been evaluated, at two thirds of their usual cost.

PyTorch's forward mode computes every layer's output again along with its tangent. If the network has already been
evaluated at the same point, the output of a convolution is known and only its tangent must be computed. The output of
a ReLU and the statistics of a batch normalisation are known as well.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Called as (input, weight, bias, ...), linear in each of the first two.
_BILINEAR = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, F.linear})


class NoForwardRuleError(NotImplementedError):
    """An operation has no forward-mode derivative."""


class ForwardRecord(TorchFunctionMode):
    """A context around a forward pass that records what :class:`Pushforward` can reuse on the same pass.

    It holds tensors that the graph of a backward pass holds anyway: outputs of convolutions and linear layers, which
    most networks normalise next, outputs of ReLUs, and statistics of batch normalisations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Tensor, ...]] = []
        self._versions: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _BILINEAR or (func is F.relu and not kwargs["inplace"]):
            self._append(output.detach())
        elif func is F.batch_norm:
            graph = output.grad_fn
            # Attributes of the graph's node: the mean and the reciprocal of the standard deviation.
            known = hasattr(graph, "_saved_result1") and hasattr(graph, "_saved_result2")
            self._append(*((graph._saved_result1, graph._saved_result2) if known else ()))
        return output

    def _append(self, *tensors: Tensor) -> None:
        self.entries.append(tensors)
        self._versions.append(sum(tensor._version for tensor in tensors))

    def clear(self) -> None:
        self.entries.clear()
        self._versions.clear()

    def replay(self) -> Iterator[tuple[Tensor, ...]]:
        """The record of each call, in order; empty if a later in-place operation has overwritten it."""
        for tensors, version in zip(self.entries, self._versions, strict=True):
            yield tensors if sum(tensor._version for tensor in tensors) == version else ()


class Pushforward(TorchFunctionMode):
    r"""A context around a pass on dual tensors that computes the tangents of the expensive layers.

    Convolutions and linear layers, with tangents marked by a dot: :math:`\dot y = \dot x * w + x * \dot w + \dot b`, on
    the recorded :math:`y`. Batch normalisation in training mode, :math:`y = \gamma \hat x + \beta` with
    :math:`\hat x = r (x - \mu)`: PyTorch's rule takes a dozen passes over the activations; this one takes a reduction
    and an affine map,

    .. math:: \dot y = \gamma r \dot x + (\dot\gamma - \gamma r \overline{\dot x \hat x}) \hat x
                       + \dot\beta - \gamma r \overline{\dot x},

    where the kernel of the backward pass computes both means, for the gradients of scale and shift. Everything else
    follows PyTorch's forward mode. An operator outside PyTorch without a forward rule silently drops tangents; here it
    raises :class:`NoForwardRuleError`.

    Args:
        record: of a pass of the same network with the same parameters, inputs and random numbers.
    """

    def __init__(self, record: ForwardRecord) -> None:
        super().__init__()
        self._recorded = record.replay()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _BILINEAR:
            return _bilinear(func, next(self._recorded), *args, **kwargs)
        if func is F.relu and not kwargs["inplace"]:
            return _relu(next(self._recorded), *args)
        if func is F.batch_norm:
            return _batch_norm(next(self._recorded), *args, **kwargs)
        output = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and not str(func).startswith("aten."):
            _check_tangents(func, (*args, *kwargs.values()), output)
        return output


def _split(value: Tensor | None) -> tuple[Any, Tensor | None]:
    """Value and tangent."""
    return (None, None) if value is None else tuple(fwd.unpack_dual(value))  # type: ignore[return-value]


def _relu(recorded: tuple[Tensor, ...], input: Tensor) -> Tensor:
    tangent = fwd.unpack_dual(input).tangent
    if not recorded or tangent is None:
        return F.relu(input)
    (y,) = recorded
    return _dual(y, torch.ops.aten.threshold_backward(tangent, y, 0))


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = fwd.make_dual(value, tangent)
    return dual


def _bilinear(
    func: Callable[..., Tensor],
    recorded: tuple[Tensor, ...],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    (x, dx), (w, dw), (b, db) = _split(input), _split(weight), _split(bias)
    (y,) = recorded or (func(x, w, b, *args, **kwargs),)
    if dx is None and dw is None:
        return y if db is None else func(input, weight, bias, *args, **kwargs)
    if dw is None:
        tangent = func(dx, w, db, *args, **kwargs)
    else:
        tangent = func(x, dw, db, *args, **kwargs)
        if dx is not None:
            tangent += func(dx, w, None, *args, **kwargs)
    return _dual(y, tangent)


def _batch_norm(
    recorded: tuple[Tensor, ...],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    (x, dx), (scale, dscale), (shift, dshift) = _split(input), _split(weight), _split(bias)
    if not training or dx is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    batch_norm, backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    if recorded:
        mean, rstd = recorded
        variance = rstd.pow(-2) - eps
        y = batch_norm(x, scale, shift, mean, variance, False, 0.0, eps)[0]
    else:
        y, mean, rstd = batch_norm(x, scale, shift, None, None, True, 0.0, eps)
        variance = rstd.pow(-2) - eps
    count = x.numel() // x.shape[1]
    _, product_sum, sum_ = backward(dx, x, scale, None, None, mean, rstd, True, eps, [False, True, True])
    slope = rstd if scale is None else scale * rstd
    new_scale, new_shift = -slope * product_sum / count, -slope * sum_ / count
    if dscale is not None:
        new_scale += dscale
    if dshift is not None:
        new_shift += dshift
    tangent = batch_norm(x, new_scale, new_shift, mean, variance, False, 0.0, eps)[0]
    # In place, in the dtype of the activations, which autocast may have lowered.
    tangent.addcmul_(dx, slope.to(dx.dtype).view(1, -1, *[1] * (x.dim() - 2)))
    return _dual(y, tangent)


def _check_tangents(func: object, inputs: tuple[Any, ...], output: Any) -> None:
    outputs = output if isinstance(output, tuple | list) else (output,)
    real = [value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()]
    if real and _carry_tangents(inputs) and not _carry_tangents(real):
        raise NoForwardRuleError(f"{func} has no forward-mode derivative")


def _carry_tangents(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and fwd.unpack_dual(value).tangent is not None for value in values)
