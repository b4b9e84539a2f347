"""The board of one worker: a page of shared memory in which it writes down which item of its chunk it is
on, since when, and what the finished ones returned. So a chunk may be large and cheap, and yet a death or
an overrun names its item, and what was finished before is kept.

    parent (`Board`)                          worker (`Desk`)
    reset() ---------------------------------> run(task, items)
    running() <- POSITION STARTED                 each item: POSITION STARTED, then its result as a record
    records() <- COUNT, ends, bytes               a long item, or a full board: all so far goes up the pipe

Written by one process and read by another without a lock: a number of eight aligned bytes is written
whole, and the ones that others depend on are written last.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from video.backends import _pickling
from video.backends.base import CHUNK_SECONDS, Ran, portable
from video.errors import NotPicklable

SIZE = 1 << 17
"""Bytes of one board: 128 KiB, most of it for records."""
MOST_RECORDS = 1024
HEADER = 8
"""Numbers of eight bytes before the table of the records' ends."""
DATA = 8 * (HEADER + MOST_RECORDS)
POSITION, STARTED, COUNT, BASE = range(4)
NOT_BEGUN, ENDED = -1.0, -2.0
"""In place of a position: nothing has been unpickled yet; all items are done."""

LONG_SECONDS = 2e-3
"""The result of an item that took longer goes up the pipe at once: 30 us are then little, and what is on the board is only ever the work of a few milliseconds."""
LARGE_BYTES = 4096
"""The same for a result larger than this."""


def create() -> int:
    """Shared memory for a board, as a file descriptor without a name: nothing can be left behind.

    :raises OSError: if there is no shared memory to be had.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("video-board", os.MFD_CLOEXEC)
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        # Reserved now: to write where there is no memory left would be a fatal signal later.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, SIZE)
        else:
            os.ftruncate(fd, SIZE)
    except OSError:
        os.close(fd)
        raise
    return fd


class _Mapped:
    def __init__(self, fd: int) -> None:
        """:param fd: of `create`; may be closed afterwards."""
        self._memory = mmap.mmap(fd, SIZE)
        self._bytes = memoryview(self._memory)
        self._cells = self._bytes[: 8 * HEADER].cast("d")
        self._ends = self._bytes[8 * HEADER : DATA].cast("q")

    def close(self) -> None:
        self._cells.release()
        self._ends.release()
        self._bytes.release()
        self._memory.close()


class Board(_Mapped):
    """The parent's view."""

    def reset(self) -> None:
        """Before a call is sent: nothing has begun, nothing is finished."""
        cells = self._cells
        cells[COUNT] = cells[BASE] = cells[STARTED] = 0.0
        cells[POSITION] = NOT_BEGUN

    def running(self) -> tuple[int, float]:
        """(position, start) of the item that runs; the position is -1 before the first has begun and -2
        after the last; the start is `time.monotonic()` in any process of the machine."""
        cells = self._cells
        while True:
            position, started = cells[POSITION], cells[STARTED]
            if cells[POSITION] == position:
                return int(position), started

    def records(self, known: int) -> Ran:
        """What finished after the first `known` items, whose results have come up the pipe. A result
        that does not unpickle here is an error of its own item."""
        ran = Ran([], [], [])
        base, count = int(self._cells[BASE]), int(self._cells[COUNT])
        for number in range(max(0, known - base), count):
            start = self._ends[number - 1] if number else DATA
            value = error = None
            seconds, text = 0.0, ""
            try:
                value, seconds, error, text = _pickling.loads(self._bytes[start : self._ends[number]])
            except Exception as failure:  # noqa: BLE001  # whatever the result's own code raises
                error = unreadable(failure)
            if error is not None:
                ran.errors.append((len(ran.values), error, text))
            ran.values.append(value)
            ran.seconds.append(seconds)
        return ran


class Desk(_Mapped):
    """The worker's view.

    :param send_part: sends results of the chunk up the pipe before it has ended.
    """

    def __init__(self, fd: int, send_part: Callable[[Ran], None]) -> None:
        super().__init__(fd)
        self._send_part = send_part

    def begin(self) -> None:
        """A call is unpickled and starts."""
        self._cells[STARTED] = time.monotonic()
        self._cells[POSITION] = 0.0

    def end(self) -> None:
        """It has returned; its result is on its way."""
        self._cells[STARTED] = time.monotonic()
        self._cells[POSITION] = ENDED

    def run(self, task: Callable[[Any], Any], items: Sequence[Any]) -> Ran:
        """As `base.run_chunk`; returns what has not gone up the pipe yet."""
        cells, ends, memory = self._cells, self._ends, self._bytes
        values: list[Any] = []
        seconds: list[float] = []
        errors: list[tuple[int, BaseException, str]] = []
        dumps, clock = pickle.dumps, time.monotonic
        last, count, at = len(items) - 1, 0, DATA
        start = clock()
        stop = start + CHUNK_SECONDS
        for position, item in enumerate(items):
            cells[STARTED] = start
            cells[POSITION] = position
            error = None
            try:
                value = task(item)
            except KeyboardInterrupt:
                raise
            except BaseException as failure:  # noqa: BLE001  # sys.exit() must not end the worker
                value, error = None, portable(failure)
            end = clock()
            took = end - start
            if error is not None:
                errors.append((len(values), *error))
            values.append(value)
            seconds.append(took)
            if last and (position < last or took < LONG_SECONDS):
                record = None
                if took < LONG_SECONDS:
                    if error is None and type(value) in _SCALARS:
                        record = dumps((value, took, None, ""), 5)
                    else:
                        record = _record(value, took, *(error or (None, "")))
                if record is not None and at + len(record) <= SIZE and count < MOST_RECORDS:
                    start, at = at, at + len(record)
                    memory[start:at] = record
                    ends[count] = at
                    count += 1
                    cells[COUNT] = count
                elif position < last:
                    self._send_part(Ran(values, seconds, errors))
                    values, seconds, errors = [], [], []
                    # In this order: whoever reads in between finds records that it knows already.
                    cells[COUNT] = 0.0
                    cells[BASE] = position + 1
                    count, at = 0, DATA
                    end = clock()  # what sending took is not the next item's time
            start = end
            if end > stop:
                break
        self.end()
        return Ran(values, seconds, errors)


_SCALARS = frozenset({type(None), bool, int, float})
_FLAT = (bytes, str, bytearray)


def _record(value: Any, seconds: float, error: BaseException | None, text: str) -> bytes | None:
    """The result of a short item as bytes; None: it is large, or not for plain pickle, and takes the pipe."""
    if type(value) in _FLAT and len(value) > LARGE_BYTES:
        return None
    large: list[pickle.PickleBuffer] = []
    try:
        record = pickle.dumps((value, seconds, error, text), 5, buffer_callback=large.append)
    except Exception:  # noqa: BLE001  # pickling runs foreign code; the pipe will say what is wrong
        return None
    return None if large else record


def unreadable(error: BaseException) -> NotPicklable:
    """The error of an item whose result arrived and cannot be unpickled."""
    return NotPicklable(
        f"the result does not unpickle ({type(error).__name__}: {error})",
        cure="Return plain data, or use the thread engine.",
    )
