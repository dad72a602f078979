"""Memory: how much this process may really use, whatever its machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foundation.cores import group_folders


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of the machine, or of the least limit of this process's control groups.

    Args:
        root: Where ``/proc`` and ``/sys`` are; another one in tests.
    """
    return min([_of_machine(root), *_limits(root)])


def _of_machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo names no MemTotal")


def _limits(root: Path) -> Iterator[int]:
    for folder in group_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():
                yield int(text)
