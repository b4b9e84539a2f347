"""An event loop in a thread of its own, for `async def` tasks; other tasks run beside it in threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import video.scope as scope
from video.backends._pool import LOST_SECONDS, Call, initializer_failed
from video.backends.base import Ran, Traits
from video.backends.thread import ThreadExecutor
from video.config import ParallelConfig
from video.errors import ItemCancelled
from video.events import logger


class LoopExecutor:
    """Coroutine functions become tasks of one loop; the caller bounds how many (`workers` is for threads)."""

    def __init__(self, workers: int, config: ParallelConfig) -> None:
        self._loop = _new_loop(config.use_uvloop)
        self._threads = ThreadExecutor(workers, config)
        self._config = config
        self._broken: BaseException | None = None
        self._tasks: dict[Call, asyncio.Task[Any]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="video-loop", daemon=True)
        self._thread.start()
        if config.initializer is not None:
            self._loop.call_soon_threadsafe(self._initialize, config.initializer)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        if not inspect.iscoroutinefunction(fn):
            return self._threads.submit(fn, *args)
        if self._closed:
            raise RuntimeError("this executor is closed")
        call = Call(fn, args)
        self._loop.call_soon_threadsafe(self._begin, call)
        return call

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        return self._threads.running(call)

    def kill(self, call: Future[Any]) -> None:
        """Cancel the coroutine; one that never awaits cannot be stopped."""
        assert isinstance(call, Call)
        self._threads.kill(call)
        if not self._closed:
            self._loop.call_soon_threadsafe(self._cancel, call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._drain(cancel_futures), self._loop).add_done_callback(
            lambda _: self._loop.call_soon_threadsafe(self._loop.stop)
        )
        if wait:
            # Bounded: a coroutine that never awaits cannot be stopped at all.
            self._thread.join(2 * LOST_SECONDS if cancel_futures else None)
            if not self._thread.is_alive():
                self._loop.close()

    def _begin(self, call: Call) -> None:
        if not call.set_running_or_notify_cancel():
            return
        if self._broken is not None:
            call.set_exception(initializer_failed(self._broken))
            return
        call.began = time.monotonic()
        task = self._loop.create_task(call.fn(*call.args))
        self._tasks[call] = task
        task.add_done_callback(lambda done: self._settle(call, done))

    def _initialize(self, initializer: Callable[[], object]) -> None:
        try:
            initializer()
        except BaseException as error:  # noqa: BLE001  # every call will say so
            self._broken = error

    def _settle(self, call: Call, task: asyncio.Task[Any]) -> None:
        del self._tasks[call]
        if task.cancelled():
            call.set_exception(ItemCancelled("its coroutine was cancelled"))
        elif (error := task.exception()) is not None:
            call.set_exception(error)
        else:
            call.set_result(task.result())

    def _cancel(self, call: Call) -> None:
        task = self._tasks.get(call)
        if task is not None:
            task.cancel()

    async def _drain(self, cancel: bool) -> None:
        tasks = list(self._tasks.values())
        if cancel:
            for task in tasks:
                task.cancel()
        if tasks:
            # Bounded: a coroutine may swallow its cancellation.
            await asyncio.wait(tasks, timeout=LOST_SECONDS if cancel else None)
        await self._loop.shutdown_asyncgens()
        if self._config.finalizer is not None and self._broken is None:
            try:
                self._config.finalizer()
            except Exception:  # noqa: BLE001  # it is the user's code, and nobody waits for it
                logger.exception("the finalizer of the event loop's thread failed")


def _new_loop(use_uvloop: bool) -> asyncio.AbstractEventLoop:
    if use_uvloop:
        try:
            import uvloop
        except ImportError:
            pass  # asyncio's own loop does the same, slower
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def run_coroutines(
    task: Callable[[Any], Any], items: Sequence[Any], threads: int, hand: Callable[[Ran], None]
) -> Ran:
    """`run_chunk` for an `async def` task: the items run side by side.

    :param hand: takes results of some before all are done, those of one turn of the loop together.
    """
    scope.enter(scope.Slot(threads))
    clock = time.monotonic
    values: list[Any] = []
    seconds: list[float] = []
    errors: list[tuple[int, BaseException, str]] = []
    positions: list[int] = []
    giving_up = False

    async def run(position: int, item: Any) -> None:
        start = clock()
        value = None
        try:
            value = await task(item)
        except BaseException as error:  # whatever it is, it belongs to the item
            if giving_up or (len(items) == 1 and isinstance(error, asyncio.CancelledError)):
                raise  # it is we who are cancelled
            errors.append((len(values), error, ""))
        values.append(value)
        seconds.append(clock() - start)
        positions.append(position)

    if len(items) == 1:  # in this coroutine itself, so that giving it up cancels the item
        await run(0, items[0])
        return Ran(values, seconds, errors)

    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = len(items)

    def flush() -> None:
        nonlocal values, seconds, errors, positions, left
        if values:
            left -= len(values)
            ran = Ran(values, seconds, errors, positions)
            values, seconds, errors, positions = [], [], [], []
            hand(ran)
        if not left and not done.done():
            done.set_result(None)

    flushing = False

    def ended(_: asyncio.Task[None]) -> None:
        nonlocal flushing
        if not flushing:
            flushing = True
            loop.call_soon(turn)

    def turn() -> None:
        nonlocal flushing
        flushing = False
        flush()

    tasks = [loop.create_task(run(position, item)) for position, item in enumerate(items)]
    for one in tasks:
        one.add_done_callback(ended)
    try:
        await done
    finally:
        giving_up = True
        for one in tasks:
            one.cancel()
    return Ran([], [], [], ())


class LoopBackend:
    traits: ClassVar[Traits] = Traits(
        start=6e-3, call=2e-5, own_gil=False, pickles=False, coroutines=True, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> LoopExecutor:
        return LoopExecutor(workers, self._config)
