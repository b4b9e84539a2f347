"""loky's worker processes, as joblib has them: for programs that use joblib already.

    submit -> [waiting] -> generation: a loky executor --> worker: the call, in a place of shared memory
           <- answer <---- or the executor is broken, with all its calls

The executor is ours alone, not the one that joblib shares between all callers of a program. It gets a call
only shortly before a worker takes it; what waits, waits here. When one of its workers dies, loky ends them
all, and the next call goes to a new generation. Of each call that was running, its place (`_loky`) tells what
had finished and which item ran: that of the dead worker is to blame, those of its neighbours run again, each
alone if nobody saw which worker died first. Calls that had not begun go to the next generation as if nothing
had happened.

A worker cannot be killed by itself. A call that is given up retires its generation: new calls go to a fresh
one, and when the neighbours of the stuck call are done, the old one's workers are killed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any, ClassVar

import video.scope as scope
from video import resources
from video.backends import _board, _loky, _memory, _nursery, _pickling
from video.backends._guard import Guard
from video.backends.base import ChunkLost, Ran, Traits, arrived, run_packed
from video.config import ParallelConfig
from video.errors import (
    BackendUnavailable,
    NotPicklable,
    RemoteTraceback,
    WorkerDied,
    WorkerOutOfMemory,
)
from video.events import logger

if importlib.util.find_spec("joblib") is None:  # importing it takes long, so that waits until it is used
    raise ModuleNotFoundError("No module named 'joblib'", name="joblib")

LOAD_SECONDS = 60.0
"""How long a worker may take to import what a call needs before its time limit starts all the same."""
TRANSFER_SECONDS = 600.0
"""How long a result may take to cross: the time limit is for the item, not for the size of its result."""
LEAVE_SECONDS = 2.0
"""How long idle workers may take to leave before they are killed, and killed ones to be gone."""
END_SECONDS = 10.0
"""How long closing waits for workers that do not even end when they are killed."""
EACH = 2
"""Calls that loky has for each worker. With one, workers idle on the way to and fro: a call took 0.4 ms
instead of 0.3."""
MOST_STILLBORN = 3
"""Generations in a row of which no worker took a call; the engine has then broken down."""


class _Call(Future[Any]):
    """A call and its future in one. It is pending until its answer is there: nobody says when it is taken."""

    def __init__(self, executor: JoblibExecutor, packed: bytes) -> None:
        super().__init__()
        self.executor = executor
        self.packed = packed
        self.generation: _Generation | None = None
        self.place: _loky.Place | None = None
        self.handed = 0.0
        """`time.monotonic()` when loky got it."""
        self.given_up = False
        self.recalled = False
        """It had not been taken when its generation was retired."""

    def cancel(self) -> bool:
        """Possible until a worker has taken it."""
        if not self.executor.recall(self):
            return self.cancelled()
        cancelled = super().cancel()
        self.set_running_or_notify_cancel()  # tells who waits for it
        return cancelled


class JoblibExecutor:
    def __init__(self, workers: int, config: ParallelConfig) -> None:
        self._owner = os.getpid()
        """What the program forks must not end our workers, nor wait for a lock that nobody there releases."""
        self._workers = workers
        threads = config.threads_per_worker or max(1, resources.usable_cpus() // workers)
        self._environment = _nursery.worker_environment(threads, config.use_numba, dict(os.environ))
        hooks = config.initializer, config.finalizer
        self._hooks = _pickling.dumps_by_value(hooks) if any(hooks) else b""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Told of each call that is answered, and of each generation that has ended."""
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        """Calls that loky has and that are not given up."""
        self._generations: set[_Generation] = set()
        """Those that have not ended."""
        self._newest: _Generation | None = None
        """The one that takes calls."""
        self._ends: list[threading.Thread] = []
        self._closed = False
        self._stillborn = 0
        self._memory_deaths = _memory.deaths()
        self._open()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """
        :raises NotPicklable: if the call cannot cross.
        """
        call = _Call(self, (_pickling.dumps if fn is run_packed else _pickling.dumps_by_value)((fn, args)))
        with self._lock:
            if self._closed:
                raise RuntimeError("this executor is closed")
            self._waiting.append(call)
        self._hand_out()
        return call

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        """A worker that still imports what the call needs, or already sends what it returned, has its
        clock put off."""
        assert isinstance(call, _Call)
        with self._lock:
            if call not in self._running or call.place is None or not call.place.worker():
                return None
            state, position, since = call.place.state()
        if state == _board.NOT_BEGUN:
            return 0, call.handed + LOAD_SECONDS
        return position, since if state == _board.RUNNING else since + TRANSFER_SECONDS

    def recall(self, call: _Call) -> bool:
        """Forget a call; False if a worker may have taken it."""
        if os.getpid() != self._owner:
            return False
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
                return True
            if call not in self._running or call.place is None or not call.place.recall():
                return False
            self._running.discard(call)
            call.given_up = True
        self._hand_out()
        return True

    def kill(self, call: Future[Any]) -> None:
        """Give up a call that runs; its generation ends once its other calls are done."""
        assert isinstance(call, _Call)
        if os.getpid() != self._owner:
            return
        with self._lock:
            if call not in self._running or call.place is None or call.generation is None:
                return
            self._running.discard(call)
            call.given_up = True
            state, position, _ = call.place.state()
            self._retire(call.generation)
        begun = state in (_board.RUNNING, _board.SENDING)
        lost = ChunkLost(WorkerDied("it was given up"), Ran([], [], []), position if begun else None)
        call.set_exception(lost)
        self._hand_out()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers. With `cancel_futures`, what waits is cancelled, and what runs is killed."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._closed = True
            calls = [*self._waiting, *self._running] if cancel_futures else []
        running = [call for call in calls if not call.cancel()]
        for call in running:
            self.kill(call)
        self._hand_out()
        if wait:
            limit = END_SECONDS if cancel_futures else None
            with self._changed:
                self._changed.wait_for(lambda: not self._generations, limit)
                ends = list(self._ends)
            for end in ends:
                end.join(limit)

    # Calls on their way

    def _hand_out(self) -> None:
        """Give waiting calls to loky, as many as keep its workers busy."""
        while True:
            failure: Exception | None = None
            with self._lock:
                call = self._next()
                if call is None:
                    if self._closed and not self._running and self._newest is not None:
                        self._retire(self._newest)
                    return
                try:
                    generation, place, inner = self._give(call)
                except Exception as error:  # noqa: BLE001  # loky fails in many ways, and so does the system
                    failure = BackendUnavailable(f"it cannot start a call ({error})", subject="joblib")
                    failure.__cause__ = error
            # Not under the lock: whoever waits for the call is told at once.
            if failure is not None:
                call.set_exception(failure)
            else:
                attached = threading.Event()
                inner.add_done_callback(functools.partial(self._answered, generation, call, place, attached))
                attached.set()

    def _next(self) -> _Call | None:
        room = self._newest is None or self._newest.free
        if self._waiting and room and len(self._running) < EACH * self._workers:
            return self._waiting.popleft()
        return None

    def _give(self, call: _Call) -> tuple[_Generation, _loky.Place, Future[Any]]:
        self._running.add(call)
        for last_try in (False, True):
            generation = self._newest or self._open()
            try:
                place, inner = generation.take(call)
            except BaseException as error:
                # Perhaps a worker died while it had nothing to do; then the next generation has it.
                generation.broken = True
                self._retire(generation)
                if last_try or not isinstance(error, BrokenExecutor):
                    self._running.discard(call)
                    raise
            else:
                break
        return generation, place, inner

    def _answered(
        self,
        generation: _Generation,
        call: _Call,
        place: _loky.Place,
        attached: threading.Event,
        inner: Future[Any],
    ) -> None:
        """In a thread of loky's, and before loky ends the workers of a broken executor; if not `attached`,
        in ours, and perhaps after that."""
        result, error = None, inner.exception()
        broken = isinstance(error, BrokenExecutor)
        if broken:
            generation.end_workers(sure=attached.is_set())  # now nothing changes any more in its places
        with self._lock:
            wanted = call in self._running
            self._running.discard(call)  # from here on, a kill comes too late
            if broken and not generation.broken:
                generation.broken = True
                self._stillborn = 0 if generation.has_lived() else self._stillborn + 1
        again = False
        if wanted and broken:
            error = self._lost(generation, place)
            again = error is None
        elif wanted and error is None:
            kind, at, size = inner.result()
            again = kind == _loky.DECLINED
            result, error = _read(kind, place.read(at, size))
        unfinished: set[str] = set()
        with self._lock:
            generation.calls.discard(call)
            call.generation = call.place = None
            if again:
                self._waiting.appendleft(call)
            else:
                call.packed = b""
            if broken:
                self._retire(generation)
                if not generation.gone:
                    unfinished = place.unfinished()
            elif not generation.gone:
                self._stillborn = 0
                generation.give_back(place)
            self._end_if_over(generation)
            self._changed.notify_all()
        for path in unfinished:
            scope.remove(path)
        self._hand_out()
        if wanted and error is not None:
            call.set_exception(error)
        elif wanted and not again:
            call.set_result(result)

    def _lost(self, generation: _Generation, place: _loky.Place) -> BaseException | None:
        """What becomes of a call whose generation broke. None: it is as good as new."""
        code = generation.deaths.get(place.worker())
        state, position, _ = place.state()
        if code is None and state == _board.NOT_BEGUN:
            if self._stillborn < MOST_STILLBORN:
                return None
            return BackendUnavailable(
                "worker processes die before they are ready",
                subject="joblib",
                cure="Look at what they wrote to standard error, or use the thread engine.",
            )
        try:
            finished = place.kept()
        except ChunkLost as lost:
            return lost
        begun = state in (_board.RUNNING, _board.SENDING) and position >= len(finished.values)
        return ChunkLost(
            self._death(code),
            finished,
            position if begun else None,
            certain=code is not None or not begun,
            innocent=code is None and bool(generation.deaths),
        )

    def _death(self, code: int | None) -> WorkerDied:
        if code is None:
            return WorkerDied("loky ended its worker process, since another one had died")
        if code == -signal.SIGKILL:
            before, self._memory_deaths = self._memory_deaths, _memory.deaths()
            if self._memory_deaths > before:
                return WorkerOutOfMemory(
                    "the system killed its worker process for want of memory",
                    exitcode=code,
                    cure="Use fewer workers, or smaller items.",
                )
        how = f"ended with exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        return WorkerDied(f"its worker process {how}", exitcode=code)

    # Generations; all under the lock, but for `_end`

    def _open(self) -> _Generation:
        """
        :raises OSError: if there is no shared memory, or are no semaphores.
        """
        self._newest = _Generation(self._workers, self._environment, self._hooks)
        self._generations.add(self._newest)
        return self._newest

    def _retire(self, generation: _Generation) -> None:
        """It takes no more calls."""
        generation.retired = True
        if self._newest is generation:
            self._newest = None
        for call in generation.calls:
            if not call.given_up and call.place is not None:
                call.recalled = call.place.recall()  # its worker, if one is ever free, sends it back
        self._end_if_over(generation)

    def _end_if_over(self, generation: _Generation) -> None:
        if not generation.retired or generation.ending:
            return
        if not all(call.given_up or call.recalled for call in generation.calls):
            return
        generation.ending = True
        end = threading.Thread(target=self._end, args=(generation,), name="video-joblib-end", daemon=True)
        self._ends = [one for one in self._ends if one.is_alive()] + [end]
        end.start()

    def _end(self, generation: _Generation) -> None:
        try:
            generation.end()
        except Exception:  # noqa: BLE001  # loky's own affairs; its workers watch their parent
            logger.debug("a loky executor ended badly", exc_info=True)
        with self._changed:
            # Threads of loky's and callers' may still read in its places.
            self._changed.wait_for(lambda: not generation.calls, LEAVE_SECONDS)
            generation.close()
            self._generations.discard(generation)
            self._changed.notify_all()


class _Generation:
    """One loky executor, until it breaks or is retired.

    :raises OSError, ImportError, NotImplementedError: if the system lacks what it needs.
    """

    def __init__(self, workers: int, environment: dict[str, str], hooks: bytes) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        self.places: list[_loky.Place] = []
        self.processes: list[Any] = []
        self.calls: set[_Call] = set()
        """Those that have not been answered, given up or not."""
        self.deaths: dict[int, int] = {}
        """Exit codes of the workers that died first, by process id; empty: nobody knows."""
        self.broken = False
        self.retired = False
        self.ending = False
        self.gone = False
        self._started = False
        self._lived = False
        self._watcher: threading.Thread | None = None
        self._killing = threading.Lock()
        self._killed = False
        try:
            for number in range(EACH * workers):
                self.places.append(_loky.Place(number))
            fds = _loky.Inherited([place.fd for place in self.places])
            self._executor = ProcessPoolExecutor(
                workers,
                context=_context(self.processes),
                initializer=_loky.start,
                initargs=(os.getpid(), fds, hooks),
                env=environment,
            )
        except BaseException:
            self.close()
            raise
        self.free = list(self.places)

    def take(self, call: _Call) -> tuple[_loky.Place, Future[Any]]:
        """:raises Exception: whatever loky does when it is broken, or cannot start its workers."""
        place = self.free.pop()
        place.load(call.packed)
        call.generation, call.place, call.handed, call.recalled = self, place, time.monotonic(), False
        if self._started:
            inner = self._executor.submit(_loky.run, place.number, len(call.packed))
        else:
            inner = self._start(place.number, len(call.packed))
        self.calls.add(call)
        return place, inner

    def _start(self, number: int, size: int) -> Future[Any]:
        """The first call, which starts the workers."""
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # loky would do so now, and that may lift the mask
        # Ctrl-C is ours to handle; until the workers see to that themselves, what they inherit does.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            inner: Future[Any] = self._executor.submit(_loky.run, number, size)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for place in self.places:
                os.set_inheritable(place.fd, False)
        self._started = True
        if hasattr(os, "pidfd_open"):
            self._watcher = threading.Thread(target=self._watch, name="video-joblib-watch", daemon=True)
            self._watcher.start()
        return inner

    def _watch(self) -> None:
        """Clear up after each worker that ends. loky sees a death by the end of a pipe, and what the worker
        has forked may hold that open."""
        guard = Guard([one.pid for one in self.processes], "popen_loky")
        poll, fds = select.poll(), set()
        with contextlib.suppress(OSError):  # Linux before 5.3 has no such thing
            for one in self.processes:
                fds.add(fd := os.pidfd_open(one.pid))
                poll.register(fd, select.POLLIN)
        while fds:
            for fd, _ in poll.poll():
                self._clear_up()
                poll.unregister(fd)
                fds.discard(fd)
                os.close(fd)
        guard.dismiss()

    def give_back(self, place: _loky.Place) -> None:
        self._lived = True
        place.unload()
        self.free.append(place)

    def has_lived(self) -> bool:
        """A worker of it has taken a call."""
        return self._lived or any(place.worker() for place in self.places)

    def end_workers(self, *, sure: bool = False) -> None:
        """Kill its workers, and note who was dead before. loky does the first too, but only after it has told
        its calls, and leaves what dead workers had started.

        :param sure: loky has killed none of them yet.
        """
        with self._killing:
            if self._killed:
                return
            self._killed = True
            started = [one for one in list(self.processes) if one.pid is not None]
            dead = {one.pid: one.exitcode for one in started if one.exitcode is not None}
            self.deaths = {pid: code for pid, code in dead.items() if sure or code != -signal.SIGKILL}
            for one in started:
                if one.pid not in dead:
                    _nursery.kill_tree(one.pid)
            for one in started:
                one.join(LEAVE_SECONDS)
            self._clear_up()

    def end(self) -> None:
        """End its workers: in peace, if they have nothing to do."""
        if self.calls or self.broken:
            self.end_workers()
        patience = threading.Timer(LEAVE_SECONDS, self.end_workers)
        patience.daemon = True
        patience.start()
        try:
            self._executor.shutdown(wait=True)
        finally:
            patience.cancel()
            patience.join()
            self._clear_up()
            if self._watcher is not None:
                self._watcher.join(LEAVE_SECONDS)
            # Last, when no other thread reaps them any more: `multiprocessing` would keep such a one, and
            # loky's semaphores with it.
            for one in self.processes:
                if one.pid is not None:
                    one.join(LEAVE_SECONDS)
            self.processes.clear()

    def _clear_up(self) -> None:
        """Kill what workers that have ended left behind in their process groups."""
        for one in list(self.processes):
            if one.pid is not None and one.exitcode is not None:
                with contextlib.suppress(OSError):
                    try:
                        os.kill(one.pid, 0)  # the number is another's by now, and so may be the group
                    except ProcessLookupError:
                        os.killpg(one.pid, signal.SIGKILL)

    def close(self) -> None:
        self.gone = True
        for place in self.places:
            place.close()


def _context(processes: list[Any]) -> Any:
    """loky's way to start workers, which adds each to the list."""
    from joblib.externals.loky.backend import get_context

    context = copy.copy(get_context("loky"))
    make = context.Process

    def noted(*args: Any, **kwargs: Any) -> Any:
        process = make(*args, **kwargs)
        processes.append(process)
        return process

    context.Process = noted
    return context


def _read(kind: int, answer: bytes) -> tuple[Any, BaseException | None]:
    """An answer: (result, error)."""
    if kind in (_loky.BYTES, _loky.DECLINED):
        return answer, None
    if kind in (_loky.UNREADABLE, _loky.BROKEN):
        text = answer.decode()
        last = text.strip().splitlines()[-1]
        failure: Exception = BackendUnavailable(f"the initializer of its workers failed ({last})")
        if kind == _loky.UNREADABLE:
            failure = NotPicklable(
                f"does not unpickle in a worker process ({last})",
                cure="Pass plain data such as paths, or use the thread engine.",
            )
        failure.__cause__ = RemoteTraceback(text)
        return None, failure
    try:
        value = _pickling.loads(answer)
        return (value, None) if kind == _loky.DONE else (None, arrived(*value))
    except Exception as error:  # noqa: BLE001  # whatever the result's own code raises
        failure = _board.unreadable(error)
        failure.__cause__ = error
        return None, failure


class JoblibBackend:
    traits: ClassVar[Traits] = Traits(
        start=0.4, call=2.2e-4, own_gil=True, pickles=True, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> JoblibExecutor:
        if sys.platform == "win32":
            raise BackendUnavailable("needs Linux or macOS", subject="joblib", cure="Use the thread engine.")
        try:
            return JoblibExecutor(workers, self._config)
        except (OSError, ImportError, NotImplementedError, RuntimeError) as error:  # no semaphores, for one
            raise BackendUnavailable(f"loky cannot start here ({error})", subject="joblib") from error
