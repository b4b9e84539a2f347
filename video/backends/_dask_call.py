"""A call of the Dask engine in a worker of the cluster: what it tells and answers, and how it is ended.

The scheduler does not say when a call began, so the call says so itself, by events.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import video.scope as scope
from video.backends import _pickling
from video.backends._chunk import Ran, portable
from video.errors import NotPicklable, described

CONFIRM_SECONDS = 30.0
"""How long a call waits at most until the scheduler lets it begin; mostly that takes a millisecond."""
KEPT = 100_000
"""So many calls ago, none can still be on its way."""
GRACE_SECONDS = 0.5
"""How long a call that is given up may take to end by itself, before its worker is killed."""

TAKEN, BEGAN, ENDED, REPORT, MADE, GONE = range(6)
"""Events of a call: its worker has it, and imports what it needs (only with a time limit, which excludes
that); it begins; its result is on its way; how far it is; a file that is unfinished, or no longer."""
DONE, FAILED, UNREADABLE, BROKEN, REFUSED = range(5)
"""Answers: a result; an error; the call did not unpickle; the worker's initializer failed; it may not begin,
since it had begun before, on a worker that is dead, or for the reason in the body."""


class Parcel:
    """Something pickled, and the large buffers that were left out of the pickle: the cluster's connections
    carry those without a copy, each time that it travels.

    :param what: of an answer, what it is.
    """

    __slots__ = ("body", "buffers", "what")

    def __init__(self, what: int, body: bytes, buffers: Sequence[Any] = ()) -> None:
        self.what = what
        self.body = body
        self.buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.what, self.body, [pickle.PickleBuffer(buffer) for buffer in self.buffers])

    def __sizeof__(self) -> int:  # by this the scheduler judges what a transfer costs
        return len(self.body) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def open(self) -> Any:
        return pickle.loads(self.body, buffers=self.buffers)  # noqa: S301  # our own processes' bytes


def parcel_of(what: int, value: Any) -> Parcel:
    """
    :raises NotPicklable: with the reason.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        return Parcel(what, pickle.dumps(value, protocol=5, buffer_callback=buffers.append), buffers)
    except Exception:  # noqa: BLE001  # pickling runs foreign code, which may raise anything
        return Parcel(what, _pickling.dumps_by_value(value))


class _Hooks:
    """Initializer and finalizer in one worker process."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._finalizer: Callable[[], object] | None = None
        self._ready = False

    def prepare(self) -> None:
        """Run the initializer, once, in the thread of the first call: what it sets up may belong to that
        thread. Raises what it raised, again for each call."""
        with self._lock:
            if not self._ready:
                self._ready = True
                try:
                    initializer, self._finalizer = _pickling.loads(self._packed)
                    if initializer is not None:
                        initializer()
                except BaseException as error:  # noqa: BLE001  # whatever it raises, the caller is to know
                    self._error, self._finalizer = error, None
            if self._error is not None:
                raise self._error

    def leave(self) -> None:
        if self._finalizer is not None:
            try:
                self._finalizer()
            except BaseException:  # it must not keep the worker from leaving
                logging.getLogger("video").exception("the finalizer of a worker failed")


_hooks: dict[str, _Hooks] = {}
_running: dict[tuple[str, int], _Slot] = {}
"""The calls that this worker runs."""


def hooks_plugin(topic: str, packed: bytes) -> Any:
    """What brings the hooks into each worker, also into those that come later."""
    distributed = importlib.import_module("distributed")

    class VideoHooks(distributed.WorkerPlugin):  # type: ignore[name-defined,misc]  # imported when needed
        # The class travels by value, so its methods must fetch the module's variables.
        def setup(self, worker: Any) -> None:
            from video.backends import _dask_call

            _dask_call._hooks[topic] = _dask_call._Hooks(packed)

        def teardown(self, worker: Any) -> None:
            from video.backends import _dask_call

            if (hooks := _dask_call._hooks.pop(topic, None)) is not None:
                hooks.leave()

    return VideoHooks()


class _Cancelled(threading.Event):
    """Also set once the scheduler has withdrawn the task, as it does when the caller's process is gone."""

    def __init__(self, worker: Any) -> None:
        super().__init__()
        self._tasks = worker.state.tasks
        self._key = worker.get_current_task()

    def is_set(self) -> bool:
        task = self._tasks.get(self._key)
        return super().is_set() or (task is not None and task.state == "cancelled")


class _Slot(scope.Slot):
    """A call's place in a worker."""

    __slots__ = ("files",)

    def __init__(self, worker: Any, tell: Callable[..., None]) -> None:
        self.files: set[str] = set()

        def declare(path: str, unfinished: bool) -> None:
            (self.files.add if unfinished else self.files.discard)(path)
            tell(MADE if unfinished else GONE, path)

        super().__init__(
            cancelled=_Cancelled(worker), declare=declare, listener=functools.partial(tell, REPORT)
        )


def _refusal(worker: Any, topic: str, number: int, address: str) -> Parcel | None:
    """Ask the scheduler whether the call may begin, of which it then has heard; None: it may.

    What a worker only sends can be lost with it: whoever writes to a dead one finds the connection broken,
    and drops what was still to be read from it. And foreign code may keep the interpreter's lock from now on.
    """
    ask = getattr(worker.scheduler, _begin_op(topic))
    asked = asyncio.run_coroutine_threadsafe(ask(number=number, address=address), worker.loop.asyncio_loop)
    try:
        return None if asked.result(CONFIRM_SECONDS) else Parcel(REFUSED, b"")
    except Exception as error:  # noqa: BLE001  # the network's, or a scheduler's that was started anew
        return Parcel(REFUSED, described(error).encode("utf-8", "replace"))


def run_call(about: tuple[str, int, bool, bool], call: Parcel | bytes) -> Parcel:
    """A task of the cluster: one call. It never raises, so that what does is the cluster's fault."""
    topic, number, timed, hooked = about
    worker = importlib.import_module("distributed").get_worker()

    def tell(what: int, *more: Any) -> None:
        worker.log_event(topic, (what, number, *more))

    slot = _Slot(worker, tell)
    _running[topic, number] = slot
    try:
        address = worker.contact_address or worker.address
        if timed:
            tell(TAKEN, address)
        elif (refusal := _refusal(worker, topic, number, address)) is not None:
            return refusal
        if hooked and (hooks := _hooks.get(topic)) is not None:
            try:
                hooks.prepare()
            except BaseException as error:  # noqa: BLE001  # as in `prepare`
                return parcel_of(BROKEN, portable(error))
        try:
            fn, args = _pickling.loads(call) if isinstance(call, bytes) else call.open()
        except BaseException:  # noqa: BLE001  # unpickling runs foreign code, which may raise anything
            return Parcel(UNREADABLE, traceback.format_exc().encode("utf-8", "replace"))
        del call
        if timed and (refusal := _refusal(worker, topic, number, address)) is not None:
            return refusal
        try:
            with scope.entered(slot):
                result = fn(*args)
        except BaseException as error:  # noqa: BLE001  # a call must not end its worker by raising
            return parcel_of(FAILED, portable(error))
        if timed:
            tell(ENDED)
        return _packed_result(result)
    finally:
        del _running[topic, number]


def _packed_result(result: Any) -> Parcel:
    if isinstance(result, Ran) and result.errors:
        errors = [
            (place, *((error, text) if text else portable(error))) for place, error, text in result.errors
        ]
        result = result._replace(errors=errors)
    try:
        return parcel_of(DONE, result)
    except NotPicklable as error:
        if isinstance(result, Ran):
            return parcel_of(DONE, _pickling.without_unpicklable(result))
        return parcel_of(FAILED, portable(error))


async def end_call(topic: str, number: int, dask_worker: Any) -> None:
    """Make a call end, if it still runs: it may do so by itself, or else ends with its worker.

    Runs on the worker's event loop, which alone starts tasks: between the look at the call and the kill no
    other call can have begun.
    """
    slot = _running.get((topic, number))
    if slot is None:
        return
    slot.cancelled.set()
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        if (topic, number) not in _running:
            return
    if dask_worker.nanny is not None:  # without one, nobody would start it again
        for path in list(slot.files):
            scope.remove(path)
        kill_tree(os.getpid())


def end_worker(address: str, dask_worker: Any) -> None:
    """In a nanny: kill its worker, if it is still that one."""
    if dask_worker.worker_address == address and dask_worker.pid:
        kill_tree(dask_worker.pid)


def kill_tree(pid: int) -> None:
    """Kill a process and its children (ffmpeg), itself last."""
    psutil = importlib.import_module("psutil")  # comes with distributed
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.Error):
                one.kill()


def _begin_op(topic: str) -> str:
    """What the scheduler is asked by a call that is to begin."""
    return f"begin_{topic}"


def open_topic(topic: str, dask_scheduler: Any) -> None:
    """In a scheduler: let each call begin once, and tell of it.

    A result that dies with its worker, the scheduler would have made anew, of its own accord and uncounted,
    even where the caller has it already and has only not yet said so.
    """
    begun: set[int] = set()

    def begin(number: int, address: str) -> bool:
        if number in begun:
            return False
        begun.add(number)
        if len(begun) > 2 * KEPT:
            begun.difference_update([one for one in begun if one < number - KEPT])
        dask_scheduler.log_event(topic, (BEGAN, number, address))
        return True

    dask_scheduler.handlers[_begin_op(topic)] = begin


def forget_topic(topic: str, dask_scheduler: Any) -> None:
    """In a scheduler: the last events of each topic are kept for ever."""
    dask_scheduler.handlers.pop(_begin_op(topic), None)
    dask_scheduler._broker._topics.pop(topic, None)
