"""Any engine behind the standard library's `Executor`, so that whatever takes one can run on it."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import inspect
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from video.batch import PAUSE
from video.config import ParallelConfig
from video.errors import BackendUnavailable, ConfigError
from video.events import Observer
from video.runner import Runner, Stream

T = TypeVar("T")
P = ParamSpec("P")

Job = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def executor(config: ParallelConfig | None = None, **settings: Any) -> ParallelExecutor:
    """A `concurrent.futures.Executor` over any engine.

    >>> with executor(backend="thread", max_workers=2) as pool:
    ...     pool.submit(pow, 2, 5).result()
    32

    :param settings: fields of `ParallelConfig`, in place of the config's.
    :raises ConfigError: for a setting that does not exist, or a value that does not fit.
    """
    if config is not None and not isinstance(config, ParallelConfig):
        raise ConfigError(f"config is {config!r}", cure='Settings go by name, such as backend="process".')
    if settings:
        ParallelConfig.from_mapping(settings)  # names the near one of a mistyped setting
        config = dataclasses.replace(config or ParallelConfig(), **settings)
    return ParallelExecutor(config)


class ParallelExecutor(Executor):
    """`submit`, `map` and `shutdown` as in `concurrent.futures`, on any engine, with what a runner adds:
    a worker that dies fails the call that it was on and no other, `timeout` limits each call from its real
    start, anything can be called (lambdas too), and errors carry the worker's traceback.

    A future can be cancelled until its call is given to a worker. `async def` functions are awaited on the
    async engine.

    :param config: how calls run; each travels alone.
    :param observers: called with each `video.events.Event`.
    :raises ConfigError, UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
    """

    def __init__(self, config: ParallelConfig | None = None, *, observers: Iterable[Observer] = ()) -> None:
        config = dataclasses.replace(config or ParallelConfig(), chunk_size=1, fail="isolate", spot_check=0)
        runner = Runner(config, observers=observers)
        self._calls = _Calls()
        choice = runner.choose(_call)
        self._awaits = choice.backend == "async"
        task = _call_and_wait if self._awaits else _call
        self._stream: Stream[Any] = runner.stream(
            task, self._calls, ordered=False, backend=choice.backend, prefetch=False
        )
        self._max_workers = choice.workers  # libraries that take an executor look at this name
        self._runner = runner
        # The context holds the slot, where this is a worker: a pool inside it then runs inline.
        work = functools.partial(contextvars.copy_context().run, _serve, runner, self._stream, self._calls)
        self._thread = threading.Thread(target=work, name="video-executor", daemon=True)
        # Nobody can submit any more: the thread may end, and is not waited for.
        weakref.finalize(self, _no_more, self._calls, self._stream).atexit = False
        # As in the standard library, what was submitted is done before the program ends.
        weakref.finalize(self._thread, _finish, self._calls, self._stream, weakref.ref(self._thread))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future of `fn(*args, **kwargs)`.

        :raises RuntimeError: after `shutdown`, or when the engine has broken down (`BackendUnavailable`).
        :raises ConfigError: for an `async def` function, except on the async engine.
        """
        if not self._awaits and inspect.iscoroutinefunction(fn):
            raise ConfigError(f"{fn!r} is an `async def` function", cure='Use backend="async".')
        future: Future[T] = Future()
        started, paused = self._calls.add(future, (fn, args, kwargs))
        if not started:
            self._thread.start()
        elif paused:
            self._stream.wake()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[T]:
        """As `Executor.map`.

        :param timeout: seconds from now until which results may be waited for.
        :param chunksize: calls that travel together; all of them fail if one does.
        :param more: what newer Pythons' `map` takes, such as `buffersize`.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **more)
        calls = zip(*iterables)  # noqa: B905  # the shortest one ends it, as in the standard library
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        results = super().map(functools.partial(_call_each, fn), chunks, timeout=timeout, **more)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls; `cancel_futures` cancels those that wait."""
        self._calls.close(cancel_futures)
        self._stream.wake()
        if wait and self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._thread.ident is None:
            self._runner.close()


class _Calls(Iterator[Any]):
    """The input of an endless batch: calls that were submitted and not yet drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Job]] = deque()
        self._running: dict[int, Future[Any]] = {}
        self._drawn = 0
        self._started = False
        self._paused = False
        self._closed = False
        self._broken: BaseException | None = None

    def add(self, future: Future[Any], job: Job) -> tuple[bool, bool]:
        """Whether there were others before it, and whether the batch waits for more."""
        with self._lock:
            if self._broken is not None:
                raise BackendUnavailable(f"the engine of this executor has ended: {self._broken}")
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append((future, job))
            before = self._started, self._paused
            self._started, self._paused = True, False
            return before

    def __next__(self) -> Any:
        while True:
            with self._lock:
                if not self._waiting:
                    if self._closed:
                        raise StopIteration
                    self._paused = True
                    return PAUSE
                future, job = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                self._running[self._drawn] = future
                self._drawn += 1
                return job

    def take(self, index: int) -> Future[Any]:
        """The future of the item with that index."""
        return self._running.pop(index)

    def close(self, cancel: bool) -> None:
        with self._lock:
            self._closed = True
            waiting = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
        for future, _ in waiting:
            if future.cancel():
                future.set_running_or_notify_cancel()  # tells those who wait for it

    def fail(self, error: BaseException) -> None:
        """The batch has ended before its time."""
        with self._lock:
            self._broken = error
            waiting = [future for future, _ in self._waiting]
            self._waiting.clear()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        for future in self._running.values():
            future.set_exception(error)
        self._running.clear()


def _serve(runner: Runner, stream: Stream[Any], calls: _Calls) -> None:
    try:
        for outcome in stream:
            future = calls.take(outcome.index)
            if outcome.error is None:
                future.set_result(outcome.value)
            else:
                future.set_exception(outcome.error)
            del future, outcome  # an idle executor keeps nobody's result alive
    except BaseException as error:  # noqa: BLE001  # those who wait for a future are to know
        calls.fail(error)
    finally:
        runner.close()


def _no_more(calls: _Calls, stream: Stream[Any]) -> None:
    calls.close(cancel=False)
    stream.wake()


def _finish(calls: _Calls, stream: Stream[Any], thread: weakref.ref[threading.Thread]) -> None:
    """The program ends, or the thread has ended."""
    _no_more(calls, stream)
    serving = thread()
    if serving is not None and serving.ident is not None:
        serving.join()


def _call(job: Job) -> Any:
    fn, args, kwargs = job
    return fn(*args, **kwargs)


async def _call_and_wait(job: Job) -> Any:
    fn, args, kwargs = job
    if inspect.iscoroutinefunction(inspect.unwrap(fn)):
        return await fn(*args, **kwargs)
    return await asyncio.to_thread(fn, *args, **kwargs)


def _call_each(fn: Callable[..., T], calls: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*args) for args in calls]
