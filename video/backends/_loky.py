"""A worker of the joblib engine, and the places where calls and results lie on their way.

    parent (`Place`)                               worker (`_Desk`)
    load() -> board cleared, the call in the bay --> run(number, size): reads the call
    state() <- board ------------------------------- which item it is on, since when
    kept() <- board and bay ------------------------ what has finished, which files are unfinished
    read() <- bay ---------------------------------- the result

A place is shared memory: a board (`_board`), and behind it the bay. Through loky's own pipes go nothing but
a few numbers, since a worker that is killed in the middle of a long message leaves whoever reads or writes
the rest of it waiting for ever. A place has no name; each worker inherits the descriptors of all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import threading
import traceback

import video.scope as scope
from video.backends import _board, _pickling, _worker
from video.backends._chunk import ChunkLost, Ran, joined, portable, run_packed
from video.errors import ItemCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PID, KEPT, RECALLED = 4, 5, 6
"""Cells of a board that are only used here: the worker that took the call; the end of what is kept; whether
the call is still to be taken."""
BAY = _board.SIZE
LARGEST_BAY = 1 << 20
"""Bytes of a bay that stay in memory for the next call."""
RECORD = struct.Struct("<cq")
"""Before each thing in the bay: what it is, and its bytes."""
PART, MADE, GONE = b"t", b"m", b"g"
"""Pickled results of a chunk that has not ended; the path of a file that is unfinished, or no longer."""
BYTES, DONE, FAILED, UNREADABLE, BROKEN, DECLINED = range(6)
"""Answers: a result that is bytes; another, pickled; pickled (error, traceback text); as text: the call did
not unpickle, or the initializer failed; nothing, since the call was recalled."""


def write(fd: int, data: bytes, at: int) -> int:
    """:return: the offset behind it.

    :raises OSError: if there is no more memory.
    """
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        at += count
        left = left[count:]
    return at


def read(fd: int, at: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(fd, size, at)
        if not part:
            raise EOFError("the bay ends before what it holds")
        parts.append(part)
        at += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Place(_board.Board):
    """The parent's view.

    :raises OSError: if there is no shared memory to be had.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd = _board.create()
        try:
            super().__init__(self.fd)
        except OSError:
            os.close(self.fd)
            raise

    def load(self, call: bytes) -> None:
        """:raises OSError: if there is not memory enough for it."""
        self.reset()
        self._cells[PID] = self._cells[RECALLED] = 0.0
        self._cells[KEPT] = BAY
        write(self.fd, call, BAY)

    def unload(self) -> None:
        """Nobody needs what is in the bay any more."""
        if os.fstat(self.fd).st_size > BAY + LARGEST_BAY:
            os.ftruncate(self.fd, BAY)

    def recall(self) -> bool:
        """No worker is to take the call any more; False: one may have."""
        self._cells[RECALLED] = 1.0
        return not self._cells[PID]  # the worker writes and looks in the other order

    def worker(self) -> int:
        """Process id of the worker that took the call; 0: none has."""
        return int(self._cells[PID])

    def read(self, at: int, size: int) -> bytes:
        return read(self.fd, at, size)

    def kept(self) -> Ran:
        """What its chunk had finished.

        :raises ChunkLost: if some of it does not unpickle here; says what came before.
        """
        parts: list[Ran] = []
        for kind, data in self._bay():
            if kind == PART:
                try:
                    parts.append(_pickling.loads(data))
                except Exception as error:
                    failure = _board.unreadable(error)
                    failure.__cause__ = error
                    raise ChunkLost(failure, joined(parts), certain=False) from error
        known = sum(len(part.values) for part in parts)
        if self._cells[_board.BASE] > known:  # there was no room for a part: what is later would be misplaced
            return joined(parts)
        return joined([*parts, self.records(known)])

    def unfinished(self) -> set[str]:
        """Files that its items have declared so."""
        paths: set[str] = set()
        for kind, data in self._bay():
            if kind == MADE:
                paths.add(os.fsdecode(data))
            elif kind == GONE:
                paths.discard(os.fsdecode(data))
        return paths

    def _bay(self) -> list[tuple[bytes, bytes]]:
        found = []
        at, end = BAY, int(self._cells[KEPT])
        while at < end:
            kind, size = RECORD.unpack(self.read(at, RECORD.size))
            at += RECORD.size
            found.append((kind, self.read(at, size)))
            at += size
        return found

    def close(self) -> None:
        super().close()
        os.close(self.fd)


class Inherited:
    """Descriptors that a starting worker gets under the numbers that they have in its parent."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = fds

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # says "pass it on" to the process that is being started

        return _inherited, tuple(map(DupFd, self._fds))


def _inherited(*handles: Any) -> list[int]:
    return [handle.detach() for handle in handles]


# In the worker

_desks: list[_Desk] = []
_broken = ""
"""What the initializer raised."""
_busy = False
"""A call runs."""


def start(parent: int, fds: list[int], hooks: bytes) -> None:
    """A worker starts.

    :param parent: its process id.
    :param fds: one for each place.
    :param hooks: pickled (initializer, finalizer); empty: there are none.
    """
    global _broken
    with contextlib.suppress(PermissionError):  # it leads a group of its own already
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `_Generation.take`
    signal.signal(signal.SIGTERM, _told_to_end)
    _worker.die_with(parent)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # an item's children must not read what is meant for the program
    os.close(null)
    from joblib.externals.loky import process_executor

    # loky replaces a worker that has grown by 300 MB, which a few decoded pictures do.
    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")
    for fd in fds:
        os.set_inheritable(fd, False)
        _desks.append(_Desk(fd))
    try:
        if hooks:
            initializer, finalizer = _pickling.loads(hooks)
            if initializer is not None:
                initializer()
            if finalizer is not None:
                from multiprocessing.util import Finalize

                Finalize(None, _finish, (finalizer,), exitpriority=1)
    except BaseException:  # noqa: BLE001  # whatever it raises, every call is to say so
        _broken = traceback.format_exc()


def _told_to_end(*_: object) -> None:
    """SIGTERM: unwind what runs, so that its unfinished files go; an idle worker ends with its children."""
    if _busy:
        raise ItemCancelled("its worker was told to end")
    os.killpg(0, signal.SIGKILL)


def _finish(finalizer: Callable[[], object]) -> None:
    try:
        finalizer()
    except BaseException:  # noqa: BLE001  # nobody is left to tell but who reads standard error
        print(traceback.format_exc(), file=sys.__stderr__)


def run(number: int, size: int) -> tuple[int, int, int]:
    """Answer the call of that many bytes that lies in a place: (kind, offset, bytes) of the answer there."""
    global _busy
    desk = _desks[number]
    if not desk.take():
        return DECLINED, BAY, 0
    _busy = True
    try:
        kind, answer = (BROKEN, _text(_broken)) if _broken else desk.answer(size)
    finally:
        _busy = False
    return kind, *desk.leave(answer)


class _Desk(_board.Desk):
    """The worker's view of a place."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, self._send_part)
        self._fd = fd
        self._parts: list[Ran] = []
        self._keeping = threading.Lock()

    def take(self) -> bool:
        self._cells[PID] = os.getpid()
        return not self._cells[RECALLED]

    def answer(self, size: int) -> tuple[int, bytes]:
        try:
            fn, args = _pickling.loads(read(self._fd, BAY, size))
        except BaseException:  # noqa: BLE001  # unpickling runs foreign code, which may raise anything
            return UNREADABLE, _text(traceback.format_exc())
        if fn is not run_packed:  # a chunk begins when its items are unpickled, too
            self.begin()
        try:
            with scope.entered(scope.Slot(declare=self._declare, board=self)):
                result = fn(*args)
            self.send()
            return (BYTES, result) if type(result) is bytes else (DONE, _pickling.dumps(result))
        except BaseException as error:  # noqa: BLE001  # a call must not end its worker by raising
            self.send()
            return FAILED, _pickling.dumps(portable(error))

    def leave(self, answer: bytes) -> tuple[int, int]:
        """:return: where it lies, and its bytes."""
        at = int(self._cells[KEPT])
        write(self._fd, answer, at)
        return at, len(answer)

    def run(self, task: Callable[[Any], Any], items: Sequence[Any]) -> Ran:
        self._parts.clear()
        self.begin()
        try:
            rest = super().run(task, items)
            return joined([*self._parts, rest])
        finally:
            self._parts.clear()

    def _send_part(self, ran: Ran) -> None:
        self._parts.append(ran)
        try:
            data = _pickling.dumps(ran)
        except Exception:  # noqa: BLE001  # whatever its pickling raises
            data = _pickling.dumps(_pickling.without_unpicklable(ran))
        self._keep(PART, data)

    def _declare(self, path: str, unfinished: bool) -> None:
        self._keep(MADE if unfinished else GONE, os.fsencode(path))

    def _keep(self, kind: bytes, data: bytes) -> None:
        # An item's own threads may declare files too. What finds no room is only missed after a death.
        with self._keeping, contextlib.suppress(OSError):
            at = int(self._cells[KEPT])
            end = write(self._fd, RECORD.pack(kind, len(data)) + data, at)
            self._cells[KEPT] = end  # last: what is not whole does not count


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")
