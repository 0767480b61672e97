"""What CUDA lets a launch have on each GPU architecture, and how many blocks a multiprocessor holds.

From the tables of NVIDIA's programming guide (technical specifications per compute capability); the blocks are those of
its occupancy calculator, which a test compares.
"""

from dataclasses import dataclass

WARP = 32
REGISTERS = 64 << 10  # of a multiprocessor, and of a block
REGISTER_UNIT = 256  # in which a warp gets its registers
PARTITIONS = 4  # of a multiprocessor, each with its part of the registers
MOST_THREADS = 1024  # of a block
MOST_BLOCK = (1024, 1024, 64)
MOST_GRID = (2**31 - 1, 65535, 65535)
SHARED_UNIT = 128
SHARED_UNASKED = 48 << 10  # bytes of a block without the attribute of its kernel that allows more
SHARED_OF_SYSTEM = 1 << 10  # bytes that CUDA adds to every block's

# cudaError_t
INVALID_VALUE, INVALID_CONFIGURATION, NO_IMAGE, OUT_OF_RESOURCES = 1, 9, 209, 701


@dataclass(frozen=True)
class Kernel:
    """What the compiler says of a kernel."""

    registers: int
    """Of a thread."""
    shared: int
    """Bytes of a block's static shared memory."""
    threads: int
    """At most, of a block: its launch bounds."""


@dataclass(frozen=True)
class Launch:
    """A launch as the host code asks for it."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0
    """Bytes of dynamic shared memory."""
    allowed: int | None = None
    """Bytes of dynamic shared memory that the kernel's attribute allows, where it was set."""

    @property
    def threads(self) -> int:
        x, y, z = self.block
        return x * y * z


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Architecture:
    """A compute capability."""

    capability: tuple[int, int]
    code: str
    """The machine code of the wheel that it runs."""
    threads: int
    """Of a multiprocessor, as the following."""
    blocks: int
    shared: int
    """Bytes of shared memory."""

    @property
    def name(self) -> str:
        return ".".join(map(str, self.capability))

    @property
    def shared_of_block(self) -> int:
        """Bytes that a block may have where its kernel's attribute allows it."""
        return self.shared - SHARED_OF_SYSTEM

    def resident(self, kernel: Kernel, threads: int, shared: int) -> int:
        """How many blocks of a kernel with this dynamic shared memory a multiprocessor holds."""
        warps = -(-threads // WARP)
        of_warp = _up(kernel.registers * WARP, REGISTER_UNIT)
        if of_warp * _up(warps, PARTITIONS) > REGISTERS or kernel.shared + shared > self.shared_of_block:
            return 0
        by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps if of_warp else self.blocks
        by_shared = self.shared // _up(kernel.shared + shared + SHARED_OF_SYSTEM, SHARED_UNIT)
        return min(self.threads // WARP // warps, self.blocks, by_registers, by_shared)

    def occupancy(self, kernel: Kernel, threads: int, shared: int) -> float:
        """The share of a multiprocessor's warps."""
        return self.resident(kernel, threads, shared) * -(-threads // WARP) / (self.threads // WARP)

    def refused_attribute(self, kernel: Kernel, shared: int) -> tuple[int, str] | None:
        """CUDA's error, and why, for a kernel that shall be allowed this much dynamic shared memory."""
        if shared + kernel.shared > self.shared_of_block:
            sentence = (
                f"{shared} bytes of dynamic shared memory and {kernel.shared} of static, of {self.shared_of_block}"
            )
            return INVALID_VALUE, sentence
        return None

    def refused(self, kernel: Kernel, launch: Launch) -> tuple[int, str] | None:
        """CUDA's error, and why, for a launch that it refuses."""
        for what, given, most in (("grid", launch.grid, MOST_GRID), ("block", launch.block, MOST_BLOCK)):
            if not all(1 <= size <= limit for size, limit in zip(given, most, strict=True)):
                return INVALID_CONFIGURATION, f"a {what} of {given}, of {most}"
        if launch.threads > MOST_THREADS:
            return INVALID_CONFIGURATION, f"{launch.threads} threads in a block, of {MOST_THREADS}"
        if launch.threads > kernel.threads:
            return INVALID_VALUE, f"{launch.threads} threads in a block, of the {kernel.threads} of its launch bounds"
        unasked = max(SHARED_UNASKED - kernel.shared, 0)
        most_shared = unasked if launch.allowed is None else launch.allowed
        if launch.shared > most_shared:
            return INVALID_VALUE, f"{launch.shared} bytes of dynamic shared memory, of {most_shared} that are allowed"
        if kernel.shared + launch.shared > self.shared_of_block:
            return INVALID_VALUE, f"{kernel.shared + launch.shared} bytes of shared memory, of {self.shared_of_block}"
        if self.resident(kernel, launch.threads, launch.shared) == 0:
            return OUT_OF_RESOURCES, f"{launch.threads} threads of {kernel.registers} registers, of {REGISTERS}"
        return None


# The wheel is built for sm_80, sm_90a, sm_100 and sm_120, and has PTX of the last two. Before 8.0 it refuses to run.
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture((8, 0), "sm_80", 2048, 32, 164 << 10),
        Architecture((8, 6), "sm_80", 1536, 16, 100 << 10),
        Architecture((8, 7), "sm_80", 1536, 16, 164 << 10),
        Architecture((8, 9), "sm_80", 1536, 24, 100 << 10),
        Architecture((9, 0), "sm_90a", 2048, 32, 228 << 10),
        Architecture((10, 0), "sm_100", 2048, 32, 228 << 10),
        Architecture((10, 3), "sm_100", 2048, 32, 228 << 10),
        Architecture((12, 0), "sm_120", 1536, 24, 100 << 10),
        Architecture((12, 1), "sm_120", 1536, 24, 100 << 10),
    )
}
