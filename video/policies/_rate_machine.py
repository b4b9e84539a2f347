"""What a rate limiter has to know of the machine: its clock, when it started, and which processes live."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from video.policies._rate_gcra import State


def machine_clock() -> float:
    """Seconds since the machine was started; the same for all of its processes."""
    return _boottime()


if sys.platform == "linux":

    def _boottime() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    _boottime = time.monotonic


def boot_number() -> float:
    """Tells one start of the machine from another; 0 where it does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return float(int(text.replace("-", "")[:12], 16))
    except (OSError, ValueError):
        return 0.0


def birth(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0: it has ended, or nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in b"ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def bury(state: State) -> None:
    """Drop the permits in flight of processes that have ended."""
    for holder in list(state.holders):
        pid, born = holder
        if birth(pid) != born or not (born or _answers(pid)):
            del state.holders[holder]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
