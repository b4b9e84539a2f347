"""A call on a Dask cluster, as its caller has it: what is sent, and what its answers mean.

What it does in its worker is in `_dask_call`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from video.backends import _pickling
from video.backends._dask_call import BROKEN, FAILED, REFUSED, UNREADABLE, Parcel
from video.backends.base import ChunkLost, Ran, arrived
from video.errors import BackendUnavailable, NotPicklable, RemoteTraceback, WorkerDied, described

LARGE_BYTES = 1 << 20
"""Calls larger than this go to a worker as data; in the task graph they would weigh on the scheduler."""

_beginning = threading.Lock()


class Call(Future[Any]):
    """A call and its future in one."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self.call: tuple[Callable[..., Any], tuple[Any, ...]] | None = (fn, args)
        self.packed: Parcel | bytes = b""
        self.by_value = False
        self.number = -1
        """Of its last sending."""
        self.remote: Any = None
        """The cluster's future."""
        self.address: str | None = None
        """Of the worker that it began on."""
        self.started: float | None = None
        self.confirmed = False
        """The scheduler has heard that it begins."""
        self.resent = 0
        self.dropped = False
        """It is given up; its future will soon say so."""
        self.listener: Callable[[float, str], None] | None = None
        self._begun = False

    def begin(self) -> bool:
        """It runs from now on; False: it is cancelled, of which its waiters now hear, or done."""
        with _beginning:
            if self._begun:
                return self.running()
            self._begun = True
            return self.set_running_or_notify_cancel()

    def finish(self, value: Any, error: BaseException | None) -> None:
        if self.begin():
            self.call, self.packed = None, b""  # the caller may keep the future
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)


def sized(parcel: Parcel) -> Parcel | bytes:
    """Small calls travel in the task graph, and have all in one pickle."""
    if sys.getsizeof(parcel) > LARGE_BYTES:
        return parcel
    return _pickling.dumps(parcel.open()) if parcel.buffers else parcel.body


class Unreadable(Exception):
    """A call did not unpickle in the worker."""

    def for_caller(self) -> NotPicklable:
        error = NotPicklable(
            f"does not unpickle in a worker ({str(self).strip().splitlines()[-1]})",
            cure="Pass plain data such as paths, or use the thread engine.",
        )
        error.__cause__ = RemoteTraceback(str(self))
        return error


def value_of(answer: Parcel) -> Any:
    """The result of a call; raises what it raised."""
    if answer.what == REFUSED:
        if answer.body:
            words = bytes(answer.body).decode("utf-8", "replace")
            raise unavailable(f"its scheduler does not say that a call may begin ({words})")
        raise chunk_lost("its worker died, and its result with it", certain=False)
    if answer.what == UNREADABLE:
        raise Unreadable(bytes(answer.body).decode("utf-8", "replace"))
    try:
        value = answer.open()
    except Exception as error:
        raise NotPicklable(
            f"the result does not unpickle ({described(error)})",
            cure="Return plain data, or use the thread engine.",
        ) from error
    if answer.what == FAILED:
        raise arrived(*value)
    if answer.what == BROKEN:
        cause = arrived(*value)
        raise unavailable(f"the initializer failed in a worker ({described(cause)})") from cause
    return value


def chunk_lost(words: str, *, certain: bool = True) -> ChunkLost:
    return ChunkLost(WorkerDied(words), Ran([], [], []), certain=certain)


def without_us(error: BaseException) -> BackendUnavailable:
    return unavailable(
        f"it cannot run the call ({described(error)})",
        cure="Install this package, and what the task needs, on its scheduler and workers.",
    )


def unavailable(words: str, cure: str = "Look at its scheduler and workers.") -> BackendUnavailable:
    return BackendUnavailable(words, subject="the Dask cluster", cure=cure)
