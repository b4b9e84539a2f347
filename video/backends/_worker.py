"""The child's half of the process engine: take a call from the pipe, run it, send the answer, repeat.

    parent -> child   SETUP pickled Setup, once
                      CALL pickled (fn, args)
    child -> parent   READY, once it is set up | BROKEN text: its initializer failed
                      PART pickled Ran: results of a chunk that has not ended
                      DONE pickled result | FAILED pickled (error, traceback text)
                      UNREADABLE text: the call did not unpickle here
                      REPORT struct FRACTION, text: how far the item is
                      NOTE pickled tuple: a log record, print or warning (`_forward`)
                      FULL: it holds more memory than it may, and asks to be replaced after this call
                      MADE path / GONE path: an unfinished file, for the parent to remove if we are killed

Which item it is on it writes on its board (`_board`). The end of the pipe is the order to leave.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from collections import namedtuple

import video.scope as scope
from video.backends import _pickling
from video.backends._board import Desk
from video.backends._chunk import Ran, portable
from video.backends._wire import Wire
from video.errors import ItemCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NamedTuple, NoReturn

SETUP, CALL = b"s", b"c"
READY, BROKEN, PART, DONE, FAILED, UNREADABLE = b"r", b"b", b"t", b"d", b"f", b"u"
REPORT, NOTE, MADE, GONE, FULL = b"p", b"n", b"m", b"g", b"l"
FRACTION = struct.Struct("<d")

PARENT_CHECK_SECONDS = 1.0
GRACE_SECONDS = 1.0
"""How long a worker whose parent is gone may take to remove its unfinished files."""

if TYPE_CHECKING:

    class Setup(NamedTuple):
        """What a worker is told before its first call."""

        levels: dict[str, int]
        """Of the caller's loggers, see `_forward.levels`."""
        hooks: bytes
        """Pickled (initializer, finalizer); empty: there are none."""
        memory_bytes: float
        """Resident memory above which it asks to be replaced; 0: never."""
        collects: bool
        """It collects garbage before that."""

else:
    Setup = namedtuple("Setup", "levels hooks memory_bytes collects")


def serve(end: socket.socket, board_fd: int) -> None:
    """Answer calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave_item)
    wire = Wire(end)
    _, body, _ = wire.receive()
    worker = _Worker(wire, board_fd, _pickling.loads(body))
    try:
        worker.serve()
    except (EOFError, OSError):
        worker.leave()  # dismissed, or the parent is gone
    except ItemCancelled:
        return


def _leave_item(*_: object) -> NoReturn:
    """SIGTERM: unwind what runs, so that its unfinished files go; the pipe's end then ends the worker."""
    raise ItemCancelled("its worker was told to end")


class _Worker:
    def __init__(self, wire: Wire, board_fd: int, setup: Setup) -> None:
        self._wire = wire
        self._sending = threading.Lock()
        self._desk = Desk(board_fd, self._send_part)
        os.close(board_fd)
        self._setup = setup
        self._finalizer: Callable[[], object] | None = None
        scope.enter(
            scope.Slot(
                declare=lambda path, unfinished: self._send(MADE if unfinished else GONE, os.fsencode(path)),
                listener=lambda fraction, words: self._send(
                    REPORT, FRACTION.pack(fraction) + words.encode("utf-8", "replace")
                ),
                board=self._desk,
            )
        )
        from video.backends._forward import Forwarding

        self._forwarding = Forwarding(self._tell, setup.levels)

    def serve(self) -> None:
        self._forwarding.start()
        if self._setup.hooks:
            try:
                initializer, self._finalizer = _pickling.loads(self._setup.hooks)
                if initializer is not None:
                    initializer()
            except BaseException:  # noqa: BLE001  # whatever it raises, the parent is to know
                self._send(BROKEN, _traceback().encode("utf-8", "replace"))
                return
        self._send(READY, b"")
        while True:
            _, body, buffers = self._wire.receive()
            self._answer(body, buffers)
            # Nothing of a call may outlive it here: its buffers belong to the parent's segments.
            del body, buffers

    def leave(self) -> None:
        """The finalizer, on leaving in peace."""
        self._forwarding.stop()  # nobody reads the pipe any more
        if self._finalizer is not None:
            try:
                self._finalizer()
            except BaseException:  # noqa: BLE001  # nobody is left to tell but who reads standard error
                print(_traceback(), file=sys.__stderr__)

    def _send(self, tag: bytes, body: bytes, buffers: Any = ()) -> None:
        with self._sending:  # an item's own threads may declare files too
            self._wire.send(tag, body, buffers)

    def _send_part(self, ran: Ran) -> None:
        packed = _packed(ran)
        self._send(PART, packed.body, packed.buffers)

    def _tell(self, note: Any) -> None:
        self._send(NOTE, pickle.dumps(note, 5))

    def _answer(self, body: Any, buffers: Any) -> None:
        try:
            fn, args = _pickling.loads(body, buffers=buffers)
        except Exception:  # noqa: BLE001  # unpickling runs foreign code, which may raise anything
            self._send(UNREADABLE, _traceback().encode("utf-8", "replace"))
            return
        del body, buffers
        self._desk.begin()
        tag = DONE
        try:
            result = fn(*args)
        except BaseException as error:  # noqa: BLE001  # a call must not end its worker by raising
            tag, result = FAILED, portable(error)
        self._desk.send()
        del fn, args
        self._forwarding.flush()
        if self._setup.memory_bytes and self._is_full():
            self._send(FULL, b"")
        try:
            packed = _packed(result)
        except Exception as error:  # noqa: BLE001
            tag, packed = FAILED, _pickling.pack(portable(error))
        self._send(tag, packed.body, packed.buffers)

    def _is_full(self) -> bool:
        full = _resident_bytes() > self._setup.memory_bytes
        if full and self._setup.collects:
            gc.collect()
            full = _resident_bytes() > self._setup.memory_bytes
        return full


def _packed(result: Any) -> _pickling.Packed:
    """The result for the pipe. Of a chunk, a value that cannot be pickled becomes an error of its item."""
    if not isinstance(result, Ran):
        return _pickling.pack(result)
    try:
        return _pickling.pack(result)
    except Exception:  # noqa: BLE001  # whatever its pickling raises
        return _pickling.pack(_pickling.without_unpicklable(result))


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # macOS: the largest so far stands for it
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _traceback() -> str:
    import traceback

    return traceback.format_exc()


PROGRAM = "__import__('sys').path[:] = __import__('sys').argv[4:]; "
PROGRAM += "__import__('video.backends._worker', fromlist=['main']).main()"
"""Binds no names in `__main__`, as in `_nursery`."""


def command(path: list[str], fd: int, board_fd: int) -> list[str]:
    """The command line of a worker with an interpreter of its own; `fd` is its end of the pipe."""
    return [sys.executable, "-c", PROGRAM, str(fd), str(board_fd), str(os.getpid()), *path]


def main() -> None:
    fd, board_fd, parent = map(int, sys.argv[1:4])
    die_with(parent)
    serve(socket.socket(fileno=fd), board_fd)


def die_with(parent: int) -> None:
    """Start a thread that kills this worker and its children once its parent is gone, even in the middle of
    an item."""
    threading.Thread(target=_watch, args=(parent,), name="video-parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
