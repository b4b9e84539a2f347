"""The process engine's executor: what the thread of a worker's seat does with a call. See `process`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import video.scope as scope
from video.backends import _board, _forward, _memory, _nursery, _pickling, _worker
from video.backends._children import LEAVE_SECONDS, Child, Nursery, SpawnedChild
from video.backends._chunk import ChunkLost, Ran, arrived, joined
from video.backends._pool import Call, Pool, Seat
from video.config import ParallelConfig
from video.errors import BackendUnavailable, NotPicklable, RemoteTraceback, WorkerDied, WorkerOutOfMemory

LOAD_SECONDS = 60.0
"""How long a worker may take to import what a call needs before its time limit starts all the same."""
TRANSFER_SECONDS = 600.0
"""How long a result may take to cross: the time limit is for the item, not for the size of its result."""
STILLBORN_SECONDS = 10.0
"""After this long without a child that died before it was ready, earlier ones are forgotten."""


class ProcessSeat(Seat):
    def __init__(self) -> None:
        super().__init__()
        fd = _board.create()
        try:
            self.board = _board.Board(fd)
        except OSError:
            os.close(fd)
            raise
        self.board_fd = fd
        self.child: Child | None = None
        self.ran = 0
        """Items that the child has run."""
        self.full = False
        """The child holds too much memory."""
        self.starved = ""
        """Why the child was ended for want of memory."""
        self.unfinished: set[str] = set()


class ProcessExecutor(Pool):
    packs = True
    """Pickles calls and results itself, whatever they hold."""

    def __init__(
        self, workers: int, threads: int, config: ParallelConfig, launched: _nursery.Launched | None
    ) -> None:
        """
        :param threads: native threads of each worker.
        :param launched: a fork server; None: each worker is a new interpreter.
        """
        super().__init__(workers, "video-process")
        self._threads = threads
        self._config = config
        hooks = config.initializer, config.finalizer
        self._setup = _worker.Setup(
            _forward.levels(),
            _pickling.dumps_by_value(hooks) if any(hooks) else b"",
            _most_memory(config, workers),
            config.enable_garbage_collection,
        )
        self._stillborn: list[float] = []
        """When children died before they were ready."""
        self._memory_deaths = _memory.deaths()
        self._nursery = None if launched is None else Nursery(launched)
        # A program that ends in a hurry (a second Ctrl-C) does not wait for the threads that clear away.
        weakref.finalize(self, _clear_away, os.getpid(), self._seats, self._lost)
        self._starting = threading.Lock()

    def make_seat(self) -> ProcessSeat:
        return ProcessSeat()

    def running(self, call: Any) -> tuple[int, float] | None:
        """A worker that still imports what the call needs, or already sends what it returned, has its
        clock put off."""
        seat = call.seat
        if seat is None or call.began is None:
            return None
        try:
            state, position, since = seat.board.state()
        except ValueError:  # the seat has just been left
            return None
        if state == _board.NOT_BEGUN:
            return 0, call.began + LOAD_SECONDS
        return position, since if state == _board.RUNNING else since + TRANSFER_SECONDS

    def run(self, call: Call, seat: Seat) -> Any:
        assert isinstance(seat, ProcessSeat)
        packed = _pickling.pack((call.fn, call.args))
        try:
            return self._ask(call, seat, packed)
        except _Unreadable:
            # Something of __main__, which a worker does not import: send it by value.
            packed = _pickling.pack_by_value((call.fn, call.args))
        try:
            return self._ask(call, seat, packed)
        except _Unreadable as error:
            text = str(error)
            raise NotPicklable(
                f"does not unpickle in a worker process ({text.strip().splitlines()[-1]})",
                cure="Pass plain data such as paths, or use the thread engine.",
            ) from RemoteTraceback(text)

    def _ask(self, call: Call, seat: ProcessSeat, packed: _pickling.Packed) -> Any:
        """Send the call, and return what it returned; of a chunk, all parts together."""
        limit = self._config.max_items_per_worker
        items = sum(len(part) for part in call.args if type(part) is list)
        if limit is not None and seat.ran and seat.ran + items > limit:
            self._dismiss(seat)
        for last_try in (False, True):
            child = self._ready_child(seat)
            seat.board.reset()
            call.began = time.monotonic()
            try:
                child.wire.send(_worker.CALL, packed.body, packed.buffers)
                break
            except OSError:
                # It most likely died while it had nothing to do, which is not this call's fault.
                error = self._bury(seat)
                if last_try:
                    raise ChunkLost(error, Ran([], [], [])) from None
        parts: list[Ran] = []
        while True:
            try:
                tag, body, buffers = child.wire.receive()
            except (EOFError, OSError):
                raise self._chunk_lost(seat, parts) from None
            if tag == _worker.PART:
                parts.append(self._part(seat, parts, tag, body, buffers))
            elif tag in (_worker.DONE, _worker.FAILED, _worker.UNREADABLE):
                break
            else:
                self._hear(call, seat, tag, body)
        if tag == _worker.UNREADABLE:
            raise _Unreadable(bytes(body).decode("utf-8", "replace"))
        value = self._part(seat, parts, tag, body, buffers)
        if isinstance(value, Ran):
            value = joined([*parts, value])
            seat.ran += len(value.values)
        else:
            seat.ran += 1
        if seat.full or (limit is not None and seat.ran >= limit):
            self._dismiss(seat)
        if tag == _worker.FAILED:
            raise arrived(*value)
        return value

    def _hear(self, call: Call, seat: ProcessSeat, tag: bytes, body: Any) -> None:
        """What a worker says beside its results."""
        if tag == _worker.MADE:
            seat.unfinished.add(os.fsdecode(bytes(body)))
        elif tag == _worker.GONE:
            seat.unfinished.discard(os.fsdecode(bytes(body)))
        elif tag == _worker.REPORT:
            (fraction,) = _worker.FRACTION.unpack_from(body)
            call.report(fraction, bytes(body[_worker.FRACTION.size :]).decode())
        elif tag == _worker.NOTE:
            _forward.replay(_pickling.loads(body))
        elif tag == _worker.FULL:
            seat.full = True

    def _part(self, seat: ProcessSeat, parts: list[Ran], tag: bytes, body: Any, buffers: Any) -> Any:
        """What came up the pipe. Where a chunk's last part does not unpickle, its others are on the board.

        :raises ChunkLost: if an earlier part does not.
        """
        try:
            return _pickling.loads(body, buffers=buffers)
        except Exception as error:  # noqa: BLE001  # whatever the result's own code raises
            failure = _board.unreadable(error)
            failure.__cause__ = error
        if tag == _worker.PART:  # the board is at later items by now: what has not arrived runs again
            self._bury(seat)
            raise ChunkLost(failure, joined(parts), certain=False)
        ran = seat.board.records(sum(len(part.values) for part in parts))
        if not all(text for _, _, text in ran.errors):
            return ran  # what does not unpickle is one of those on the board
        ran.errors.append((len(ran.values), failure, ""))
        ran.values.append(None)
        ran.seconds.append(0.0)
        return ran

    def _chunk_lost(self, seat: ProcessSeat, parts: list[Ran]) -> ChunkLost:
        """The child is dead: what its chunk had finished, and which item it was on."""
        error = self._bury(seat)
        finished = joined(parts)
        finished = joined([finished, seat.board.records(len(finished.values))])
        state, position, _ = seat.board.state()
        begun = state in (_board.RUNNING, _board.SENDING) and position >= len(finished.values)
        return ChunkLost(error, finished, position if begun else None)

    def _ready_child(self, seat: ProcessSeat) -> Child:
        """A child of this seat that is ready for a call."""
        while seat.child is None:
            if len(self._stillborn) > 2 * self._workers + 2:
                self._stillborn.clear()  # for the next batch
                raise BackendUnavailable(
                    "worker processes die before they are ready",
                    cure="Look at what they wrote to standard error, or use the thread engine.",
                )
            seat.child = self._start_child(seat)
            if seat.lost:  # killed before there was a child to kill
                raise ChunkLost(self._bury(seat), Ran([], [], []))
            try:
                seat.child.wire.send(_worker.SETUP, _pickling.dumps(self._setup))
                tag, body, _ = seat.child.wire.receive()
                while tag not in (_worker.READY, _worker.BROKEN):
                    self._hear(Call(len, ()), seat, tag, body)  # what its initializer says
                    tag, body, _ = seat.child.wire.receive()
            except (EOFError, OSError):
                now = time.monotonic()
                self._stillborn = [then for then in self._stillborn if now - then < STILLBORN_SECONDS] + [now]
                self._bury(seat)
                if seat.lost:
                    raise ChunkLost(
                        WorkerDied("it was given up while its worker started"), Ran([], [], [])
                    ) from None
                time.sleep(0.05 * len(self._stillborn))  # what it lacks may be there again in a moment
            else:
                if tag == _worker.BROKEN:
                    text = bytes(body).decode("utf-8", "replace")
                    self._bury(seat)
                    raise BackendUnavailable(
                        f"the initializer of its workers failed ({text.strip().splitlines()[-1]})"
                    ) from RemoteTraceback(text)
                self._stillborn.clear()
        return seat.child

    def _start_child(self, seat: ProcessSeat) -> Child:
        seat.ran, seat.full, seat.starved = 0, False, ""
        if self._nursery is None:
            return SpawnedChild(self._threads, self._config.use_numba, seat.board_fd)
        with self._starting:
            if self._nursery.lost and not self._closed:
                self._nursery.close()
                try:
                    self._nursery = Nursery(
                        _nursery.Launched(self._config.preload, self._threads, self._config.use_numba)
                    )
                except OSError as error:
                    raise BackendUnavailable(f"the fork server cannot start ({error})") from error
            return self._nursery.fork(seat.board_fd)

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
        starved, seat.starved = seat.starved, ""
        if starved and not seat.lost:
            return WorkerOutOfMemory(
                f"its worker process was ended, since it held the most ({starved})",
                exitcode=code,
                cure="Raise memory_limit_gb, use fewer workers, or smaller items.",
            )
        if code == -signal.SIGKILL and not seat.lost and self._out_of_memory():
            return WorkerOutOfMemory(
                "the system killed its worker process for want of memory",
                exitcode=code,
                cure="Use fewer workers, or smaller items.",
            )
        return WorkerDied(_how_it_died(code), exitcode=code)

    def _out_of_memory(self) -> bool:
        with self._starting:
            before, self._memory_deaths = self._memory_deaths, _memory.deaths()
            return self._memory_deaths > before

    def relieve(self, size: Callable[[int], float], why: str) -> bool:
        """End the child that holds the most, or one that runs nothing where that holds at least half as much;
        what runs there fails with `WorkerOutOfMemory`.

        :param size: bytes that the process of this id and its children hold.
        :return: whether there was one.
        """
        with self._lock:
            seats = [seat for seat in self._seats if isinstance(seat, ProcessSeat)]
        found = [(size(child.pid), seat, child) for seat in seats if (child := seat.child) and child.pid]
        if not found:
            return False
        _, seat, child = max(found, key=lambda one: one[0] * (1 if one[1].call is not None else 2))
        if seat.child is child:
            seat.starved = why
        child.kill()
        return True

    def _dismiss(self, seat: ProcessSeat) -> None:
        """Let the child go in peace."""
        child, seat.child = seat.child, None
        if child is not None:
            child.dismiss()
            if child.exit_code(LEAVE_SECONDS) is None:
                child.kill()
                child.exit_code(LEAVE_SECONDS)

    def stop(self, seat: Seat) -> None:
        assert isinstance(seat, ProcessSeat)
        child = seat.child
        if child is not None:
            child.kill()

    def leave(self, seat: Seat) -> None:
        assert isinstance(seat, ProcessSeat)
        self._dismiss(seat)
        seat.board.close()
        os.close(seat.board_fd)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self._nursery is None:
            return
        if wait:
            self._nursery.close()
        else:  # the fork server is to end all the same, after the last seat has left
            threading.Thread(target=self.shutdown, name="video-process-end", daemon=True).start()


def _most_memory(config: ParallelConfig, workers: int) -> float:
    """Resident bytes above which a child asks to be replaced: what is set, or its share of the limit; 0: it
    never does."""
    if config.max_worker_memory_mb is not None:
        return config.max_worker_memory_mb * 2**20
    return (config.memory_limit_bytes or 0) / workers


def _clear_away(owner: int, *groups: set[Seat]) -> None:
    """Remove what the children of these seats left unfinished."""
    if os.getpid() != owner:  # what the program has forked must not
        return
    for seat in [seat for group in groups for seat in list(group) if isinstance(seat, ProcessSeat)]:
        for path in list(seat.unfinished):
            scope.remove(path)


class _Unreadable(Exception):
    """A call did not unpickle in the worker."""


def _how_it_died(code: int | None) -> str:
    if code is None:
        return "its worker process died"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its worker process was killed by {signal.Signals(-code).name}"
    return f"its worker process ended with exit code {code}"
