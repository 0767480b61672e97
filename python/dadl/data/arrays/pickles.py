"""Plain values and arrays of bytes from a pickle, which is read and never executed."""

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NAMES = {
    ("multiarray", "_reconstruct"),
    ("numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
}
"""What may be named, by the last part of the module, which NumPy has renamed; it is not called."""


@dataclass
class ByteArray:
    """An array of uint8."""

    value: npt.NDArray[np.uint8]


class _BytesType:
    """Stands for the dtype uint8."""


def read_pickle(data: bytes) -> Any:
    """The value of a pickle: lists, tuples, dictionaries, texts, bytes, numbers, and a :class:`ByteArray` for an array.

    The keys of dictionaries are texts; bytes become texts there. Raises a ``ValueError`` for anything else, including
    arrays of another dtype or of fewer bytes than their shape has, and for damaged pickles.
    """
    try:
        return _Reader().read(data)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, struct.error) as error:
        raise ValueError(f"damaged: {type(error).__name__}: {error}") from None


class _Reader:
    """The stack of a pickle, the places marked there, and its memory."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack, memory = self._stack, self._memory
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memory[len(memory) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memory[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[len(stack) - count :])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _filled({}, items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _checked(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
            _filled(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            names = argument.split(" ") if name == "GLOBAL" else [stack.pop(), stack.pop()][::-1]
            stack.append(_named(*names))
        elif name == "REDUCE":
            arguments = _checked(stack.pop(), tuple)
            stack.append(_made(stack.pop(), arguments))
        elif name == "BUILD":
            state = _checked(stack.pop(), tuple)
            if not isinstance(stack[-1], _BytesType):  # whose state is a byte order, of which a byte has none
                _, shape, dtype, fortran, content = state
                _checked(stack[-1], ByteArray).value = _array(content, dtype, shape, "F" if fortran else "C")
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"{name} makes something other than arrays of bytes, lists and numbers")

    def _since_mark(self) -> list[Any]:
        place = self._marks.pop()
        items = self._stack[place:]
        del self._stack[place:]
        return items


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} is expected")
    return value


def _filled(dictionary: Any, items: list[Any]) -> dict[str, Any]:
    keys = [key.decode("latin-1") if isinstance(key, bytes) else _checked(key, str) for key in items[::2]]
    filled: dict[str, Any] = _checked(dictionary, dict)
    filled.update(zip(keys, items[1::2], strict=True))
    return filled


def _named(module: str, name: str) -> tuple[str, str]:
    named = (module.rpartition(".")[2], name)
    if named not in NAMES:
        raise ValueError(f"{module}.{name} is not an array")
    return named


def _made(named: Any, arguments: tuple[Any, ...]) -> Any:
    if named == ("multiarray", "_reconstruct"):
        return ByteArray(np.empty(0, dtype=np.uint8))  # filled by BUILD
    if named == ("numeric", "_frombuffer"):
        content, dtype, shape, order = arguments
        return ByteArray(_array(content, dtype, shape, order))
    if named == ("numpy", "dtype"):
        kind = arguments[0].decode("latin-1") if isinstance(arguments[0], bytes) else arguments[0]
        if kind not in ("u1", "|u1", "uint8"):
            raise ValueError(f"an array of {kind}; expected bytes, u1")
        return _BytesType()
    if named == ("_codecs", "encode") and arguments[1:] in (("latin1",), ("latin-1",)):
        return _checked(arguments[0], str).encode("latin-1")
    if named[1] == "bytes" and arguments == ():
        return b""
    raise ValueError(f"a call of {named} that makes no array")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[np.uint8]:
    _checked(dtype, _BytesType)
    content = content.encode("latin-1") if isinstance(content, str) else content
    sides = [_checked(side, int) for side in _checked(shape, tuple)]
    if not isinstance(content, bytes | bytearray) or min(sides, default=0) < 0 or math.prod(sides) != len(content):
        raise ValueError(f"an array of shape {sides} whose content has another length")
    if order not in ("C", "F"):
        raise ValueError(f"an array in an unknown order {order!r}")
    return np.frombuffer(content, dtype=np.uint8).reshape(sides, order=order)
