"""The child's half of the process engine: take a call from the pipe, run it, send the answer, repeat.

Messages are one tag byte and a body.

    parent -> child   CALL pickled (fn, args) | TIMED_CALL the same
    child -> parent   READY, once
                      BEGAN, of a timed call, once it is unpickled and all that it needs is imported
                      ENDED, of a timed call, before its result is pickled and sent
                      DONE pickled result | FAILED pickled (error, traceback text)
                      UNREADABLE text: the call did not unpickle here
                      REPORT struct FRACTION, text: how far the item is
                      MADE path / GONE path: an unfinished file, for the parent to remove if we are killed

The end of the pipe is the order to leave.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NoReturn

import video.scope as scope
from video.backends import _pickling
from video.backends.base import Ran, portable, without_unpicklable
from video.errors import ItemCancelled

CALL, TIMED_CALL = b"c", b"t"
READY, BEGAN, ENDED, DONE, FAILED, UNREADABLE = b"r", b"b", b"e", b"d", b"f", b"u"
REPORT, MADE, GONE = b"p", b"m", b"g"
FRACTION = struct.Struct("<d")

PARENT_CHECK_SECONDS = 1.0
GRACE_SECONDS = 1.0
"""How long a worker whose parent is gone may take to remove its unfinished files."""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Read by native libraries when they are loaded; the same list as joblib's, so that users can compare."""


def thread_environment(threads: int, environ: dict[str, str]) -> dict[str, str]:
    """Variables that hold native libraries to `threads`; what the user set himself stays."""
    return {name: str(threads) for name in THREAD_VARIABLES if name not in environ}


def serve(connection: Connection) -> None:
    """Answer calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave_item)
    sending = threading.Lock()

    def send(tag: bytes, body: bytes) -> None:
        with sending:  # an item's own threads may declare files too
            connection.send_bytes(tag + body)

    def declare(path: str, unfinished: bool) -> None:
        send(MADE if unfinished else GONE, os.fsencode(path))

    def listener(fraction: float, words: str) -> None:
        send(REPORT, FRACTION.pack(fraction) + words.encode("utf-8", "replace"))

    scope.enter(scope.Slot(declare=declare, listener=listener))
    try:
        send(READY, b"")
        while True:
            send(*_answer(connection.recv_bytes(), send))
    except (EOFError, OSError, ItemCancelled):
        return  # dismissed, or the parent is gone


def _leave_item(*_: object) -> NoReturn:
    """SIGTERM: unwind what runs, so that its unfinished files go; the pipe's end then ends the worker."""
    raise ItemCancelled("its worker was told to end")


def _answer(message: bytes, send: Callable[[bytes, bytes], None]) -> tuple[bytes, bytes]:
    try:
        fn, args = _pickling.loads(message[1:])
    except Exception:  # noqa: BLE001  # unpickling runs foreign code, which may raise anything
        return UNREADABLE, traceback.format_exc().encode("utf-8", "replace")
    timed = message[:1] == TIMED_CALL
    if timed:
        send(BEGAN, b"")
    del message
    try:
        result = fn(*args)
    except BaseException as error:  # noqa: BLE001  # a call must not end its worker by raising
        return FAILED, _pickling.dumps(portable(error))
    if timed:
        send(ENDED, b"")
    try:
        return DONE, _pickling.dumps(result)
    except Exception as error:  # noqa: BLE001
        if isinstance(result, Ran):
            return DONE, _pickling.dumps(without_unpicklable(result, _pickling.dumps))
        return FAILED, _pickling.dumps(portable(error))


PROGRAM = "__import__('sys').path[:] = __import__('json').loads(__import__('sys').argv[1]); "
PROGRAM += "__import__('video.backends._worker', fromlist=['main']).main()"
"""Binds no names in `__main__`, as in `_nursery`."""


def command(path: list[str], fd: int) -> list[str]:
    """The command line of a worker with an interpreter of its own; `fd` is its end of the pipe."""
    return [sys.executable, "-c", PROGRAM, json.dumps(path), str(fd), str(os.getpid())]


def main() -> None:
    fd, parent = int(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_die_with, args=(parent,), name="video-parent-watch", daemon=True).start()
    serve(Connection(fd))


def _die_with(parent: int) -> None:
    """Kill this worker and its children once its parent is gone, even in the middle of an item."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
