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

LIMIT_SECONDS = 5.0
"""The limits of a control group may change while a program runs; to read them takes as long as a small
batch."""
NO_LIMIT = 2**60
"""Version 1 of control groups says the largest number it has where it means none."""
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
