"""What the workers run, ours and the peers'. It imports next to nothing, since each of them imports it."""

from __future__ import annotations

import time
from typing import TypeVar

T = TypeVar("T")


def nothing(item: T) -> T:
    return item


async def nothing_async(item: T) -> T:
    return item


def rest(seconds: float) -> float:
    """Wait without using the CPU; 0 costs nothing."""
    if seconds:
        time.sleep(seconds)
    return seconds


def spin(steps: int) -> int:
    """Pure Python for `steps`, see `steps_for`."""
    total = 0
    for step in range(steps):
        total += step & 3
    return total


def steps_for(seconds: float) -> int:
    """How many steps take so long on one undisturbed CPU of this machine."""
    probe = 200_000
    times = []
    for _ in range(15):
        start = time.perf_counter()
        spin(probe)
        times.append(time.perf_counter() - start)
    return round(seconds * probe / min(times))
