"""What the workers run, ours and the peers'. It imports next to nothing, since each of them imports it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

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


# One function for each workload of bench_regret.py, since what is remembered of a task goes by its name.


def spin_briefly(steps: int) -> int:
    return spin(steps)


def spin_unevenly(steps: int) -> int:
    return spin(steps)


async def rest_async(seconds: float) -> float:
    import asyncio  # it alone takes longer than all the others

    await asyncio.sleep(seconds)
    return seconds


def small_arrays(operations: int) -> float:
    """NumPy on arrays so small that it keeps the interpreter's lock."""
    import numpy as np

    array = np.ones(16)
    for _ in range(operations):
        array = np.sqrt(array + 1.0)
    return float(array[0])


def large_arrays(number: int) -> float:
    """NumPy on an array so large that it lets go of the lock, and no BLAS, which has threads of its own."""
    import numpy as np

    array = np.sin(np.arange(200_000) * float(number + 1))
    array.sort()
    return float(array[0])


def compiled(steps: int) -> int:
    return int(_kernel()(steps))


@functools.cache
def _kernel() -> Callable[[int], int]:
    from numba import njit

    @njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba has no types
    def kernel(steps: int) -> int:
        state = 88172645463325252
        for _ in range(steps):  # xorshift, which no compiler can shorten
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
        return state

    return kernel  # type: ignore[no-any-return]


def cut_clip(job: tuple[str, str, float, float]) -> int:
    from video.media.cut import cut

    return cut(*job).frames


def fetch(port: int) -> int:
    """One blocking request to this machine, on a connection of its own; bytes of the answer."""
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/")
        return len(connection.getresponse().read())
    finally:
        connection.close()


def increased(array: Any) -> Any:
    return array + 1.0


def digest(blocks: Iterable[bytes]) -> str:
    """Native work that lets go of the lock, on a generator, which cannot cross to another process."""
    import hashlib

    sha = hashlib.sha256()
    for block in blocks:
        sha.update(block)
    return sha.hexdigest()


def touch_memory(size: int) -> float:
    import numpy as np

    return float(np.ones(size // 8)[-1])
