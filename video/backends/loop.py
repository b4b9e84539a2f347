"""An event loop in a thread of its own, for `async def` tasks; other tasks run beside it in threads.

A coroutine that does not await for long blocks its loop. That time is not charged to those beside it. If the
blocker is given up meanwhile, its loop is written off with it, as the thread engine does with a thread: what
ran beside it is given back, to run again on a new loop, and is cancelled on the old one should that ever
come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import video.scope as scope
from video.backends._chunk import ChunkLost
from video.backends._pool import LOST_SECONDS, Call, initializer_failed
from video.backends.base import Ran, Traits
from video.backends.thread import ThreadExecutor
from video.config import ParallelConfig
from video.errors import ItemCancelled, WorkerDied
from video.events import logger

BLOCKED_SECONDS = 0.1
"""A coroutine that runs this long between two awaits blocks its loop: asyncio's debug mode calls it slow."""


class _Call(Call):
    """A call of a coroutine function."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__(fn, args)
        self.slot = scope.Slot()
        self.loop: _Loop | None = None


class _Loop:
    """One event loop and its thread."""

    def __init__(self, config: ParallelConfig, lock: threading.Lock) -> None:
        self._config = config
        self._lock = lock
        """Held where calls come and go."""
        self._broken: BaseException | None = None
        self.calls: dict[_Call, asyncio.Task[None] | None] = {}
        """Those that have not ended; None: not begun."""
        self.lost = False
        """Written off: its calls have had their answers."""
        self._step: tuple[_Call, float] | None = None
        """The call whose coroutine runs just now, and since when."""
        self._loop = _new_loop(config.use_uvloop)
        if config.initializer is not None:
            self._loop.call_soon(self._initialize, config.initializer)
        self.thread = threading.Thread(target=self._run, name="video-loop", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def take(self, call: _Call) -> None:
        """A call is to run here. Called under the lock."""
        self.calls[call], call.loop = None, self
        self._loop.call_soon_threadsafe(self._begin, call)

    def soon(self, act: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(act, *args)

    def _initialize(self, initializer: Callable[[], object]) -> None:
        try:
            initializer()
        except BaseException as error:  # noqa: BLE001  # every call will say so
            self._broken = error

    def _begin(self, call: _Call) -> None:
        with self._lock:
            if self.lost:  # it has been taken elsewhere
                return
            if self._broken is None and call.set_running_or_notify_cancel():
                task = self.calls[call] = self._loop.create_task(self._run_call(call))
                task.add_done_callback(lambda done: self._settle(call, done))
                return
            del self.calls[call]
        if self._broken is not None and call.set_running_or_notify_cancel():
            call.set_exception(initializer_failed(self._broken))

    def began(self, call: _Call) -> float | None:
        """When it began, without what others have blocked since."""
        step = self._step  # first: when a step is over, starts are put off before it is forgotten
        if call.began is None or step is None or step[0] is call:
            return call.began
        return call.began + time.monotonic() - step[1]

    def is_stuck(self) -> bool:
        """A call that was given up has blocked it for long."""
        step = self._step
        return (
            step is not None
            and step[0].slot.cancelled.is_set()
            and time.monotonic() - step[1] > BLOCKED_SECONDS
        )

    def cancel(self, call: _Call) -> None:
        """Called in its thread."""
        if (task := self.calls.get(call)) is not None:
            task.cancel()

    def end(self, cancel: bool, finalize: bool) -> None:
        """Once its tasks have ended, or with `cancel` are cancelled. Called in its thread."""
        drain = self._loop.create_task(self._drain(cancel, finalize))
        drain.add_done_callback(lambda _: self._loop.stop())

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _run_call(self, call: _Call) -> None:
        if self.lost:
            raise asyncio.CancelledError
        scope.enter(call.slot)
        call.began = time.monotonic()
        result = await self._steps(call, call.fn(*call.args))
        if self._has_ended(call):
            call.set_result(result)  # not by a callback: the loop may be blocked before that runs

    @types.coroutine
    def _steps(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await the coroutine, and note when it runs."""
        error: BaseException | None = None
        while True:
            if self.lost:  # nothing of it may happen any more: it runs elsewhere, or has its outcome
                error = asyncio.CancelledError()
            began = time.monotonic()
            self._step = call, began
            try:
                awaited = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self._stepped(call, began)
            error = None
            try:
                yield awaited
            except BaseException as thrown:  # noqa: BLE001  # a cancellation, for the coroutine to see
                error = thrown

    def _stepped(self, call: _Call, began: float) -> None:
        blocked = time.monotonic() - began
        if blocked > BLOCKED_SECONDS:
            with self._lock:
                for other in self.calls:
                    if other is not call and other.began is not None:
                        other.began += blocked
        self._step = None

    def _has_ended(self, call: _Call) -> bool:
        """Forget a call that ends; False if nobody waits for its answer."""
        with self._lock:
            return self.calls.pop(call, None) is not None and not self.lost

    def _settle(self, call: _Call, task: asyncio.Task[None]) -> None:
        error = ItemCancelled("its coroutine was cancelled") if task.cancelled() else task.exception()
        if self._has_ended(call) and error is not None:
            call.set_exception(error)

    async def _drain(self, cancel: bool, finalize: bool) -> None:
        tasks = [task for task in self.calls.values() if task is not None]
        if cancel:
            for task in tasks:
                task.cancel()
        if tasks:
            # Bounded: a coroutine may swallow its cancellation.
            await asyncio.wait(tasks, timeout=LOST_SECONDS if cancel else None)
        await self._loop.shutdown_asyncgens()
        if finalize and self._config.finalizer is not None and self._broken is None:
            try:
                self._config.finalizer()
            except Exception:  # noqa: BLE001  # it is the user's code, and nobody waits for it
                logger.exception("the finalizer of the event loop's thread failed")


class LoopExecutor:
    """Coroutine functions become tasks of one loop; the caller bounds how many (`workers` is for threads)."""

    def __init__(self, workers: int, config: ParallelConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loop = _Loop(config, self._lock)
        self._lost: list[_Loop] = []
        self._threads = ThreadExecutor(workers, config)
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        if not inspect.iscoroutinefunction(fn):
            return self._threads.submit(fn, *args)
        self._leave_blocked_loop()
        call = _Call(fn, args)
        with self._lock:
            if self._closed:
                raise RuntimeError("this executor is closed")
            self._loop.take(call)
        return call

    def running(self, call: Future[Any]) -> tuple[int, float] | None:
        """What others block has its clock put off."""
        if not isinstance(call, _Call):
            return self._threads.running(call)
        self._leave_blocked_loop()  # whoever was given up may have blocked it only afterwards
        began = None if call.loop is None else call.loop.began(call)
        return None if began is None else (0, began)

    def kill(self, call: Future[Any]) -> None:
        """Cancel the coroutine. One that does not await cannot be stopped: it keeps its loop."""
        if not isinstance(call, _Call):
            self._threads.kill(call)
        elif not self._closed and call.loop is not None:
            call.slot.cancelled.set()
            call.loop.soon(call.loop.cancel, call)
            self._leave_blocked_loop()

    def _leave_blocked_loop(self) -> None:
        """Leave a loop to a call that blocks it though it was given up, and go on with a new one."""
        if not self._loop.is_stuck():
            return
        with self._lock:
            old = self._loop
            if self._closed or not old.is_stuck():
                return
            try:
                self._loop = _Loop(self._config, self._lock)
            except (OSError, RuntimeError):  # no descriptor, or no thread to be had: when next asked, perhaps
                return
            old.lost = True
            self._lost = [one for one in self._lost if one.thread.is_alive()] + [old]
            lost = [call for call, task in old.calls.items() if task is not None]
            for call in [call for call, task in old.calls.items() if task is None]:
                del old.calls[call]
                self._loop.take(call)
        for call in lost:
            reason = WorkerDied("a coroutine that was given up did not let go of its event loop")
            begun = None if call.began is None else 0
            call.set_exception(ChunkLost(reason, Ran([], [], []), begun, innocent=True))
        old.soon(old.end, True, False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if cancel_futures:
                for call in self._loop.calls:
                    call.slot.cancelled.set()
        self._loop.soon(self._loop.end, cancel_futures, True)
        if wait:
            # Bounded: a coroutine that never awaits cannot be stopped at all.
            self._loop.thread.join(2 * LOST_SECONDS if cancel_futures else None)
            deadline = time.monotonic() + LOST_SECONDS
            for one in self._lost:
                one.thread.join(max(0.0, deadline - time.monotonic()))


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
    slot = scope.current()
    if slot is None:
        scope.enter(scope.Slot(threads))
    else:
        slot.threads = threads
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
