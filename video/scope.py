"""What running code may know of the slot that it runs in: its share of the machine, whether to stop,
where to say how far it is, and where to declare unfinished files so that they vanish even if its worker
is killed.

Outside any worker there is no slot: all CPUs may be used, nothing cancels, nobody listens, unfinished
files are removed by the code that made them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextvars import ContextVar

from video import resources
from video.errors import ItemCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:  # a worker process starts faster without these
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

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
    return resources.usable_cpus() if slot is None else slot.threads


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
