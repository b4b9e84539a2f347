"""Whether the system has ended processes for want of memory."""

from __future__ import annotations

import contextlib
from pathlib import Path


def deaths(root: Path = Path("/")) -> int:
    """Kills for want of memory that the kernel has counted for this control group and those above it, or
    on the whole machine where groups do not count; 0 where nothing does.

    Sources: `memory.events` (cgroup v2), `memory.oom_control` (v1) and `oom_kill` of /proc/vmstat in the
    kernel's documentation.
    """
    count = _counted(root / "proc/vmstat")
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                top, name = root / "sys/fs/cgroup", "memory.events"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
            else:
                continue
            folder = top / group.lstrip("/")
            for place in (folder, *folder.parents):
                count += _counted(place / name)
                if place == top:
                    break
    return count


def _counted(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
