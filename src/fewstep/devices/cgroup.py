"""What a Linux container leaves to the processes in it: cgroup limits, v1 and v2.

A limit may be set on a process's own group or on any group above it; the tightest counts. Inside a
container the path in /proc/self/cgroup may be the host's, and lead nowhere; its root is then here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

# Files of v2, then of v1: limit, usage, and the part of the usage that is given back on demand.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def cores(root: Path) -> float:
    """The CPU quota in cores, such as 1.5; infinite where there is none."""
    return min((_cores_of_quota(group) for group in _group_folders(root, "cpu")), default=math.inf)


def memory(root: Path) -> float:
    """Bytes that may still be had; infinite where there is no limit."""
    return min((_memory_left(group) for group in _group_folders(root, "memory")), default=math.inf)


def text(file: Path) -> str:
    """A file of the kernel's; "" where it is not there."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups, each followed by those above it."""
    mounts = root / "sys" / "fs" / "cgroup"
    for line in text(root / "proc" / "self" / "cgroup").splitlines():  # 4:cpu,cpuacct:/docker/1f, or 0::/
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounts / controller if controllers else mounts
        group = top / path.lstrip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(top)))


def _cores_of_quota(group: Path) -> float:
    v1 = text(group / "cpu.cfs_quota_us") + text(group / "cpu.cfs_period_us")
    fields = (text(group / "cpu.max") or v1).split()
    if len(fields) < 2 or fields[0] in ("max", "-1"):
        return math.inf
    return int(fields[0]) / int(fields[1])


def _memory_left(group: Path) -> float:
    for limit_file, usage_file, cache_field in _MEMORY:
        limit, used = text(group / limit_file).strip(), text(group / usage_file)
        if limit and used and limit != "max":
            stat = text(group / "memory.stat").split()
            reclaimable = int(stat[stat.index(cache_field) + 1]) if cache_field in stat else 0
            return max(0, int(limit) - int(used) + reclaimable)
    return math.inf
