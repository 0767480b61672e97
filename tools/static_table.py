"""What the compiler made of the CUDA kernels: registers, memory, occupancy and the instructions of the hot loops.

    python -m tools.static_table     (make static)

It compiles every kernel for every architecture of the wheel and writes, in benchmarks/results/static, kernels.json, by
which the tests judge launches, and the tables of docs/kernels.md.
"""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.architectures import ARCHITECTURES, Kernel
from tools.machine_code import compiled, rows, tool

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "static"
TABLE = FOLDER / "kernels.json"
MEASURED = ROOT / "benchmarks" / "results" / "nvidia-h200" / "kernels-cuda.json"
GPUS = ("8.0", "8.6", "9.0", "10.0", "12.0")  # of the columns of occupancies
CODES = {ARCHITECTURES[gpu].code: gpu for gpu in GPUS if gpu != "8.6"}  # the machine codes, with the first GPU of each

# The H100 in its SXM form: NVIDIA's data sheet, and what mma.sync reaches of the tensor cores' rate.
MULTIPROCESSORS, CLOCK, TENSOR_RATE, MMA_SYNC_RATE = 132, 1.83e9, 989.4e12, 660e12
SCHEDULERS, MUFU_LANES, MATRIX_CYCLES = 4, 16, 4  # of a multiprocessor; of ldmatrix, at 128 bytes a cycle
EXPONENTIAL_BYTES = 32768  # kExponentialBytes of csrc/cuda/disagreement_kernels.cuh
QUERIES, KEYS, FEATURES = 1024, 2048 * 32, 128

Row = dict[str, Any]


def kernels(code: str) -> dict[str, Kernel]:
    """What the recorded table says of each kernel's machine code for an architecture."""
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    return {
        name: Kernel(row[code]["registers"], row[code]["shared"], row[code]["threads"])
        for name, row in recorded.items()
    }


@dataclass(frozen=True)
class Tiles:
    """What a kernel streams past the tensor cores."""

    way: str
    rows: int
    """Owned by a block."""
    columns: int
    """Streamed rows of a tile."""
    features: int

    @property
    def parts(self) -> int:
        """Numbers of 16 bits for each feature."""
        return 2 if self.way == "split" else 1

    @property
    def operations(self) -> int:
        """Of a block's two products for one tile, on the tensor cores."""
        return 4 * self.rows * self.columns * self.features * (3 if self.way == "split" else 1)

    @property
    def rate(self) -> float:
        return TENSOR_RATE if self.way == "hopper" else MMA_SYNC_RATE

    @property
    def shared(self) -> int:
        """Bytes of a block: rows, two tiles, and the terms of their logits."""
        terms = 2 * self.columns * 2 + (2 * self.columns + self.rows if self.way == "split" else 0)
        used = (self.rows + 2 * self.columns) * self.features * 2 * self.parts + terms * 4
        return -(-used // 1024) * 1024 if self.way == "hopper" else used


def tiles_of(name: str) -> Tiles | None:
    match = re.search(r"contrast_(flash|hopper|split)_kernelI(?:NS_\w+?E)?Li(\d+)E", name)
    if match is None:
        return None
    way, features = match[1], int(match[2])
    if way == "split":
        return Tiles(way, 64, 4096 // features, features)
    return Tiles(way, 128 if way == "hopper" or features <= 128 else 64, 64, features)


def dynamic_shared(name: str) -> int:
    """The most bytes that the host code gives to a kernel; a test compares them with its launches."""
    if re.search(r"disagreement_classes_kernelILi\d+ELb1E", name):
        return EXPONENTIAL_BYTES
    tiles = tiles_of(name)
    return tiles.shared if tiles else 0


# ---- the tables -----------------------------------------------------------------------------------------------------


def demangled(names: Sequence[str]) -> dict[str, str]:
    """The kernels as a reader knows them."""
    output = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout.splitlines()
    plain = [re.sub(r"^void |dadl::|_kernel|\(int\)", "", line) for line in output]
    return {name: line[: line.rfind("(")] for name, line in zip(names, plain, strict=True)}


def occupancy(name: str, row: Row, gpu: str) -> float:
    kernel = Kernel(row["registers"], row["shared"], row["threads"])
    return 100 * ARCHITECTURES[gpu].occupancy(kernel, kernel.threads, dynamic_shared(name))


def loop_columns(loop: dict[str, int]) -> list[object]:
    def both(kind: str) -> str:
        return f"{loop.get(f'{kind} load', 0)} / {loop.get(f'{kind} store', 0)}"

    single = ("tensor", "ldmatrix", "cp.async", "barrier", "MUFU", "shuffle", "FP32", "FP64", "integer")
    counts: list[object] = [loop.get(kind, 0) for kind in single]
    return [sum(loop.values()), *counts, both("shared"), both("global")]


LOOP_TITLES = ["loop", "tensor", "ldmatrix", "cp.async", "barriers", "MUFU", "shuffles", "FP32", "FP64", "integer"]
LOOP_TITLES += ["shared load / store", "global load / store"]


def markdown(titles: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    texts = [titles, ["---"] * len(titles), *([str(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)


def streaming(recorded: dict[str, dict[str, Row]]) -> Iterator[tuple[str, dict[str, Row], Tiles]]:
    """The kernels on tensor cores, one of each pair for both half precisions."""
    for name, row in recorded.items():
        tiles = tiles_of(name)
        if tiles and "4HalfE" not in name:
            yield name, row, tiles


def tile_table(recorded: dict[str, dict[str, Row]], short: dict[str, str]) -> Iterator[list[object]]:
    for name, row, tiles in streaming(recorded):
        for code in CODES:
            each = row[code]
            if not each["tensor operations"]:
                continue  # the body is for another architecture
            shared = (each["shared"] + dynamic_shared(name)) / 1024
            yield [
                f"`{short[name]}`",
                code,
                each["registers"],
                each["spills"],
                f"{shared:.0f}",
                f"{occupancy(name, each, CODES[code]):.0f}",
                *loop_columns(each["loop"]),
                f"{tiles.columns * tiles.features * 2 * tiles.parts / 1024:.0f}",
                f"{tiles.operations / 1e6:.2f}",
                f"{passes(tiles, each):g}",
            ]


def passes(tiles: Tiles, row: Row) -> float:
    """How often a block's hot loop runs for one tile."""
    # An instruction is a warp's, or on Hopper a warp group's.
    of_loop = int(row["tensor operations"]) * row["threads"] // (128 if tiles.way == "hopper" else 32)
    return tiles.operations / of_loop


def families(recorded: dict[str, dict[str, Row]], short: dict[str, str]) -> Iterator[list[object]]:
    """Of all kernels of one template, the one with the most registers."""
    names: dict[str, list[str]] = {}
    for name in recorded:
        names.setdefault(short[name].split("<")[0], []).append(name)

    def listed(numbers: Iterable[float]) -> str:
        texts = [f"{number:.0f}" for number in numbers]
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    for family in sorted(names):
        name = max(names[family], key=lambda each: (recorded[each]["sm_90a"]["registers"], each))
        row = recorded[name]
        # Of a kernel for one architecture the others have but the name.
        codes = [code for code in CODES if "hopper" not in name or code == "sm_90a"]
        spills = max(recorded[each][code]["spills"] for each in names[family] for code in codes)
        yield [
            f"`{short[name]}`",
            len(names[family]),
            listed(row[code]["registers"] for code in codes),
            spills,
            f"{(row['sm_90a']['shared'] + dynamic_shared(name)) / 1024:.1f}",
            listed(
                occupancy(name, row[ARCHITECTURES[gpu].code], gpu) for gpu in GPUS if ARCHITECTURES[gpu].code in codes
            ),
            *loop_columns(row["sm_90a"]["loop"]),
        ]


def measured() -> dict[str, Any]:
    """What benchmarks/kernels.py found on the H200."""
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def predictions(recorded: dict[str, dict[str, Row]], short: dict[str, str]) -> Iterator[list[object]]:
    """The streaming kernels at QUERIES by KEYS on an H100, whose busiest multiprocessor decides."""
    for name, row, tiles in streaming(recorded):
        if tiles.features != FEATURES:
            continue
        each = row["sm_90a"]
        kernel = Kernel(each["registers"], each["shared"], each["threads"])
        resident = ARCHITECTURES["9.0"].resident(kernel, kernel.threads, tiles.shared)
        row_tiles, all_tiles = -(-QUERIES // tiles.rows), KEYS // tiles.columns
        of_split = -(-all_tiles // max(resident * MULTIPROCESSORS // row_tiles, 1))
        blocks = row_tiles * -(-all_tiles // of_split)
        busiest = -(-blocks // MULTIPROCESSORS) * of_split
        warps, loop = passes(tiles, each) * kernel.threads / 32, each["loop"]
        cycles = (
            tiles.operations / (tiles.rate / MULTIPROCESSORS / CLOCK),
            warps * sum(loop.values()) / SCHEDULERS,
            warps * loop.get("MUFU", 0) * 32 / MUFU_LANES,
            warps * loop.get("ldmatrix", 0) * MATRIX_CYCLES,
        )
        times = [each * busiest / CLOCK * 1e6 for each in cycles]
        operations = tiles.operations // tiles.rows // tiles.columns * QUERIES * KEYS
        seconds = measured()["seconds"][f"pseudo_group_contrast bf16 {QUERIES}, {KEYS // 32}×32, {FEATURES}"]["dadl"]

        def share(microseconds: float, rate: float = tiles.rate, operations: float = operations) -> str:
            return f"{100 * operations / (microseconds * 1e-6) / rate:.0f}"

        yield [
            f"`{short[name]}`",
            *(f"{time:.0f}" for time in (*times, max(times), sum(times))),
            f"{tiles.rate / 1e12:.0f}",
            f"{share(max(times))}–{share(sum(times))}",
            *((f"{seconds * 1e6:.0f}", share(seconds * 1e6)) if tiles.way == "hopper" else ("", "")),
        ]


NOTE = (
    "Of each template the instance with the most registers on sm_90a; `loop` counts every instruction of its hot loop "
    "there, both sides of its branches included. Registers are those of sm_80, sm_90a, sm_100 and sm_120, where they "
    "differ; occupancy is the share of its warps, in %, that a multiprocessor of capability 8.0, 8.6, 9.0, 10.0 and "
    "12.0 holds; spills are bytes of the stack, at most."
)


def page(release: str, recorded: dict[str, dict[str, Row]]) -> str:
    short = demangled(list(recorded))
    head = ["kernel", "instances", "registers", "spills", "shared KiB", "occupancy"]
    tile_head = ["kernel", "code", "registers", "spills", "shared KiB", "occupancy"]
    units = ["tensor cores µs", "issue µs", "MUFU µs", "ldmatrix µs"]
    float32 = measured()["product"]["float32"]
    times = ["kernel", *units, "largest µs", "sum µs", "peak TFLOP/s", "% of it"]
    return "\n\n".join(
        [
            "# What the compiler made of the kernels",
            f"nvcc {release}. Tensor cores, for bfloat16 and, in split products, for float32; of a tile a block "
            "reads the KiB and computes the MFLOP:",
            markdown([*tile_head, *LOOP_TITLES, "tile KiB", "tile MFLOP", "loops / tile"], tile_table(recorded, short)),
            f"Predicted on an H100 for {QUERIES} queries, {KEYS} keys and {FEATURES} features, from these counts: "
            "the time that each unit is busy, their largest where they overlap wholly and their sum where they do not. "
            "Measured is the whole operator on an H200, the combining launch included. `contrast_split` computes three "
            f"products for one; in float32, at the {float32:.0f} TFLOP/s of that H200, the products alone take "
            f"{4 * QUERIES * KEYS * FEATURES / float32 / 1e6:.0f} µs:",
            markdown([*times, "measured µs", "% of it"], predictions(recorded, short)),
            NOTE,
            markdown([*head, *LOOP_TITLES], families(recorded, short)),
        ]
    )


def main() -> None:
    objects = compiled()
    version = subprocess.run([tool("nvcc"), "--version"], check=True, capture_output=True, text=True).stdout
    (release,) = re.findall(r"V([\d.]+)", version)
    recorded = rows(objects)
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in recorded.items()]
    TABLE.write_text(f'{{"nvcc": "{release}", "kernels": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    (FOLDER / "kernels.md").write_text(page(release, recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
