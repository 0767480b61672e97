"""Launches fit on every GPU that the wheel is built for, and the stand-in refuses those that a GPU would refuse."""

import ctypes
import dataclasses
import functools
import mmap
from collections.abc import Iterator

import pytest
import torch
from simulator.helpers import FLAVOUR, FLOATING
from simulator.host import OPERATORS, Host, arguments, call
from torch import Tensor

from tools.architectures import ARCHITECTURES, Architecture, Kernel
from tools.static_table import dynamic_shared

pytestmark = pytest.mark.skipif(FLAVOUR != "plain", reason="once is enough")

INVALID_VALUE, INVALID_CONFIGURATION, OUT_OF_RESOURCES = 1, 9, 701  # cudaError_t
CONTROL = "_ZN4dadl14control_kernelEv"
KIBIBYTE = 1 << 10
MAP_NORESERVE = 0x4000  # mmap has no name for it before Python 3.13

ordinary = functools.cache(arguments)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda each: each.name)


def launched(host: Host, needs: Kernel, grid=(1, 1, 1), block=(32, 1, 1), shared: int = 0, allowed: int = -1) -> int:
    """The error of a launch of a kernel with these needs."""
    table = host.table[host.architecture.code]
    table[CONTROL] = needs
    try:
        return host.launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_size_t(shared), allowed)
    finally:
        del table[CONTROL]


# ---- each limit is refused, and what is just within it is not ----


@every_architecture
def test_limits_are_those_of_the_architecture(host: Host, architecture: Architecture) -> None:
    host.become(architecture)
    host.run_dry()
    small = Kernel(registers=32, shared=0, threads=1024)
    opt_in = architecture.shared - KIBIBYTE
    static = dataclasses.replace(small, shared=KIBIBYTE)
    within = [
        (small, {"block": (1024, 1, 1)}),
        (small, {"block": (16, 1, 64)}),
        (small, {"grid": (2**31 - 1, 65535, 65535)}),
        (dataclasses.replace(small, threads=256), {"block": (256, 1, 1)}),
        (dataclasses.replace(small, registers=64), {"block": (1024, 1, 1)}),
        (dataclasses.replace(small, registers=255), {"block": (256, 1, 1)}),
        (small, {"shared": 48 * KIBIBYTE}),
        (static, {"shared": 47 * KIBIBYTE}),
        (small, {"shared": opt_in, "allowed": opt_in}),
        (static, {"shared": opt_in - KIBIBYTE, "allowed": opt_in - KIBIBYTE}),
    ]
    beyond = [
        (small, {"block": (1025, 1, 1)}, INVALID_CONFIGURATION),
        (small, {"block": (32, 33, 1)}, INVALID_CONFIGURATION),
        (small, {"block": (1, 1, 65)}, INVALID_CONFIGURATION),
        (small, {"block": (0, 1, 1)}, INVALID_CONFIGURATION),
        (small, {"grid": (2**31, 1, 1)}, INVALID_CONFIGURATION),
        (small, {"grid": (1, 65536, 1)}, INVALID_CONFIGURATION),
        (small, {"grid": (1, 1, 65536)}, INVALID_CONFIGURATION),
        (small, {"grid": (0, 1, 1)}, INVALID_CONFIGURATION),
        (dataclasses.replace(small, threads=256), {"block": (257, 1, 1)}, INVALID_VALUE),
        (dataclasses.replace(small, registers=65), {"block": (1024, 1, 1)}, OUT_OF_RESOURCES),
        (dataclasses.replace(small, registers=255), {"block": (288, 1, 1)}, OUT_OF_RESOURCES),
        (small, {"shared": 48 * KIBIBYTE + 1}, INVALID_VALUE),
        (static, {"shared": 48 * KIBIBYTE}, INVALID_VALUE),
        (small, {"shared": 64 * KIBIBYTE, "allowed": 60 * KIBIBYTE}, INVALID_VALUE),
        (small, {"allowed": opt_in + 1}, INVALID_VALUE),
        (static, {"allowed": opt_in}, INVALID_VALUE),
    ]
    for needs, launch in within:
        assert launched(host, needs, **launch) == 0, (needs, launch, host.refusals)
        host.reset()
        host.become(architecture)
        host.run_dry()
    assert not host.refusals
    for needs, launch, error in beyond:
        assert launched(host, needs, **launch) == error, (needs, launch)
        host.reset()
        host.become(architecture)
        host.run_dry()


def test_a_multiprocessor_holds_what_its_memory_and_registers_allow() -> None:
    """As NVIDIA's calculator says, with which the slow tests compare all architectures."""
    kernel = Kernel(registers=128, shared=0, threads=128)
    assert ARCHITECTURES["9.0"].resident(kernel, 128, 0) == 4
    assert ARCHITECTURES["8.0"].resident(kernel, 128, 80 * KIBIBYTE) == 2
    assert ARCHITECTURES["8.6"].resident(kernel, 128, 80 * KIBIBYTE) == 1
    assert ARCHITECTURES["8.6"].resident(Kernel(16, 0, 1024), 1024, 0) == 1
    assert ARCHITECTURES["8.0"].occupancy(kernel, 128, 0) == 0.25


def test_a_rule_that_fails_is_not_silence(host: Host) -> None:
    """An exception in the test's own rules answers 0, which the stand-in complains of."""
    host.become(dataclasses.replace(ARCHITECTURES["8.6"], code="unknown"))
    host.run_dry()
    assert host.launch((ctypes.c_uint * 3)(1, 1, 1), (ctypes.c_uint * 3)(32, 1, 1), ctypes.c_size_t(0), -1) != 0
    assert host.refusals == ["KeyError('unknown')"]
    assert host.complaints() == ["the test's rules failed"]


# ---- every launch fits ----


def virtual(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros of any size, of which only what is read takes memory."""
    size = torch.Size(shape).numel() * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def extreme(name: str) -> Iterator[tuple]:
    """Arguments as large as a GPU of today holds, or larger."""
    half, seed, count = torch.bfloat16, torch.tensor(3), torch.tensor(1)
    rows = ((2**33 - 4, 1), (2**20, 1024), (2**18, 4096), (70_000, 5000), (50, 2**24))
    n, d = 20_000, 64
    long = virtual(n, dtype=torch.int64)
    subset = long, long, count
    if name == "rank":
        for shape in rows:
            yield virtual(*shape, dtype=torch.float16), 2.0
        yield virtual(2**20, 1024, dtype=torch.float64), 2.0
    elif name == "rank_backward":
        for shape in rows:
            yield virtual(*shape), virtual(*shape, dtype=torch.float16), virtual(*shape), 2.0
    elif name == "ranksim_select":
        for labels in (virtual(2**20), virtual(n, 8)):
            yield labels, virtual(len(labels), dtype=torch.float64)
    elif name == "ranksim_loss":
        yield virtual(n, d), virtual(n), virtual(n, dtype=torch.float64), None, 2.0, 1.0, True, True
        matrix = virtual(n, n)
        yield virtual(n, d), virtual(n, 2), virtual(n, dtype=torch.float64), matrix, 2.0, 1.0, True, True
    elif name == "ranksim_rows":
        yield virtual(n, d), virtual(n), *subset, None, 2.0, 1.0
    elif name == "ranksim_rows_backward":
        yield virtual(n), virtual(n, d), virtual(n), *subset, None, 2.0, 1.0
    elif name == "rank_n_contrast":
        for labels in (virtual(n), virtual(n, 3)):
            for similarity in (0, 1):
                yield virtual(n, d), labels, 2.0, similarity, 0, 1, True
    elif name == "rank_n_contrast_backward":
        yield virtual(n), virtual(n, 2**16), virtual(n), 2.0, 0, 0
    elif name in ("similarity_logsumexp", "similarity_logsumexp_key_gradient"):
        sizes = ((2**20, 2**22, 256, half), (1, 2**30, 8, half), (2**30, 1, 64, half), (2**15, 2**18, 1024, half))
        sizes += tuple((*shape, torch.float32) for shape in ((2**20, 2**22, 256), (1, 2**30, 8), (2**15, 2**18, 1024)))
        for queries, keys, width, dtype in sizes:
            sides = virtual(queries, width, dtype=dtype), virtual(keys, width, dtype=dtype)
            for mask in (None, virtual(keys, dtype=torch.bool)):
                if name == "similarity_logsumexp":
                    yield *sides, mask, 0.3, False, True
                else:
                    yield virtual(queries), *sides, mask, virtual(queries), 0.3, False
    elif name == "pseudo_group_contrast":
        for classes, slots, width, dtype in ((10_000, 1024, 128, half), (1000, 32, 2048, torch.float32)):
            sides = (virtual(2**15, width, dtype=dtype) for _ in range(2))
            target = virtual(2**15, dtype=torch.int64)
            yield *sides, virtual(classes, slots, width, dtype=dtype), target, None, 0.5, 0, -1, 1, True
    elif name == "disagreement":
        for shape in (
            (8, 2**30, 1, 1),
            (4, 2**20, 1, 1000),
            (8, 2**20, 1, 1024),  # the most exponentials that are kept
            (3, 2**16, 50, 30_000),
            (2, 1, 1, 2**33),
            (64, 2**22, 1, 10),
        ):
            for measure in (0, 4):  # over elements, and over classes
                yield virtual(*shape, dtype=half), measure, True, True
    elif name == "dropout_linear":
        for outputs in (1, 8, 1000):
            yield virtual(2**20, 4096), virtual(outputs, 4096), virtual(outputs), seed, 0.5, 4
        yield virtual(2**30, 64), virtual(2, 64), None, seed, 0.5, 4
    elif name == "dropout_linear_backward":
        for outputs in (1, 4, 8, 1000):
            yield virtual(4, 2**20, outputs), virtual(2**20, 4096), virtual(outputs, 4096), seed, 0.5, True, True
    elif name == "dropout_disagreement":
        for outputs, samples in ((1, 16), (8, 16), (8, 130)):
            yield virtual(2**24, 512), virtual(outputs, 512), virtual(outputs), seed, 0.5, samples, 1, True, False, True


def assert_fits(host: Host, architecture: Architecture, name: str, values: tuple) -> None:
    """Every launch of a call, which is not computed."""
    host.reset()
    host.become(architecture)
    host.run_dry()
    result = call(name, values)
    assert host.refusals == []
    assert host.launches
    for kernel, launch in host.launches:
        assert kernel in host.table[architecture.code], f"{kernel} is not in the table: run `make static`"
        most = dynamic_shared(kernel)
        assert 0 < launch.shared <= most if "disagreement_classes" in kernel and most else launch.shared == most
    del result
    host.assert_clean(0)


@every_architecture
@pytest.mark.parametrize("name", OPERATORS)
def test_every_launch_fits(host: Host, name: str, architecture: Architecture) -> None:
    for dtype in FLOATING:
        assert_fits(host, architecture, name, ordinary(name, dtype))


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, marks=() if each.name in ("8.6", "9.0") else pytest.mark.slow, id=each.name)
        for each in ARCHITECTURES.values()
    ],
)
@pytest.mark.parametrize("name", OPERATORS)
def test_launches_of_extreme_sizes_fit(host: Host, name: str, architecture: Architecture) -> None:
    for values in extreme(name):
        assert_fits(host, architecture, name, values)


def test_the_table_has_every_kernel(library: Host) -> None:
    recorded = set(library.table["sm_80"])
    assert set(library.names.values()) - {CONTROL} == recorded, "run `make static`"


def test_tensors_that_are_too_large_are_refused(host: Host) -> None:
    """A grid is counted in 32 bits: these rows are 2^32 + 1 blocks, of which one would be left."""
    host.run_dry()
    x = virtual(2**34 + 4, 1, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"too large for one launch of a CUDA kernel.*split the batch"):
        torch.ops.dadl_simulated.rank(x, 2.0)


def test_products_that_are_too_large_are_refused(host: Host) -> None:
    """Sizes and strides of cuBLAS have 32 bits."""
    host.run_dry()
    with pytest.raises(RuntimeError, match=r"a product of matrices with 2\^31 rows or columns and more"):
        torch.ops.dadl_simulated.rank_n_contrast(virtual(2, 2**31), virtual(2), 2.0, 0, 0, 1, True)
