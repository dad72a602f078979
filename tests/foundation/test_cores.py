"""Cores that a process may use, by affinity and by the quotas of either version of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foundation.cores import available_cores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


V1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/"}, 16),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 16),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        # Of nested groups the narrowest counts.
        (
            {
                "proc/self/cgroup": "0::/pod/worker",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
                "sys/fs/cgroup/pod/worker/cpu.max": "max 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/yarn",
                f"{V1}/yarn/cpu.cfs_quota_us": "250000",
                f"{V1}/yarn/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        # A container sees its own group as the root, and the path of the host beside it.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc",
                f"{V1}/cpu.cfs_quota_us": "600000",
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            16,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "what is this"}, 16),
    ],
    ids=["none", "no file", "max", "four", "one and a half", "a fifth", "nested", "v1", "v1 container", "v1 none",
         "unreadable"],
)  # fmt: skip
def test_the_quota_of_the_control_group_counts(root: Path, files: dict[str, str], cores: int) -> None:
    put(root, files)
    assert available_cores(root) == cores


def test_affinity_counts_where_it_is_narrower(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert available_cores(root) == 3


def test_this_process_has_at_least_a_core() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
