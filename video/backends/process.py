"""Worker processes, one pipe and one parent thread each.

    submit -> [queue] -> seat's thread --pipe--> its child
                                       <-------- result, or the end of the pipe: the child is dead

A pipe of its own for each child means that a kill can corrupt nothing that others use. A child that dies
fails the call that it was on; the seat starts another child for the next. On Linux the children are
forked by a small server (`_nursery`); elsewhere, or on request, each is a new interpreter. Neither imports
the user's `__main__` again, so a script needs no `if __name__ == "__main__"`. Starting and killing is in
`_children`, the child's own half in `_worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import video.scope as scope
from video.backends import _pickling, _worker
from video.backends._children import LEAVE_SECONDS, Child, Nursery, SpawnedChild
from video.backends._pool import Call, Pool, Seat
from video.backends.base import Traits, arrived
from video.config import ParallelConfig
from video.errors import BackendUnavailable, NotPicklable, RemoteTraceback, WorkerDied

LOAD_SECONDS = 60.0
"""How long a worker may take to import what a call needs before its time limit starts all the same."""
TRANSFER_SECONDS = 600.0
"""How long a result may take to cross: the time limit is for the item, not for the size of its result."""
STILLBORN_SECONDS = 10.0
"""After this long without a child that died before it was ready, earlier ones are forgotten."""


class ProcessSeat(Seat):
    def __init__(self) -> None:
        super().__init__()
        self.child: Child | None = None
        self.unfinished: set[str] = set()


class ProcessExecutor(Pool):
    def __init__(self, workers: int, config: ParallelConfig) -> None:
        super().__init__(workers, "video-process")
        self._threads = config.threads_per_worker or max(1, scope.usable_cpus() // workers)
        self._preload = config.preload
        self._timed = config.timeout is not None
        self._stillborn: list[float] = []
        """When children died before they were ready."""
        self._nursery: Nursery | None = None
        self._starting = threading.Lock()
        if (config.start_method or _default_start_method()) == "forkserver":
            self._nursery = self._start_nursery()

    def make_seat(self) -> ProcessSeat:
        return ProcessSeat()

    def run(self, call: Call, seat: Seat) -> Any:
        assert isinstance(seat, ProcessSeat)
        message = _pickling.dumps((call.fn, call.args))
        try:
            return self._ask(call, seat, message)
        except _Unreadable:
            # Something of __main__, which a worker does not import: send it by value.
            message = _pickling.dumps_by_value((call.fn, call.args))
        try:
            return self._ask(call, seat, message)
        except _Unreadable as error:
            text = str(error)
            raise NotPicklable(
                f"does not unpickle in a worker process ({text.strip().splitlines()[-1]})",
                cure="Pass plain data such as paths, or use the thread engine.",
            ) from RemoteTraceback(text)

    def _ask(self, call: Call, seat: ProcessSeat, message: bytes) -> Any:
        tag, body = self._exchange(call, seat, message)
        if tag == _worker.UNREADABLE:
            raise _Unreadable(body.decode("utf-8", "replace"))
        try:
            value = _pickling.loads(body)
        except Exception as error:
            raise NotPicklable(
                f"the result does not unpickle ({type(error).__name__}: {error})",
                cure="Return plain data, or use the thread engine.",
            ) from error
        if tag == _worker.FAILED:
            raise arrived(*value)
        return value

    def _exchange(self, call: Call, seat: ProcessSeat, message: bytes) -> tuple[bytes, bytes]:
        """Send the call, and return the tag and the body of its answer."""
        for last_try in (False, True):
            connection = self._connection(seat)
            try:
                if self._timed:
                    call.began = time.monotonic() + LOAD_SECONDS
                    connection.send_bytes(_worker.TIMED_CALL + message)
                else:
                    call.began = time.monotonic()
                    connection.send_bytes(_worker.CALL + message)
                break
            except OSError:
                # It most likely died while it had nothing to do, which is not this call's fault.
                death = self._bury(seat)
                if last_try:
                    raise death from None
        return self._answer(call, seat, connection)

    def _answer(self, call: Call, seat: ProcessSeat, connection: Connection) -> tuple[bytes, bytes]:
        while True:
            try:
                answer = connection.recv_bytes()
            except (EOFError, OSError):
                raise self._bury(seat) from None
            tag, body = answer[:1], answer[1:]
            if tag == _worker.MADE:
                seat.unfinished.add(os.fsdecode(body))
            elif tag == _worker.GONE:
                seat.unfinished.discard(os.fsdecode(body))
            elif tag == _worker.REPORT:
                (fraction,) = _worker.FRACTION.unpack_from(body)
                call.report(fraction, body[_worker.FRACTION.size :].decode())
            elif tag == _worker.BEGAN:
                call.began = time.monotonic()
            elif tag == _worker.ENDED:
                call.began = time.monotonic() + TRANSFER_SECONDS
            else:
                return tag, body

    def _connection(self, seat: ProcessSeat) -> Connection:
        """The pipe to a child of this seat that is ready for a call."""
        while seat.child is None:
            if len(self._stillborn) > 2 * self._workers + 2:
                self._stillborn.clear()  # for the next batch
                raise BackendUnavailable(
                    "worker processes die before they are ready",
                    cure="Look at what they wrote to standard error, or use the thread engine.",
                )
            seat.child = self._start_child()
            if seat.lost:  # killed before there was a child to kill
                raise self._bury(seat)
            try:
                seat.child.connection.recv_bytes()  # READY
            except (EOFError, OSError):
                now = time.monotonic()
                self._stillborn = [then for then in self._stillborn if now - then < STILLBORN_SECONDS] + [now]
                self._bury(seat)
                if seat.lost:
                    raise WorkerDied("it was given up while its worker started") from None
                time.sleep(0.05 * len(self._stillborn))  # what it lacks may be there again in a moment
            else:
                self._stillborn.clear()
        return seat.child.connection

    def _start_child(self) -> Child:
        if self._nursery is None:
            return SpawnedChild(self._threads)
        with self._starting:
            if self._nursery.lost and not self._closed:
                self._nursery.close()
                self._nursery = self._start_nursery()
            return self._nursery.fork()

    def _start_nursery(self) -> Nursery:
        try:
            return Nursery(self._preload, self._threads)
        except OSError as error:
            raise BackendUnavailable(f"the fork server cannot start ({error})") from error

    def _bury(self, seat: ProcessSeat) -> WorkerDied:
        """Clear away a dead child and what it left unfinished, and say how it died."""
        child, seat.child = seat.child, None
        code = None
        if child is not None:
            child.kill()  # a pipe that ended without a death is of no use either
            code = child.exit_code(LEAVE_SECONDS)
            child.dismiss()
        for path in seat.unfinished:
            scope.remove(path)
        seat.unfinished.clear()
        return WorkerDied(_how_it_died(code), exitcode=code)

    def stop(self, seat: Seat) -> None:
        assert isinstance(seat, ProcessSeat)
        child = seat.child
        if child is not None:
            child.kill()

    def leave(self, seat: Seat) -> None:
        assert isinstance(seat, ProcessSeat)
        child, seat.child = seat.child, None
        if child is not None:
            child.dismiss()
            if child.exit_code(LEAVE_SECONDS) is None:
                child.kill()
                child.exit_code(LEAVE_SECONDS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait and self._nursery is not None:
            self._nursery.close()


class _Unreadable(Exception):
    """A call did not unpickle in the worker."""


def _default_start_method() -> str:
    return "forkserver" if sys.platform == "linux" else "spawn"


def _how_it_died(code: int | None) -> str:
    if code is None:
        return "its worker process died"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its worker process was killed by {signal.Signals(-code).name}"
    return f"its worker process ended with exit code {code}"


class ProcessBackend:
    traits: ClassVar[Traits] = Traits(
        start=0.075, call=5.5e-5, own_gil=True, pickles=True, coroutines=False, kills=True, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> ProcessExecutor:
        if sys.platform == "win32":
            raise BackendUnavailable("needs Linux or macOS", subject="process", cure="Use the thread engine.")
        return ProcessExecutor(workers, self._config)
