"""Cores: how many this process may really use, whatever its machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """Cores of this process: its affinity, and the CPU quotas of its control groups (containers, YARN, Kubernetes).

    A quota of 1.5 cores gives 1: a second thread would be stopped for half of each period, and the first one waits
    for it.

    Args:
        root: Where ``/proc`` and ``/sys`` are; another one in tests.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    return max(1, math.floor(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Quotas in cores of the groups that this process is in, and of those above them."""
    for folder in group_folders(root, "cpu"):
        yield from _version_2(folder / "cpu.max")
        yield from _version_1(folder)


def group_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, and of those above them, of either version.

    Args:
        root: Where ``/proc`` and ``/sys`` are.
        controller: Of version 1: ``cpu``, ``memory``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    groups = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mounts = (groups, groups / "unified")
        elif controller in controllers.split(","):
            mounts = (groups / controllers, groups / controller)
        else:
            continue
        yield from (base for mount in mounts for base in _upwards(mount, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it; in a container the mount may begin at the group itself."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _version_2(file: Path) -> Iterator[float]:
    try:
        quota, period = file.read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return


def _version_1(folder: Path) -> Iterator[float]:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            yield quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return
