"""Whether the system has ended processes for want of memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

from video import resources


def deaths(root: Path = Path("/")) -> int:
    """Kills for want of memory that the kernel has counted for the control group of this process, or on the
    whole machine where groups do not count; 0 where nothing does.

    A kill counts in the victim's own group, wherever the limit was set; those above have others' kills, too.

    Sources: `memory.events` (cgroup v2), `memory.oom_control` (v1) and `oom_kill` of /proc/vmstat in the
    kernel's documentation; `memcg_memory_event` in mm/memcontrol.c.
    """
    for folder in resources.control_groups("memory", str(root)):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _counted(Path(folder, name))) is not None:
                return count
    return _counted(root / "proc/vmstat") or 0


def _counted(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None
