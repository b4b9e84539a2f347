"""What running code may know of the slot that it runs in: its share of the machine, whether to stop,
where to say how far it is, and where to declare unfinished files so that they vanish even if its worker
is killed.

Outside any worker there is no slot: all CPUs may be used, nothing cancels, nobody listens, unfinished
files are removed by the code that made them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from contextvars import ContextVar

from video.errors import ItemCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:  # a worker process starts faster without these
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

QUOTA_SECONDS = 5.0
"""A CPU quota may change while a program runs; to read it takes as long as a small batch."""
REPORT_SECONDS = 0.1
"""Reports of progress closer together than this are dropped: nobody can read faster."""


def _ignore(path: str, unfinished: bool) -> None:
    """Nobody outside this process needs to know of the file."""


def _unheard(fraction: float, words: str) -> None:
    """Nobody watches."""


class Slot:
    """One worker's place, set by the backend around the items that it runs."""

    __slots__ = ("board", "cancelled", "declare", "listener", "reported", "threads")

    def __init__(
        self,
        threads: int = 1,
        declare: Callable[[str, bool], None] = _ignore,
        listener: Callable[[float, str], None] = _unheard,
        board: Any = None,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.threads = threads
        """Native threads (codecs, BLAS) that an item may use."""
        self.cancelled = cancelled or threading.Event()
        self.declare = declare
        """Told (path, True) before an unfinished file is made, (path, False) once it is gone or whole."""
        self.listener = listener
        self.reported = 0.0
        """`time.monotonic()` of the last report."""
        self.board = board
        """Where a worker process writes down which item it is on (`video.backends._board`)."""


_slot: ContextVar[Slot | None] = ContextVar("video_slot", default=None)


def enter(slot: Slot) -> None:
    """Make `slot` the current one of this thread or coroutine. For backends."""
    _slot.set(slot)


@contextlib.contextmanager
def entered(slot: Slot) -> Iterator[Slot]:
    """`slot` is the current one inside the block."""
    token = _slot.set(slot)
    try:
        yield slot
    finally:
        _slot.reset(token)


def current() -> Slot | None:
    """The slot that this code runs in, or None outside a worker."""
    return _slot.get()


def native_threads() -> int:
    """How many native threads this code may use, at least 1."""
    slot = _slot.get()
    return usable_cpus() if slot is None else slot.threads


stopping = threading.Event()
"""Set by a program that is about to end: every item in this process is then given up."""


def check_cancelled() -> None:
    """Raise `ItemCancelled` if this item has been given up. Cheap: call it once a frame."""
    slot = _slot.get()
    if stopping.is_set() or (slot is not None and slot.cancelled.is_set()):
        raise ItemCancelled("stopped because its batch was left or its time was up")


def report(fraction: float, words: str = "") -> None:
    """Say how far this item is. Cheap, and may be called often.

    :param fraction: share of the work that is done, 0 to 1.
    :param words: what it does now, such as "clip 2 of 3".
    """
    slot = _slot.get()
    if slot is not None and (now := time.monotonic()) - slot.reported >= REPORT_SECONDS:
        slot.reported = now
        slot.listener(fraction, words)


@contextlib.contextmanager
def unfinished(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Declare that `path`, a file or a folder, is no result yet, for as long as the block runs.

    Whatever is there when the block ends, however it ends, is removed; rename it away to keep it. If the
    worker is killed inside the block, its parent removes it.

    :param keep: leave it if the block ends well: for a file that is whole, but counts only with others.
    """
    slot = _slot.get()
    declare = _ignore if slot is None else slot.declare
    absolute = os.path.abspath(path)
    declare(absolute, True)
    try:
        yield path
    except BaseException:
        remove(absolute)
        raise
    else:
        if not keep:
            remove(absolute)
    finally:
        declare(absolute, False)


def remove(path: str) -> None:
    """Remove a file or a folder tree if it is there; never raises."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def usable_cpus() -> int:
    """CPUs that this process may use: the smaller of its affinity mask and its cgroup quota, at least 1.

    Sources: sched_getaffinity(2); `cpu.max` (cgroup v2) and `cpu.cfs_quota_us` (v1) of the kernel's
    cgroup documentation.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _quota_lately(int(time.monotonic() / QUOTA_SECONDS))
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def free_memory() -> float:
    """Bytes that this process may still fill: of the system, or of its control group where that has less;
    infinite where neither says."""
    free = [float("inf")]
    try:
        with open("/proc/meminfo", "rb", buffering=0) as file:
            # It stands in the third line; to read and divide all fifty of them takes ten times as long.
            free.append(int(file.read(256).partition(b"MemAvailable:")[2].split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max") as most, open("/sys/fs/cgroup/memory.current") as current:
            free.append(float(most.read()) - float(current.read()))
    except (OSError, ValueError):  # no limit is the word "max"
        pass
    return max(0.0, min(free))


def usable_memory() -> float:
    """Bytes that this process and its neighbours may fill together: of the system, or of its control group
    where that has less; infinite where neither says."""
    most = [float("inf")]
    try:
        with open("/proc/meminfo", "rb", buffering=0) as file:
            most.append(int(file.read(256).partition(b"MemTotal:")[2].split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS
            most.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as limit:
        most.append(float(limit.read()))
    return min(most)


@functools.lru_cache(1)
def _quota_lately(_: int) -> float | None:
    return _cgroup_quota()


def _cgroup_quota(root: Path | None = None) -> float | None:
    """CPUs granted by the control group of this process or any of its parents, or None without a limit."""
    from pathlib import Path

    root = root or Path("/")
    grants: list[float] = []
    names: tuple[str, ...]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        folder = top / group.lstrip("/")
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                quota, period = " ".join((place / name).read_text() for name in names).split()
                if float(quota) > 0:
                    grants.append(float(quota) / float(period))
            if place == top:
                break
    return min(grants) if grants else None
