"""How many cores this process may use, and how much memory its control groups leave: what a container allows. No torch.

The affinity mask says on which cores a process may run; a control group's quota (`docker run --cpus`, a Kubernetes limit,
`CPUQuota=` of systemd) says how much of their time it gets, and is in no mask. Threads beyond the quota stop each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
THREADS = "OMP_NUM_THREADS"


def available_cores() -> int:
    """Cores that this process may use, by its affinity and by the quotas of its control groups; at least 1.

    A quota of 2.5 cores is 2, as for Rust's runtime: a third thread would be stopped half of the time, and those
    that wait for it at a barrier use up the quota meanwhile.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _cpu_quotas())]))


def threads_each(processes: int) -> int:
    """Threads for each of so many processes that compute side by side on this machine; at least 1."""
    return max(1, available_cores() // processes)


def group_memory() -> int | None:
    """Bytes that the control groups of this process leave it; None without a limit. Cached files count as free."""
    left = []
    for folder in _groups("memory"):
        for limit_name, used_name, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            limit, used = _words(folder / limit_name), _words(folder / used_name)
            if limit and used and limit[0].isdigit():
                stat = _words(folder / "memory.stat")
                kept = int(stat[stat.index(cached) + 1]) if cached in stat else 0
                left.append(max(0, int(limit[0]) - int(used[0]) + kept))
    return min(left, default=None)


def _cpu_quotas() -> Iterator[float]:
    """In cores, of each control group of this process that has one."""
    for folder in _groups("cpu"):
        version_1 = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        for words in (_words(folder / "cpu.max"), version_1):
            if len(words) == 2 and words[0].isdigit():  # else "max" or -1: none
                yield int(words[0]) / int(words[1])


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups in which this process is, from its own to the root of what is mounted here.

    A container may see its own group as the root, or the path that the group has outside, which does not exist here.
    """
    for line in [*_lines(OWN_GROUPS), f"0:{controller}:/", "0::/"]:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            mounted, group = CGROUP / controller if controllers else CGROUP, PurePosixPath(path)
            yield from (mounted / part.relative_to("/") for part in (group, *group.parents))


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
