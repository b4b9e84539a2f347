"""The board of one worker: a page of shared memory in which it writes down which item of its chunk it is
on, since when, and what the finished ones returned. So a chunk may be large and cheap, and yet a death or
an overrun names its item, and what was finished before is kept.

    parent (`Board`)                          worker (`Desk`)
    reset() ---------------------------------> run(task, items)
    state() <--- COUNT, starts                    each item: its start; then its result as a record
    records() <- COUNT, ends, bytes               a long item, or a full board: all so far goes up the pipe

Written by one process and read by another without a lock: a number of eight aligned bytes is written
whole, and the ones that others depend on are written last.
"""

from __future__ import annotations

import mmap
import os
import pickle
import time

from video.backends import _pickling
from video.backends._chunk import CHUNK_SECONDS, Ran, portable
from video.errors import NotPicklable, described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

SIZE = 1 << 17
"""Bytes of one board: 128 KiB, most of it for records."""
MOST_RECORDS = 1024
HEADER = 8
"""Numbers of eight bytes before the tables of the records' ends and of the items' starts."""
DATA = 8 * (HEADER + 2 * MOST_RECORDS + 1)
STATE, COUNT, BASE, SINCE = range(4)
NOT_BEGUN, RUNNING, SENDING, BETWEEN = 0.0, 1.0, 2.0, 3.0
"""States: nothing has been unpickled yet; an item runs; results are on their way up the pipe; they have
left, and the next item has not begun."""

LONG_SECONDS = 2e-3
"""The result of an item that took longer goes up the pipe at once: 30 us are then little, and the board only
ever holds small results of a few milliseconds each."""
LARGE_BYTES = 4096
"""The same for a result larger than this."""


def create() -> int:
    """Shared memory for a board, as a file descriptor without a name: nothing can be left behind.

    :raises OSError: if there is no shared memory to be had.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("video-board", os.MFD_CLOEXEC)
    else:  # macOS
        import tempfile

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


def check() -> None:
    """:raises OSError: if there is no shared memory; better now than in the middle of a batch."""
    try:
        os.close(create())
    except OSError as error:
        raise OSError(error.errno, f"there is no shared memory to be had: {error.strerror}") from error


class _Mapped:
    def __init__(self, fd: int) -> None:
        """:param fd: of `create`; may be closed afterwards."""
        self._memory = mmap.mmap(fd, SIZE)
        self._bytes = memoryview(self._memory)
        self._cells = self._bytes[: 8 * HEADER].cast("d")
        middle = 8 * (HEADER + MOST_RECORDS)
        self._ends = self._bytes[8 * HEADER : middle].cast("q")
        self._starts = self._bytes[middle:DATA].cast("d")

    def close(self) -> None:
        self._cells.release()
        self._ends.release()
        self._starts.release()
        self._bytes.release()
        self._memory.close()


class Board(_Mapped):
    """The parent's view."""

    def reset(self) -> None:
        """Before a call is sent: nothing has begun, nothing is finished."""
        cells = self._cells
        cells[COUNT] = cells[BASE] = 0.0
        cells[STATE] = NOT_BEGUN

    def state(self) -> tuple[float, int, float]:
        """(state, position of the item that runs or whose result is on its way, since when); the time is
        `time.monotonic()` in any process of the machine. After the last item the position is their number,
        if all of them are recorded."""
        cells = self._cells
        while True:
            state, count = cells[STATE], int(cells[COUNT])
            since = self._starts[count] if state == RUNNING else cells[SINCE]
            position = int(cells[BASE]) + count
            if cells[STATE] == state and cells[COUNT] == count:
                return state, position, since

    def records(self, known: int) -> Ran:
        """What finished after the first `known` items, whose results have come up the pipe. A result
        that does not unpickle here is an error of its own item."""
        ran = Ran([], [], [])
        base, count = int(self._cells[BASE]), int(self._cells[COUNT])
        for number in range(max(0, known - base), count):
            start = self._ends[number - 1] if number else DATA
            try:
                value = _pickling.loads(self._bytes[start : self._ends[number]])
            except Exception as failure:  # noqa: BLE001  # whatever the result's own code raises
                value = _Failed(unreadable(failure), "")
            if type(value) is _Failed:
                ran.errors.append((len(ran.values), value.error, value.text))
                value = None
            ran.values.append(value)
            ran.seconds.append(self._starts[number + 1] - self._starts[number])
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
        self._starts[0] = time.monotonic()
        self._cells[STATE] = RUNNING

    def send(self) -> None:
        """It has returned; its result is on its way."""
        self._cells[SINCE] = time.monotonic()
        self._cells[STATE] = SENDING

    def run(self, task: Callable[[Any], Any], items: Sequence[Any]) -> Ran:
        """As `base.run_chunk`; returns what has not gone up the pipe yet."""
        cells, ends, starts, write = self._cells, self._ends, self._starts, self._memory.write
        values: list[Any] = []
        seconds: list[float] = []
        errors: list[tuple[int, BaseException, str]] = []
        dumps, clock = pickle.dumps, time.monotonic
        many, left, count, at = len(items) > 1, len(items), 0, DATA
        self._memory.seek(DATA)
        start = starts[0] = clock()
        stop = start + CHUNK_SECONDS
        for item in items:
            try:
                value = record = task(item)
            except KeyboardInterrupt:
                raise
            except BaseException as failure:  # noqa: BLE001  # sys.exit() must not end the worker
                value, record = None, _Failed(*portable(failure))
                errors.append((len(values), record.error, record.text))
            end = clock()
            took = end - start
            left -= 1
            values.append(value)
            seconds.append(took)
            start = end
            if many:
                data = None
                if took < LONG_SECONDS:
                    data = dumps(record, 5) if type(record) in _SCALARS else _small(record)
                if data is not None and at + len(data) <= SIZE and count < MOST_RECORDS:
                    at += write(data)
                    ends[count] = at
                    count += 1
                    starts[count] = end
                    cells[COUNT] = count
                elif left:  # of the last one, the caller sends the results
                    self.send()
                    self._send_part(Ran(values, seconds, errors))
                    cells[STATE] = BETWEEN
                    # In this order: whoever reads in between finds records that it knows already.
                    cells[COUNT] = 0.0
                    cells[BASE] += len(values)
                    values, seconds, errors = [], [], []
                    count, at = 0, DATA
                    self._memory.seek(DATA)
                    start = starts[0] = clock()  # what sending took is not the next item's time
                    cells[STATE] = RUNNING
            if end > stop:
                break
        return Ran(values, seconds, errors)


class _Failed:
    """The record of an item that raised."""

    __slots__ = ("error", "text")

    def __init__(self, error: BaseException, text: str) -> None:
        self.error = error
        self.text = text


_SCALARS = frozenset({type(None), bool, int, float})
_FLAT = (bytes, str, bytearray)


def _small(value: Any) -> bytes | None:
    """A record as bytes; None: it is large, or not for plain pickle, and takes the pipe."""
    if type(value) in _FLAT and len(value) > LARGE_BYTES:
        return None
    large: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=large.append)
    except Exception:  # noqa: BLE001  # pickling runs foreign code; the pipe will say what is wrong
        return None
    return None if large else data


def unreadable(error: BaseException) -> NotPicklable:
    """The error of an item whose result arrived and cannot be unpickled."""
    return NotPicklable(
        f"the result does not unpickle ({described(error)})",
        cure="Return plain data, or use the thread engine.",
    )
