"""The library of build.build_host(): the CUDA operators' own host code on a stand-in for CUDA, host.cpp."""

import ctypes
import gc
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from simulator import build
from simulator.helpers import arithmetic
from torch import Tensor

from dadl_ext import _library
from tools.architectures import ARCHITECTURES, MOST_THREADS, Architecture, Kernel, Launch
from tools.static_table import kernels

OPERATORS = [
    "rank",
    "rank_backward",
    "ranksim_select",
    "ranksim_loss",
    "ranksim_rows",
    "ranksim_rows_backward",
    "rank_n_contrast",
    "rank_n_contrast_backward",
    "similarity_logsumexp",
    "similarity_logsumexp_key_gradient",
    "pseudo_group_contrast",
    "disagreement",
    "dropout_linear",
    "dropout_linear_backward",
    "dropout_disagreement",
]
ALLOCATION, LAUNCH, MEMSET, LIBRARY = range(4)  # of host.cpp
LAUNCH_RULE = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), ctypes.c_int64, ctypes.c_int64
)
ATTRIBUTE_RULE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
RESIDENT_RULE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Host:
    """What host.cpp lets the tests see and do."""

    def __init__(self) -> None:
        path = build.build_host()
        self.library = ctypes.CDLL(str(path))
        self.library.host_take_complaints.restype = ctypes.c_char_p
        for name in ("calls", "allocated"):
            getattr(self.library, f"host_{name}").restype = ctypes.c_int64
        self.library.host_put.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.library.host_fail.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.architecture = ARCHITECTURES["8.6"]
        self.launches: list[tuple[str, Launch]] = []
        self.refusals: list[str] = []
        self.table = {each.code: kernels(each.code) for each in ARCHITECTURES.values()}
        self.names = self._names(path)
        # The library keeps the pointers alone.
        self._rules = (
            LAUNCH_RULE(self._answering(self._refuse_launch)),
            ATTRIBUTE_RULE(self._answering(self._refuse_attribute)),
            RESIDENT_RULE(self._answering(self._resident)),
        )
        self.library.host_set_rules(*self._rules)
        self._definitions = torch.library.Library("dadl_simulated", "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.dadl, name).default._schema)
            self._definitions.define(schema.removeprefix("dadl::"))
        _library.raise_out_of_memory([getattr(torch.ops.dadl_simulated, name) for name in OPERATORS])

    def __getattr__(self, name: str) -> Callable[..., int]:
        return getattr(self.library, f"host_{name}")

    @staticmethod
    def _names(path: Path) -> dict[int, str]:
        """Kernels by their place in the library, by the names that nvcc gives them."""
        symbols = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
        found = {}
        for place, name, length, rest in re.findall(
            r"^([0-9a-f]+) [tTwW] (_ZN4dadlL?(\d+)(\w+))$", symbols, re.MULTILINE
        ):
            if rest[: int(length)].endswith("_kernel"):
                found[int(place, 16)] = name.replace("_ZN4dadlL", "_ZN4dadl")
        return found

    def needs(self, name: str) -> Kernel:
        """Of a kernel: what the recorded table says, or where it has none yet, nothing but the block's limit."""
        return self.table[self.architecture.code].get(name, Kernel(0, 0, MOST_THREADS))

    def _answering(self, rule: Callable[..., int]) -> Callable[..., int]:
        """A rule whose answer is one more, and 0 where it fails."""

        def answer(*values) -> int:
            try:
                return 1 + rule(*values)
            except Exception as error:  # there is nobody to raise it to
                self.refusals.append(repr(error))
                return 0

        return answer

    def _refusal(self, name: str, refused: tuple[int, str] | None) -> int:
        if refused is None:
            return 0
        self.refusals.append(f"{self.architecture.name}: {name}: {refused[1]}")
        return refused[0]

    def _refuse_launch(self, place: int, sizes, shared: int, allowed: int) -> int:
        name = self.names[place]
        launch = Launch(tuple(sizes[:3]), tuple(sizes[3:6]), shared, None if allowed < 0 else allowed)
        self.launches.append((name, launch))
        return self._refusal(name, self.architecture.refused(self.needs(name), launch))

    def _refuse_attribute(self, place: int, shared: int) -> int:
        name = self.names[place]
        return self._refusal(name, self.architecture.refused_attribute(self.needs(name), shared))

    def _resident(self, place: int, threads: int, shared: int) -> int:
        return self.architecture.resident(self.needs(self.names[place]), threads, shared)

    def become(self, architecture: Architecture) -> None:
        """A GPU of this architecture."""
        self.architecture = architecture
        self.set_capability(*architecture.capability, architecture.shared)

    def reset(self) -> None:
        """As after the start: a GPU of 8.6."""
        self.library.host_reset()
        self.become(ARCHITECTURES["8.6"])
        self.launches.clear()
        self.refusals.clear()

    def complaints(self) -> list[str]:
        return sorted({*self.library.host_take_complaints().decode().splitlines()})

    def assert_clean(self, held: int) -> None:
        """Nothing to complain of, the device as it was, no error left for someone else, and memory returned but these
        bytes."""
        gc.collect()
        assert self.complaints() == []
        assert self.current_device() == 0
        assert self.pending_error() == 0
        assert self.allocated() == held


def arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple:
    """A batch that takes buffers, memsets and products, or sorts, wherever the operator has them."""
    torch.manual_seed(0)
    n, d = 40, 6
    features, labels = torch.randn(n, d).to(dtype), torch.randint(0, 25, (n,))
    wide = arithmetic(dtype)
    priority = torch.rand(n, dtype=torch.float64)
    subset = torch.ops.dadl.ranksim_select(labels, priority)
    x = torch.randn(2, 4200).to(dtype)
    key, grad = torch.randn(70, d).to(dtype), torch.randn(n, dtype=wide)
    weight, bias, seed = torch.randn(9, d).to(dtype), torch.randn(9).to(dtype), torch.tensor(3)
    mask = torch.rand(70) < 0.5
    lse, _ = torch.ops.dadl.similarity_logsumexp(features, key, mask, 0.3, False, False)
    return {
        "rank": (x, 2.0),
        "rank_backward": (torch.randn(x.shape, dtype=wide), x, torch.ops.dadl.rank(x, 2.0), 2.0),
        "ranksim_select": (labels, priority),
        "ranksim_loss": (features, labels, priority, None, 2.0, 1.0, True, True),
        "ranksim_rows": (features, labels, *subset, None, 2.0, 1.0),
        "ranksim_rows_backward": (grad, features, labels, *subset, None, 2.0, 1.0),
        "rank_n_contrast": (features, torch.randn(n, 2).to(dtype), 2.0, 1, 0, 1, True),
        "rank_n_contrast_backward": (grad, features, labels, 2.0, 0, 0),
        "similarity_logsumexp": (features, key, mask, 0.3, False, True),
        "similarity_logsumexp_key_gradient": (grad, features, key, mask, lse, 0.3, False),
        "pseudo_group_contrast": (
            *(features, torch.randn(n, d).to(dtype), torch.randn(25, 4, d).to(dtype), labels),
            *(None, 0.5, 0, -1, 1, True),
        ),
        "disagreement": (torch.randn(3, 2, 1, 5000).to(dtype), 1, True, True),
        "dropout_linear": (features, weight, bias, seed, 0.5, 3),
        "dropout_linear_backward": (torch.randn(3, n, 9).to(dtype), features, weight, seed, 0.5, True, True),
        "dropout_disagreement": (features, weight[:3], bias[:3], seed, 0.5, 3, 1, True, False, True),
    }[name]


OPTIONAL = {
    "ranksim_loss": (3, torch.randn(25, 25)),
    "ranksim_rows": (5, torch.randn(25, 25)),
    "ranksim_rows_backward": (6, torch.randn(25, 25)),
    "pseudo_group_contrast": (4, torch.randint(0, 5, (25,))),
}
"""Tensors that arguments() leaves out, and their places."""


def arguments_with(name: str, tensor: Tensor) -> tuple:
    """The same batch with another tensor in the place of the optional one."""
    values, (place, _) = arguments(name), OPTIONAL[name]
    return *values[:place], tensor, *values[place + 1 :]


def call(name: str, values: tuple) -> list[Tensor]:
    result = getattr(torch.ops.dadl_simulated, name)(*values)
    return [result] if isinstance(result, Tensor) else [*result]
