"""A pool of threads that take calls from one queue: the thread engine itself, and the parent's half of
the process engine (one thread for each child).

    submit -> [queue] -> thread of a seat -> run(call, seat) -> the call, which is its own future

A seat is one worker's place. A call that is killed takes its seat with it: the thread may hang for ever,
so it is written off, and another takes its place.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import video.scope as scope
from video.errors import BackendUnavailable, described
from video.events import logger

LOST_SECONDS = 3.0
"""How long closing waits for threads that were given up; one stuck in foreign code never ends."""


class Call(Future[Any]):
    """A call and its future in one."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self.fn = fn
        self.args = args
        self.began: float | None = None
        self.seat: Seat | None = None
        self.listener: Callable[[float, str], None] | None = None

    def report(self, fraction: float, words: str) -> None:
        if self.listener is not None:
            self.listener(fraction, words)


class Seat:
    """One worker's place."""

    def __init__(self) -> None:
        self.slot = scope.Slot()
        self.lost = False
        self.broken: BaseException | None = None
        """What its initializer raised."""
        self.call: Call | None = None
        self.thread: threading.Thread | None = None


class Pool:
    """Threads on demand, up to `workers`. Subclasses say how a seat is made, runs a call and is left."""

    def __init__(
        self,
        workers: int,
        name: str,
        initializer: Callable[[], object] | None = None,
        finalizer: Callable[[], object] | None = None,
    ) -> None:
        """:param initializer, finalizer: called in each thread before its first call, and on its leaving."""
        self._workers = workers
        self._initializer = initializer
        self._finalizer = finalizer
        self._names = (f"{name}-{number}" for number in itertools.count())
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._seats: set[Seat] = set()
        self._lost: set[Seat] = set()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Call:
        call = Call(fn, args)
        with self._lock:
            if self._closed:
                raise RuntimeError("this executor is closed")
            self._queue.put(call)
            if not self._idle.acquire(blocking=False) and len(self._seats) < self._workers:
                self._add_seat()
        return call

    @property
    def idle(self) -> bool:
        """Nothing runs, not even what was given up."""
        with self._lock:
            return not self._lost and all(seat.call is None for seat in self._seats)

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        assert isinstance(call, Call)
        return None if call.began is None else (0, call.began)

    def watch(self, call: Future[Any], listener: Callable[[float, str], None]) -> None:
        """Pass on what the call reports; `listener` is called in another thread."""
        assert isinstance(call, Call)
        call.listener = listener

    def kill(self, call: Future[Any]) -> None:
        """Give up a running call; a call that has ended, or still waits, is left as it is."""
        assert isinstance(call, Call)
        with self._lock:
            seat = call.seat
            if seat is None or seat.lost:
                return
            self._give_up(seat)
            if not self._closed:
                self._add_seat()
        self.stop(seat)

    def _give_up(self, seat: Seat) -> None:
        seat.lost = True
        self._seats.discard(seat)
        self._lost.add(seat)
        seat.slot.cancelled.set()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads. With `cancel_futures`, what waits is cancelled, and what runs is given up."""
        busy: list[Seat] = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                for call in self._waiting():
                    call.cancel()
                busy = [seat for seat in self._seats if seat.call is not None]
                for seat in busy:
                    self._give_up(seat)
            seats, lost = list(self._seats), list(self._lost)
            for _ in seats:
                self._queue.put(None)
        for seat in busy:
            self.stop(seat)
        if wait:
            for seat in seats:
                _join(seat)
            # They were told to stop and may be removing their unfinished files.
            deadline = time.monotonic() + LOST_SECONDS
            for seat in lost:
                _join(seat, max(0.0, deadline - time.monotonic()))

    def _waiting(self) -> list[Call]:
        """Take all calls that no seat has."""
        calls: list[Call] = []
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._queue.get_nowait()
                if call is not None:
                    calls.append(call)
        return calls

    def _add_seat(self) -> None:
        """One more, if there is room for it; without any, what waits fails."""
        seat = None
        try:
            seat = self.make_seat()
            # A daemon: a task that never ends must not keep the interpreter from ending.
            seat.thread = threading.Thread(
                target=self._work, args=(seat,), name=next(self._names), daemon=True
            )
            seat.thread.start()
        except (OSError, RuntimeError) as error:  # no descriptor, no memory, no thread to be had
            if seat is not None:
                seat.lost = True  # nothing was initialized in it
                self.leave(seat)
            if not self._seats:
                reason = BackendUnavailable(f"no worker can be started ({error})")
                for call in self._waiting():
                    if call.set_running_or_notify_cancel():
                        call.set_exception(reason)
        else:
            self._seats.add(seat)

    def _work(self, seat: Seat) -> None:
        scope.enter(seat.slot)
        try:
            self._initialize(seat)
            while not seat.lost:
                try:
                    call = self._queue.get_nowait()
                except queue.Empty:
                    self._idle.release()
                    call = self._queue.get()
                if call is None:
                    return
                if not self._begin(call, seat):
                    continue
                try:
                    if seat.broken is not None:
                        raise initializer_failed(seat.broken)
                    result = self.run(call, seat)
                except BaseException as error:  # noqa: BLE001  # it belongs to the call, not to this thread
                    self._end(call, seat)
                    call.set_exception(error)
                else:
                    self._end(call, seat)
                    call.set_result(result)
                    del result
                del call
        finally:
            with self._lock:
                self._seats.discard(seat)
                self._lost.discard(seat)
            self.leave(seat)

    def _initialize(self, seat: Seat) -> None:
        if self._initializer is not None:
            try:
                self._initializer()
            except BaseException as error:  # noqa: BLE001  # every call of this seat will say so
                seat.broken = error

    def _begin(self, call: Call, seat: Seat) -> bool:
        # In one step, so that there is no moment in which a running call cannot be killed.
        with self._lock:
            if self._closed and seat.lost:
                call.cancel()
            if not call.set_running_or_notify_cancel():
                return False
            call.seat, seat.call = seat, call
            return True

    def _end(self, call: Call, seat: Seat) -> None:
        with self._lock:  # from here on, a kill that comes too late hits nobody else
            call.seat = seat.call = None

    def make_seat(self) -> Seat:
        return Seat()

    def run(self, call: Call, seat: Seat) -> Any:
        seat.slot.listener = call.report
        call.began = time.monotonic()
        return call.fn(*call.args)

    def stop(self, seat: Seat) -> None:
        """Make a killed seat's call end, if that can be done. Called from another thread."""

    def leave(self, seat: Seat) -> None:
        """A seat's thread ends. Called in that thread."""
        if self._finalizer is not None and not seat.lost and seat.broken is None:
            try:
                self._finalizer()
            except Exception:  # noqa: BLE001  # it is the user's code, and nobody waits for it
                logger.exception("the finalizer of a worker thread failed")


def initializer_failed(error: BaseException) -> BackendUnavailable:
    failure = BackendUnavailable(f"the initializer of its workers failed ({described(error)})")
    failure.__cause__ = error
    return failure


def _join(seat: Seat, timeout: float | None = None) -> None:
    if seat.thread is not None and seat.thread is not threading.current_thread():
        seat.thread.join(timeout)
