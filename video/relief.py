"""Someone else looks after a batch while the caller's own thread runs an item: but only once it takes long.

    caller    Relief(drive) -> runs the item -> end()
    watcher   one thread of the program; starts a driver when `PATIENCE` is over and the item is not
    driver    drive(relief), until `relief.over`

To start a thread takes as long as hundreds of short items, so most batches must do without.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from threading import Lock

PATIENCE = 0.001
"""Seconds after which an item takes long."""
IDLE_SECONDS = 1.0
"""The watcher ends when it had nothing to do for so long."""


class Relief:
    """`drive` is called in another thread, unless `end` comes within `PATIENCE` seconds.

    :param drive: has to return soon once `over` is set.
    :param wake: makes it look.
    """

    def __init__(self, drive: Callable[[Relief], None], wake: Callable[[], None]) -> None:
        self.over = False
        self._drive = drive
        self._wake = wake
        self._error: BaseException | None = None
        self._claim = Lock()
        """Taken by the driver when it begins, or by the end, which then has nobody to wait for."""
        self._driven = Lock()
        """Held while somebody drives."""
        self._pid = os.getpid()
        self._due = time.monotonic() + PATIENCE
        _watch(self)

    def end(self) -> None:
        """The item is done; on return nobody drives any more.

        :raises BaseException: what `drive` raised.
        """
        self.over = True
        if self._claim.acquire(blocking=False) or os.getpid() != self._pid:
            return  # nobody has begun; or the item forked, and the driver is the parent's
        self._wake()
        with self._driven:
            pass
        if self._error is not None:
            raise self._error

    def _begin(self) -> None:
        """In the watcher's thread."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._driven.acquire()  # first: who finds the claim taken, waits for this
        if not self._claim.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._run, name="video-driver", daemon=True).start()
        except RuntimeError:  # no thread is to be had: then the others wait for this item
            self._driven.release()

    def _run(self) -> None:
        try:
            self._drive(self)
        except BaseException as error:  # noqa: BLE001  # it is the caller's, whose work this was
            self._error = error
        finally:
            self._driven.release()


class _Watcher:
    """The thread of this process that starts drivers."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._reliefs: queue.SimpleQueue[Relief] = queue.SimpleQueue()
        self._runs = False

    @property
    def here(self) -> bool:
        """False after a fork: threads do not come along."""
        return self._pid == os.getpid()

    def watch(self, relief: Relief) -> None:
        with self._lock:
            self._reliefs.put(relief)
            if not self._runs:
                with contextlib.suppress(RuntimeError):  # no thread is to be had
                    threading.Thread(target=self._serve, name="video-watcher", daemon=True).start()
                    self._runs = True

    def _serve(self) -> None:
        while True:
            try:
                self._reliefs.get(timeout=IDLE_SECONDS)._begin()
            except queue.Empty:
                with self._lock:
                    if self._reliefs.empty():
                        self._runs = False
                        return


_watcher = _Watcher()


def _watch(relief: Relief) -> None:
    global _watcher
    if not _watcher.here:
        _watcher = _Watcher()
    _watcher.watch(relief)
