"""Memory that a process may use, by its machine and by the limits of either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.memory import available_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "files", "gib"),
    [
        ("", {}, 8),
        ("0::/jobs/one\n", {"jobs/one/memory.max": "max", "jobs/memory.max": str(3 * GIB)}, 3),
        ("0::/jobs/one\n", {"jobs/one/memory.max": str(64 * GIB)}, 8),
        ("4:memory:/one\n", {"memory/one/memory.limit_in_bytes": str(2 * GIB)}, 2),
        ("0::/jobs/one\n", {"memory.max": str(GIB)}, 1),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], gib: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemFree: 1 kB\nMemTotal: {8 * GIB // 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert available_memory(tmp_path) == gib * GIB
