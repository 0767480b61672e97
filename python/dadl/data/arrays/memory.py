"""What fits into memory."""

import os
from pathlib import Path

from ...errors import UserError


class TooLargeError(UserError, ValueError):
    """Data that do not fit into memory."""


def available_memory() -> int:
    """Bytes that can still be allocated without swapping; without Linux's ``/proc``, those of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(needed: int, what: object) -> None:
    """Raise a :class:`TooLargeError` that names ``what``, unless that many bytes are at most half of what is free."""
    free = available_memory()
    if needed > free // 2:
        raise TooLargeError(
            f"{what}: {needed / 1e9:.1f} GB in memory, of which {free / 1e9:.1f} GB are free and half may be filled"
        )
