"""loky's worker processes, as joblib has them: for programs that use joblib already.

    submit -> generation (one loky executor) -> worker: the call, on a board of its own
           <- its result; or the whole generation is broken

The executor is ours alone, not the one that joblib shares between all callers of a program. When one of its
workers dies, loky ends them all; so each call has a board (`_board`), which its worker reaches by way of this
process's descriptor. It tells which items ran when that happened, and what had finished. Who died first
nobody can tell, so those items are suspects. Calls that had not begun go to the next generation, unseen.

A worker cannot be killed by itself. A call that is given up retires its generation: new calls go to a fresh
one, and when the neighbours of the stuck call are done, the old one's workers are killed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import InvalidStateError as Settled
from typing import Any, ClassVar

import video.scope as scope
from video.backends import _board, _pickling, _worker
from video.backends._chunk import ChunkLost, Ran, joined
from video.backends._pool import initializer_failed
from video.backends.base import Traits
from video.config import ParallelConfig
from video.errors import BackendUnavailable, ItemCancelled, WorkerDied
from video.events import logger

if importlib.util.find_spec("joblib") is None:  # importing it takes long, so that waits until it is used
    raise ModuleNotFoundError("No module named 'joblib'", name="joblib")

MOST_MOVES = 5
"""Generations that may break under a call before it has begun; then it is a suspect like others."""
TRANSFER_SECONDS = 600.0
"""How long a result may take to cross before the item's time limit counts it."""
KILL_SECONDS = 2.0
"""How long a worker may take to be gone after SIGKILL."""
END_SECONDS = 10.0
"""How long closing waits for a generation to end."""


class JoblibExecutor:
    def __init__(self, workers: int, config: ParallelConfig) -> None:
        self._workers = workers
        self._lock = threading.RLock()
        self._queue: deque[_Call] = deque()
        """Calls that wait. loky gets no more than its workers can run: it stumbles over calls that are
        cancelled, or that wait when it is told to kill."""
        self._generations: list[_Generation] = []
        """Those that are not ended; only the last may take calls."""
        self._boards: list[_Shared] = []
        """Boards that no call uses."""
        self._ends: list[threading.Thread] = []
        self._closed = False
        self._drained = threading.Event()
        """Closed, and no call is left."""
        threads = config.threads_per_worker or max(1, scope.usable_cpus() // workers)
        self._environment = _worker.thread_environment(threads, dict(os.environ))
        hooks = config.initializer, config.finalizer
        self._hooks = _pickling.dumps_by_value(hooks) if any(hooks) else b""
        self._open_generation()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        call = _Call(fn, args)
        with self._lock:
            if self._closed:
                raise RuntimeError("this executor is closed")
            self._queue.append(call)
            self._pump()
        return call

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        assert isinstance(call, _Call)
        with self._lock:
            if call.board is None:
                return None
            state, position, since = call.board.board.state()
        if state == _board.NOT_BEGUN:
            return None
        # What its result takes to cross is not its time.
        return position, since if state == _board.RUNNING else since + TRANSFER_SECONDS

    def kill(self, call: Future[Any]) -> None:
        """Give up a call: its generation ends once its other calls are done."""
        assert isinstance(call, _Call)
        with self._lock:
            generation = next((one for one in self._generations if call in one.calls), None)
            if call in self._queue:  # its generation broke before it began
                self._queue.remove(call)
            elif generation is None or call.given_up:
                return
            else:
                call.given_up = generation.over = True
                self._end_if_over(generation)
            self._pump()
        _settle(call, error=ItemCancelled("it was given up"))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        waiting: list[_Call] = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                waiting = list(self._queue)
                self._queue.clear()
                for generation in self._generations:
                    for call in generation.calls:
                        call.given_up = True
            self._end_if_drained()
        for call in waiting:
            if call.cancel():
                call.set_running_or_notify_cancel()  # tells those who wait for it
            else:  # it had begun to move to another generation
                _settle(call, error=ItemCancelled("its engine was closed"))
        if wait:
            self._drained.wait()
            for end in list(self._ends):
                end.join(END_SECONDS if cancel_futures else None)

    def _open_generation(self) -> _Generation:
        from joblib.externals.loky import ProcessPoolExecutor

        executor = ProcessPoolExecutor(
            self._workers,
            env=self._environment,
            initializer=_prepare,
            initargs=(os.getpid(), self._hooks),
        )
        self._generations.append(_Generation(executor))
        return self._generations[-1]

    def _newest(self) -> _Generation:
        """One that takes calls."""
        if self._generations and not self._generations[-1].over:
            return self._generations[-1]
        return self._open_generation()

    def _pump(self) -> None:
        """Send what waits to workers that are free."""
        while self._queue:
            try:
                generation = self._newest()
            except Exception as error:  # noqa: BLE001  # no semaphores, no descriptors
                _settle(self._queue.popleft(), error=BackendUnavailable(f"loky cannot start ({error})"))
                continue
            if len(generation.calls) >= self._workers:
                return
            call = self._queue.popleft()
            if call.moves or call.set_running_or_notify_cancel():
                self._send(call, generation)

    def _send(self, call: _Call, generation: _Generation) -> None:
        call.board = self._boards.pop() if self._boards else _shared()
        if call.board is not None:
            call.board.board.reset()
        place = None if call.board is None else call.board.place
        try:
            inner = generation.executor.submit(_run, place, call.fn, call.args)
        except Exception as error:  # noqa: BLE001  # it broke just now, or can have no more (the program ends)
            generation.over = True
            self._take_back(call)
            self._end_if_over(generation)
            if isinstance(error, BrokenExecutor) and call.moves < MOST_MOVES:
                call.moves += 1
                self._queue.appendleft(call)
            else:
                _settle(call, error=BackendUnavailable(f"loky takes no calls ({error})"))
            return
        generation.calls.add(call)
        inner.add_done_callback(functools.partial(self._ended, generation, call))

    def _ended(self, generation: _Generation, call: _Call, inner: Future[Any]) -> None:
        """In a thread of loky's."""
        result, moved = None, False
        error = inner.exception()
        with self._lock:
            generation.calls.discard(call)
            if isinstance(error, BrokenExecutor):
                generation.over = True
                generation.kill()
                moved = self._move(call)
                if not moved:
                    error = _lost(call, error)
            elif error is None:
                result = inner.result()
            if call.given_up:
                self._discard_board(call)  # perhaps its worker is only just being killed
            else:
                self._take_back(call)
            self._end_if_over(generation)
            self._pump()
            self._end_if_drained()
        if not moved:
            _settle(call, result, error)

    def _move(self, call: _Call) -> bool:
        """To the next generation, if it had not begun."""
        if call.given_up or call.moves >= MOST_MOVES or call.board is None:
            return False
        if call.board.board.state()[0] != _board.NOT_BEGUN:
            return False
        call.moves += 1
        self._queue.appendleft(call)
        return True

    def _take_back(self, call: _Call) -> None:
        """Its worker is done with the board, or will never have it."""
        board, call.board = call.board, None
        if board is not None:
            self._boards.append(board)

    def _end_if_over(self, generation: _Generation) -> None:
        """End a generation that takes no calls, once none of its calls is waited for."""
        if not generation.over or generation not in self._generations:
            return
        if all(call.given_up for call in generation.calls):
            self._generations.remove(generation)
            end = threading.Thread(target=self._end, args=(generation,), name="video-joblib-end", daemon=True)
            self._ends = [one for one in self._ends if one.is_alive()] + [end]
            end.start()

    def _end_if_drained(self) -> None:
        if self._closed and not self._queue:
            for generation in list(self._generations):
                generation.over = True
                self._end_if_over(generation)
            if not self._generations:
                while self._boards:
                    self._boards.pop().close()
                self._drained.set()

    def _end(self, generation: _Generation) -> None:
        stuck = list(generation.calls)
        try:
            generation.executor.shutdown(wait=True, kill_workers=bool(stuck))
        except Exception:  # noqa: BLE001  # loky's own affairs; its workers watch their parent
            logger.debug("a loky executor ended badly", exc_info=True)
        for call in stuck:
            _settle(call, error=ItemCancelled("its engine was closed"))
        with self._lock:
            for call in stuck:
                self._discard_board(call)

    def _discard_board(self, call: _Call) -> None:
        board, call.board = call.board, None
        if board is not None:
            board.close()


class _Call(Future[Any]):
    """A call on its way through one generation or more."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self.fn = fn
        self.args = args
        self.board: _Shared | None = None
        self.moves = 0
        """Generations that broke before it had begun."""
        self.given_up = False


class _Generation:
    """One loky executor, until it breaks or is retired."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.calls: set[_Call] = set()
        self.over = False
        self._killed = False

    def kill(self) -> None:
        """End its workers before their boards are read. loky does so too, but only after it has failed the
        calls, and until then a worker may begin what is just being given to the next generation."""
        if self._killed:
            return
        self._killed = True
        for process in list(self.executor._processes.values()):
            with contextlib.suppress(OSError, AttributeError):
                if process.exitcode is None:  # not reaped, so its number is nobody else's
                    _kill_group(process.pid)
                    process.join(KILL_SECONDS)


class _Shared:
    """A board, and where its worker finds it: a file without a name, so that nothing is left behind.

    :raises OSError: if there is no shared memory, or no such way to it (macOS).
    """

    def __init__(self) -> None:
        self._fd = _board.create()
        path = f"/proc/{os.getpid()}/fd/{self._fd}"
        try:
            # By its inode a worker that comes late sees that the descriptor is another's now.
            self.place = path, os.stat(path).st_ino
            self.board = _board.Board(self._fd)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        self.board.close()
        os.close(self._fd)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its session yet, or is gone
        os.kill(pid, signal.SIGKILL)


def _shared() -> _Shared | None:
    with contextlib.suppress(OSError):
        return _Shared()
    return None


def _settle(call: _Call, result: Any = None, error: BaseException | None = None) -> None:
    with contextlib.suppress(Settled):  # somebody else was quicker
        if not call.done():  # given up or cancelled, otherwise
            if error is None:
                call.set_result(result)
            else:
                call.set_exception(error)


def _lost(call: _Call, error: BaseException) -> ChunkLost:
    """Its generation broke while it ran; the board stays unused, for its worker may still write on it."""
    codes = re.findall(r"([A-Z]+)\((-?\d+)\)", str(error))  # of the workers that loky found dead first
    how = ", ".join(f"{name} {code}" for name, code in codes) or error
    death = WorkerDied(
        f"a worker of its loky executor died ({how})",
        exitcode=int(codes[0][1]) if len(codes) == 1 else None,
    )
    if call.board is None:
        return ChunkLost(death, Ran([], [], []), certain=False)
    finished, (state, position, _) = call.board.board.held(), call.board.board.state()
    call.board.close()
    call.board = None
    return ChunkLost(death, finished, None if state == _board.NOT_BEGUN else position, certain=False)


# In the worker


class _Desk(_board.Desk):
    """There is no pipe for parts: they wait here, and whatever has room is on the board."""

    def __init__(self, fd: int) -> None:
        self._parts: list[Ran] = []
        super().__init__(fd, self._parts.append, long_seconds=float("inf"))

    def run(self, task: Callable[[Any], Any], items: Any) -> Ran:
        self._parts.clear()
        rest = super().run(task, items)
        return joined([*self._parts, rest])


_initializer_error: BaseException | None = None


def _prepare(parent: int, hooks: bytes) -> None:
    """A worker starts."""
    global _initializer_error
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C is the parent's to handle, and a kill is to take its own children along
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker.die_with(parent)
    from joblib.externals.loky import process_executor

    # It would replace a worker that has grown by 300 MB, which a few decoded pictures do.
    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")
    if hooks:
        try:
            initializer, finalizer = _pickling.loads(hooks)
            if initializer is not None:
                initializer()
            if finalizer is not None:
                from multiprocessing.util import Finalize

                Finalize(None, finalizer, exitpriority=1)
        except BaseException as error:  # noqa: BLE001  # every call will say so
            _initializer_error = error


def _run(place: tuple[str, int] | None, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if _initializer_error is not None:
        raise initializer_failed(_initializer_error)
    desk = None if place is None else _desk(*place)
    if desk is None:
        return fn(*args)
    try:
        with scope.entered(scope.Slot(board=desk)):
            desk.begin()
            result = fn(*args)
            desk.send()
            return result
    finally:
        desk.close()


def _desk(path: str, inode: int) -> _Desk | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _Desk(fd) if os.fstat(fd).st_ino == inode else None
    finally:
        os.close(fd)


class JoblibBackend:
    traits: ClassVar[Traits] = Traits(
        start=0.25, call=2.5e-4, own_gil=True, pickles=True, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> JoblibExecutor:
        try:
            return JoblibExecutor(workers, self._config)
        except (OSError, ImportError, NotImplementedError) as error:  # no semaphores, for one
            raise BackendUnavailable(f"loky cannot start here ({error})", subject="joblib") from error
