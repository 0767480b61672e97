"""Numbers that may change from step to step in a compiled program."""

from typing import Any

import torch

from .._operators import add_op_namespace_prefix, ops
from ._rules import reasons, register_no_derivative


def as_numbers(*values: Any) -> tuple[Any, ...]:
    """Floats as they are. While PyTorch compiles, as tensors ``[]`` on the CPU, whose values no guard checks.

    A compiled program holds the float arguments of an operator as constants: it would be compiled again for each value
    of a weight or a temperature that changes. Only a product keeps them symbolic. An exported program has constants.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return values
    return tuple(torch.ones((), dtype=torch.float64, device="cpu") * value for value in values)


def overload(operator: Any, number: Any) -> Any:
    """Of an operator, the overload that takes such numbers."""
    return operator.numbers if isinstance(number, torch.Tensor) else operator.default


_library = torch.library.Library(ops.name, "FRAGMENT")


def register_numbers(name: str) -> None:
    """Give an operator without a derivative its overload ``numbers``: tensors ``[]`` in the place of floats."""
    operator = getattr(ops, name).default
    schema = operator._schema
    floats = [isinstance(argument.type, torch.FloatType) for argument in schema.arguments]

    def with_floats(*arguments: Any) -> Any:
        return operator(*(v.item() if is_float else v for v, is_float in zip(arguments, floats, strict=True)))

    def fake(*arguments: Any) -> Any:
        return operator(*(1.0 if is_float else v for v, is_float in zip(arguments, floats, strict=True)))

    numbers = f"{name}.numbers"
    definition = str(schema).replace(" float ", " Tensor ").replace("(float ", "(Tensor ")
    _library.define(definition.replace(schema.name, numbers, 1))
    _library.impl(numbers, with_floats, "CompositeExplicitAutograd")
    torch.library.register_fake(add_op_namespace_prefix(numbers), fake)
    register_no_derivative(numbers, reasons[schema.name])
