"""The table of what the compiler made of the kernels: fresh, and its arithmetic NVIDIA's."""

import itertools
import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from tools import machine_code, static_table
from tools.architectures import ARCHITECTURES, MOST_THREADS, REGISTERS, SHARED_OF_SYSTEM, SHARED_UNASKED, Kernel

HEADER = Path("/usr/local/cuda/include/cuda_occupancy.h")
RECORDED = json.loads(static_table.TABLE.read_text(encoding="utf-8"))
CALCULATOR = """
#include <cstddef>
#include <cstdio>
#include "cuda_occupancy.h"

int main() {
  int major, minor, threads, shared, registers, fixed, block, dynamic;
  while (scanf("%d %d %d %d %d %d %d %d", &major, &minor, &threads, &shared, &registers, &fixed, &block, &dynamic) ==
         8) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = MOST_THREADS;
    device.maxThreadsPerMultiprocessor = threads;
    device.regsPerBlock = device.regsPerMultiprocessor = REGISTERS;
    device.warpSize = 32;
    device.sharedMemPerBlock = SHARED_UNASKED;
    device.sharedMemPerMultiprocessor = shared;
    device.numSms = 1;
    device.sharedMemPerBlockOptin = shared - SHARED_OF_SYSTEM;
    device.reservedSharedMemPerBlock = SHARED_OF_SYSTEM;
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = MOST_THREADS;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = fixed;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared - SHARED_OF_SYSTEM - fixed;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state{};
    cudaOccResult result{};
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, block, dynamic);
    printf("%d\\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1 - (int)error);
  }
}
"""


@pytest.mark.skipif(not HEADER.exists(), reason="no CUDA toolkit in /usr/local/cuda")
def test_occupancy_is_that_of_nvidias_calculator(tmp_path: Path) -> None:
    numbers = {"MOST_THREADS": MOST_THREADS, "REGISTERS": REGISTERS, "SHARED_OF_SYSTEM": SHARED_OF_SYSTEM}
    numbers["SHARED_UNASKED"] = SHARED_UNASKED
    command = ["g++", "-w", f"-I{HEADER.parent}", *(f"-D{name}={number}" for name, number in numbers.items())]
    program = tmp_path / "occupancy"
    subprocess.run([*command, "-x", "c++", "-", "-o", program], input=CALCULATOR, text=True, check=True)
    draw = random.Random(0)
    blocks = [32, 33, 128, 256, 512, 1000, 1024]
    cases = [
        (
            architecture,
            Kernel(draw.choice([16, 24, 33, 64, 72, 127, 128, 168, 255]), fixed, MOST_THREADS),
            block,
            dynamic,
        )
        for architecture, block, fixed in itertools.product(ARCHITECTURES.values(), blocks, [0, 1000, 40960])
        for dynamic in (0, draw.randrange(48 << 10), architecture.shared_of_block - fixed, architecture.shared)
    ]
    lines = [
        f"{each.capability[0]} {each.capability[1]} {each.threads} {each.shared} {kernel.registers} {kernel.shared} "
        f"{block} {dynamic}"
        for each, kernel, block, dynamic in cases
    ]
    told = subprocess.run([program], input="\n".join(lines), text=True, capture_output=True, check=True).stdout.split()
    ours = [each.resident(kernel, block, dynamic) for each, kernel, block, dynamic in cases]
    assert len(set(ours)) > 10
    wrong = [(line, theirs, mine) for line, theirs, mine in zip(lines, told, ours, strict=True) if int(theirs) != mine]
    assert not wrong


def test_the_hot_loop_is_the_smallest_with_the_work() -> None:
    def line(place: int, instruction: str) -> str:
        return f"        /*{place:04x}*/                   {instruction} ;      /* 0x0 */\n"

    texts = ["LDG.E R1, [R2]", "HMMA.16816.F32 R1, R2, R3, R4", "BAR.SYNC.DEFER_BLOCKING 0x0", "MUFU.EX2 R1, R2"]
    code = "".join(line(16 * i, text) for i, text in enumerate(texts))
    code += line(64, "@P0 BRA 0x10") + line(80, "IADD3 R1, R2, R3, RZ") + line(96, "@!P1 BRA 0x0")
    code += line(112, "EXIT") + line(128, "BRA 0x80")
    loop = machine_code.hot_loop(code)
    assert [machine_code.kind(opcode) for opcode in loop] == ["tensor", "barrier", "MUFU", "jump"]
    assert machine_code.tensor_operations(loop) == 2 * 16 * 8 * 16
    assert machine_code.hot_loop(line(0, "FADD R1, R2, R3")) == ["FADD"]


def test_instructions_have_their_kind() -> None:
    kinds = {
        "HGMMA.64x128x16.F32.BF16": "tensor",
        "LDSM.16.MT88.4": "ldmatrix",
        "LDGSTS.E.BYPASS.LTC128B.128.ZFILL": "cp.async",
        "LDGDEPBAR": "barrier",
        "WARPGROUP.DEPBAR.LE": "barrier",
        "LDS.128": "shared load",
        "STS": "shared store",
        "LDG.E.128.CONSTANT": "global load",
        "STG.E": "global store",
        "RED.E.OR.STRONG.GPU": "global store",
        "LDL": "local",
        "SHFL.BFLY": "shuffle",
        "BRA": "jump",
        "F2FP.BF16.F32.PACK_AB": "convert",
        "DADD": "FP64",
        "FMNMX": "FP32",
        "IMAD.MOV.U32": "integer",
        "ISETP.GE.AND": "integer",
        "LDC": "integer",
    }
    assert {opcode: machine_code.kind(opcode) for opcode in kinds} == kinds


def test_the_page_is_that_of_the_table() -> None:
    text = static_table.page(RECORDED["nvcc"], RECORDED["kernels"])
    assert (static_table.FOLDER / "kernels.md").read_text(encoding="utf-8") == f"{text}\n", "run `make static`"


def test_loops_divide_their_tile() -> None:
    """The products of a hot loop, counted in the machine code, are a whole part of those of the source's tile."""
    found = 0
    for name, row in RECORDED["kernels"].items():
        for each in row.values():
            tiles = static_table.tiles_of(name)
            if tiles and each["tensor operations"]:
                passes = static_table.passes(tiles, each)
                assert passes == int(passes) >= 1
                found += 1
    # Of both dtypes flash for three widths and four codes, hopper for three widths; split for three and four.
    assert found == 2 * (3 * 4 + 3) + 3 * 4


@pytest.mark.slow
def test_the_table_is_what_the_compiler_makes() -> None:
    try:
        nvcc, *_ = (machine_code.tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm"))
    except SystemExit as error:
        pytest.skip(str(error))
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    if re.findall(r"V([\d.]+)", version) != [RECORDED["nvcc"]]:
        pytest.skip(f"the table was made by nvcc {RECORDED['nvcc']}")
    objects = machine_code.compiled()
    (contrast,) = (path for path in objects if path.stem == "contrast")
    made = machine_code.rows([contrast])
    assert made
    assert {name: RECORDED["kernels"].get(name) for name in made} == made, "run `make static`"
