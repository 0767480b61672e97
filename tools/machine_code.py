"""Takes the machine code of the CUDA kernels apart: what each needs, and the instructions of its hot loop.

It needs nvcc, cuobjdump and nvdisasm (`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`), and no GPU.

The hot loop is the smallest loop with at least half of what the kernel computes in loops: its instructions for the
tensor cores where it has any, else all but jumps. A kernel without a loop is given whole.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "csrc"))
import graph  # noqa: E402
import libraries  # noqa: E402

# The first that fits an instruction's name.
KINDS = (
    ("tensor", r"HMMA|HGMMA|IMMA|DMMA|QGMMA|UTC"),
    ("ldmatrix", r"LDSM"),
    ("cp.async", r"LDGSTS|UTMA"),
    ("barrier", r"BAR|WARPSYNC|WARPGROUP|DEPBAR|LDGDEPBAR|SYNCS|WARPGROUPDEPBAR|MEMBAR|FENCE"),
    ("MUFU", r"MUFU"),
    ("shuffle", r"SHFL|VOTE|REDUX|MATCH"),
    ("shared load", r"LDS"),
    ("shared store", r"STS"),
    ("global load", r"LDG|LD\b|ULDG"),
    ("global store", r"STG|ST\b|ATOM|RED"),
    ("local", r"LDL|STL"),
    ("jump", r"BRA|BRX|BSSY|BSYNC|CALL|RET|EXIT|JMP|BREAK|YIELD|NOP|BPT|WARPSYNC|UBR"),
    ("convert", r"F2|I2|FRND"),
    ("FP64", r"D"),
    ("FP32", r"F|H"),
    ("integer", r"."),
)
WEIGHTLESS = {"jump"}
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?\s*(\w[\w.]*)([^;]*);", re.MULTILINE)


def tool(name: str) -> str:
    """A tool of the CUDA toolkit: of the path, of the toolkit, or of NVIDIA's Python packages."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [os.environ.get("PATH", ""), f"{home}/bin", *(str(path) for path in sorted(packages.glob("cu*/bin")))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        package = "the CUDA toolkit" if name == "nvcc" else f"`pip install nvidia-cuda-{name}`"
        raise SystemExit(f"no {name} on PATH, in {home}/bin or in this environment; {package} brings it")
    return found


def kind(opcode: str) -> str:
    """Of KINDS."""
    return next(name for name, pattern in KINDS if re.match(pattern, opcode))


def compiled() -> list[Path]:
    """The objects of the CUDA library, up to date."""
    paths = cpp_extension.include_paths(), cpp_extension.library_paths()
    library = libraries.cuda_library(tool("nvcc"), libraries.DEFAULT_ARCHITECTURES, *paths)
    folder = graph.build(library, ROOT / "build" / "nvcc").parent
    return [folder / graph.object_of(part) for part in library.objects if part.source.suffix == ".cu"]


def resources(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, bytes of spills and bytes of static shared memory by kernel and architecture, of ptxas's report."""
    found = {}
    for text in log.split("Compiling entry function ")[1:]:
        name, code = re.findall(r"'(\w+)'", text)[:2]
        numbers = {
            "registers": r"Used (\d+) registers",
            "spills": r"(\d+) bytes stack frame",
            "shared": r"(\d+) bytes smem",
        }
        matches = {key: re.search(pattern, text) for key, pattern in numbers.items()}
        found[name, code] = {key: int(match[1]) if match else 0 for key, match in matches.items()}
    return found


def thread_limits(cubin: Path) -> dict[str, int]:
    """The most threads of a block by kernel: EIATTR_MAX_THREADS of its section .nv.info."""
    found = {}
    with cubin.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if not section.name.startswith(".nv.info."):
                continue
            content, at, threads = section.data(), 0, 1024
            while at < len(content):
                form, attribute = content[at], content[at + 1]
                size = int.from_bytes(content[at + 2 : at + 4], "little")
                if (form, attribute) == (4, 5):
                    x, y, z = (int.from_bytes(content[at + 4 + i : at + 8 + i], "little") for i in (0, 4, 8))
                    threads = x * y * z
                at += 4 + (size if form == 4 else 0)
            found[section.name.removeprefix(".nv.info.")] = threads
    return found


def hot_loop(code: str) -> list[str]:
    """The instructions of a kernel's hot loop, or all of them."""
    places, opcodes, loops = [], [], []
    for match in INSTRUCTION.finditer(code):
        place = int(match[1], 16)
        places.append(place)
        opcodes.append(match[2])
        target = re.search(r"0x([0-9a-f]+)\s*$", match[3]) if match[2].startswith("BRA") else None
        if target and int(target[1], 16) < place:
            loops.append((int(target[1], 16), place))
    kinds = [kind(opcode) for opcode in opcodes]
    heavy = {"tensor"} if "tensor" in kinds else {name for name, _ in KINDS} - WEIGHTLESS

    def weight(inside: Sequence[bool]) -> int:
        return sum(here and name in heavy for here, name in zip(inside, kinds, strict=True))

    within = [[first <= place <= last for place in places] for first, last in loops]
    anywhere = weight([any(each) for each in zip(*within, strict=True)]) if within else 0
    big = [inside for inside in within if 2 * weight(inside) >= anywhere > 0]
    if not big:
        return opcodes
    smallest = min(big, key=sum)
    return [opcode for opcode, here in zip(opcodes, smallest, strict=True) if here]


def tensor_operations(opcodes: Sequence[str]) -> int:
    """Operations of a warp's, or on Hopper a warp group's, instructions for the tensor cores."""
    total = 0
    for opcode in opcodes:
        if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
            m, n, k = map(int, match.groups())
            total += 2 * m * n * k
        elif re.match(r"HMMA\.(\d+)\.", opcode):
            total += 2 * 16 * 8 * 16
    return total


def disassembled(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Kernel, architecture and the instructions of the hot loop."""
    command = [tool("cuobjdump"), "-sass", str(path)]
    environment = {**os.environ, "PATH": f"{Path(tool('nvdisasm')).parent}{os.pathsep}{os.environ['PATH']}"}
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    for part in re.split(r"^Fatbin elf code:", text, flags=re.MULTILINE)[1:]:
        code = re.search(r"^arch = (\w+)", part, re.MULTILINE)
        for function in part.split("\t\tFunction : ")[1:]:
            assert code is not None
            yield function.split("\n", 1)[0].strip(), code[1], hot_loop(function)


def rows(objects: Sequence[Path]) -> dict[str, dict[str, dict[str, object]]]:
    """By kernel and architecture."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    for path in objects:
        needs = resources(path.with_name(f"{path.name}.log").read_text())
        with tempfile.TemporaryDirectory() as place:
            subprocess.run([tool("cuobjdump"), "-xelf", "all", str(path)], check=True, cwd=place, capture_output=True)
            limits = {
                f"sm_{file.stem.rsplit('_', 1)[1].removesuffix('a')}": thread_limits(file)
                for file in sorted(Path(place).glob("*.cubin"))
            }
        for name, code, loop in disassembled(path):
            counts = Counter(kind(opcode) for opcode in loop)
            found.setdefault(name, {})[code] = {
                **needs[name, code],
                "threads": limits[code.removesuffix("a")][name],
                "loop": {key: counts[key] for key, _ in KINDS if counts[key]},
                "tensor operations": tensor_operations(loop),
            }
    return dict(sorted(found.items()))
