"""What the system lets this process use: CPUs and memory, as affinity masks and control groups have it.

Sources: sched_getaffinity(2); proc(5); the kernel's documentation of control groups, versions 1 and 2.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time

LIMIT_SECONDS = 5.0
"""The limits of a control group may change while a program runs; to read them takes as long as a small
batch."""
NO_LIMIT = 2**60
"""Version 1 of control groups says the largest number it has where it means none."""


def usable_cpus() -> int:
    """CPUs that this process may use: the smaller of its affinity mask and its cgroup quota, at least 1.

    Sources: sched_getaffinity(2); `cpu.max` (cgroup v2) and `cpu.cfs_quota_us` (v1) of the kernel's
    cgroup documentation.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _quota_lately(_period())
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def free_memory(root: str = "/") -> float:
    """Bytes that this process may still fill: of the system, or of its control group or one above it where
    that has less; infinite where none says. What the group holds of files counts as free, as it does for
    the system's own `MemAvailable`: the kernel drops it first.

    :param root: of the file system that says so.
    """
    free = [float("inf")]
    try:
        with open(f"{root}/proc/meminfo", "rb", buffering=0) as file:
            # It stands in the third line; to read and divide all fifty of them takes ten times as long.
            free.append(int(file.read(256).partition(b"MemAvailable:")[2].split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for limit, folder in _limits_lately(root, _period()):
        with contextlib.suppress(OSError, ValueError):
            free.append(limit - _memory_of(folder))
    return max(0.0, min(free))


def usable_memory(root: str = "/") -> float:
    """Bytes that this process and its neighbours may fill together: of the system, or of its control group
    or one above it where that has less; infinite where none says.

    :param root: of the file system that says so.
    """
    most = [float("inf")]
    try:
        with open(f"{root}/proc/meminfo", "rb", buffering=0) as file:
            most.append(int(file.read(256).partition(b"MemTotal:")[2].split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS
            most.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min([*most, *(limit for limit, _ in _limits_lately(root, _period()))])


@functools.lru_cache(4)
def _limits_lately(root: str, _: int) -> list[tuple[int, str]]:
    """Each limit that holds for this process, in bytes, and the folder of the control group that has it.

    Sources: `memory.max` (cgroup v2) and `memory.limit_in_bytes` (v1) of the kernel's cgroup documentation.
    """
    limits = []
    for folder in control_groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no limit is the word "max", or in v1
                with open(f"{folder}/{name}") as file:
                    limit = int(file.read())
                if limit < NO_LIMIT:
                    limits.append((limit, folder))
    return limits


def _memory_of(folder: str) -> int:
    """Bytes that a control group holds and that only it can free."""
    version_2 = os.path.exists(f"{folder}/memory.current")
    name, prefix = ("memory.current", "") if version_2 else ("memory.usage_in_bytes", "total_")
    with open(f"{folder}/{name}") as file:
        used = int(file.read())
    return used - _files_of(folder, prefix)


def _files_of(folder: str, prefix: str) -> int:
    """Bytes of files that a control group keeps in memory, for as long as there is room."""
    with open(f"{folder}/memory.stat") as file:
        lines = (line.split() for line in file)
        kept = {f"{prefix}inactive_file", f"{prefix}active_file"}
        return sum(int(words[1]) for words in lines if words[0] in kept)


def _period() -> int:
    return int(time.monotonic() / LIMIT_SECONDS)


@functools.lru_cache(1)
def _quota_lately(_: int) -> float | None:
    return _cgroup_quota()


def _cgroup_quota(root: str = "/") -> float | None:
    """CPUs granted by the control group of this process or any of its parents, or None without a limit."""
    grants: list[float] = []
    for folder in control_groups("cpu", root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):
                words = []
                for name in names:
                    with open(f"{folder}/{name}") as file:
                        words += file.read().split()
                quota, period = words
                if float(quota) > 0:
                    grants.append(float(quota) / float(period))
    return min(grants) if grants else None


def control_groups(controller: str, root: str = "/") -> list[str]:
    """Folders of the control groups whose limits hold for this process: its own, then those above it.

    A container may see its own group as the top, so that not each of them is there.

    :param controller: "cpu" or "memory".
    :param root: of the file system that says so.
    """
    try:
        with open(f"{root}/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top = f"{root}/sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = f"{root}/sys/fs/cgroup/{controller}"
        else:
            continue
        parts = [part for part in group.split("/") if part]
        folders += ["/".join([top, *parts[:count]]) for count in range(len(parts), -1, -1)]
    return folders
