"""What an engine is: one that opens an executor, and says by its traits which promises it can keep.

`submit -> Future` is the whole interface. Three more methods are optional, and the runner uses them where
they exist:

- `running(future)`: `(position, started)` of the item of this call that runs now, `started` being
  `time.monotonic()` of its real start (a time to come puts its time limit off); None while none runs. An
  engine without it has its calls timed from when `Future.running()` was first seen true.
- `kill(future)`: give up this running call now. Where the trait `kills` holds, it is really stopped;
  elsewhere its worker is replaced, so that it holds no slot any more.
- `watch(future, listener)`: pass on what the call reports of its progress (`video.scope.report`).

A call that its engine lost fails with any exception; one that knows more raises `ChunkLost`.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import video.scope as scope
from video.config import ParallelConfig
from video.errors import NotPicklable, RemoteError, RemoteTraceback

CHUNK_SECONDS = 0.2
"""A chunk that has run this long gives back what it has not begun: it was sized for less work, and other
workers may be idle. The upper end of the 50 to 200 ms that the planner aims at."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine costs and can do; read by the planner, the runner and `video backends`."""

    start: float
    """Seconds until the first worker answers (benchmarks/bench_start.py)."""
    call: float
    """Seconds of overhead for a call of one item (benchmarks/bench_dispatch.py)."""
    own_gil: bool
    """Items run Python code truly at once."""
    pickles: bool
    """Tasks, items and results cross a process border."""
    coroutines: bool
    """Runs `async def` tasks."""
    kills: bool
    """A running item can be stopped, whatever it does."""
    remote: bool
    """Items may run on other machines."""
    exact: bool = False
    """A death names its item, and keeps what its chunk had finished; so chunks may have time limits."""


class Executor(Protocol):
    """The part of `concurrent.futures.Executor` that is needed here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Backend(Protocol):
    """An engine; made with the batch's settings, and registered under a name."""

    traits: ClassVar[Traits]

    def __init__(self, config: ParallelConfig) -> None: ...

    def open(self, workers: int) -> Executor:
        """An executor of that many workers.

        :raises BackendUnavailable: if it cannot start here.
        """
        ...


class Ran(NamedTuple):
    """What became of a chunk, or of its first items: plain sequences, since they are cheap to pickle."""

    values: list[Any]
    """One for each item that ran; None where it failed."""
    seconds: list[float]
    errors: list[tuple[int, BaseException, str]]
    """(place in `values`, error, traceback text or "" where the error still has its own)"""
    positions: Sequence[int] | None = None
    """Where the values belong in the chunk; None: the first is the chunk's first, and so on."""
    notes: Sequence[Any] = ()
    """Logs, prints and warnings of the items, where no pipe carries them (`_forward`)."""


class ChunkLost(Exception):
    """A chunk that its engine lost, and what is known about it.

    :param error: why, as the culprit's outcome will say it.
    :param finished: what had finished before; kept.
    :param position: in the chunk, of the item that ran when it was lost; None: none had begun, or it was between two.
    :param certain: that item is to blame. Where a death takes other workers along (loky), nobody knows.
    """

    def __init__(
        self, error: BaseException, finished: Ran, position: int | None = None, *, certain: bool = True
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.finished = finished
        self.position = position
        self.certain = certain


def run_chunk(task: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Ran:
    """Run `task` on each item; what one raises costs that item alone. Ends early, with fewer values than
    items, after `CHUNK_SECONDS`, or once its slot is given up.

    :param threads: native threads that an item may use.
    """
    slot = scope.current()
    if slot is None:
        with scope.entered(scope.Slot(threads)) as slot:
            return _run(task, items, slot)
    slot.threads = threads
    if slot.board is not None:  # this worker writes down, for its parent to read, which item it is on
        return slot.board.run(task, items)  # type: ignore[no-any-return]  # see `_board`
    return _run(task, items, slot)


def _run(task: Callable[[Any], Any], items: Sequence[Any], slot: scope.Slot) -> Ran:
    values: list[Any] = []
    seconds: list[float] = []
    errors: list[tuple[int, BaseException, str]] = []
    clock = time.monotonic
    start = clock()
    stop = start + CHUNK_SECONDS
    for item in items:
        try:
            values.append(task(item))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # sys.exit() in an item must not end its worker
            errors.append((len(values), error, ""))
            values.append(None)
        end = clock()
        seconds.append(end - start)
        start = end
        if end > stop or slot.cancelled.is_set():
            break
    return Ran(values, seconds, errors)


def run_packed(
    task: Callable[[Any], Any], items: bytes, threads: int, levels: dict[str, int]
) -> bytes:
    """`run_chunk` for an engine that only submits: what crosses is bytes, so that nothing that an item is
    or returns can break the engine, and what it logs, prints and warns comes along.

    :param items: pickled list.
    :param levels: of the caller's loggers, see `_forward.levels`.
    """
    from video.backends import _forward, _pickling  # only where borders are crossed

    notes: list[_forward.Note] = []
    forwarding = _forward.Forwarding(notes.append, levels)
    forwarding.start()
    try:
        ran = run_chunk(task, _pickling.loads(items), threads)
    finally:
        forwarding.stop()
    ran = ran._replace(errors=[(place, *portable(error)) for place, error, _ in ran.errors], notes=notes)
    try:
        return _pickling.dumps_by_value(ran)
    except NotPicklable:
        return _pickling.dumps_by_value(_pickling.without_unpicklable(ran))


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

    async def run(position: int, item: Any) -> None:
        start = clock()
        value = None
        try:
            value = await task(item)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a cancellation must pass
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
        for one in tasks:
            one.cancel()
    return Ran([], [], [], ())


def portable(error: BaseException) -> tuple[BaseException, str]:
    """The error, or a `RemoteError` in its stead where it cannot cross a border, and its traceback text.

    Errors that pickle but do not unpickle (httpx's, for one) break whole pools elsewhere, so the round
    trip is tried here, in the worker.
    """
    from video.backends import _pickling  # only where borders are crossed

    text = "".join(traceback.format_exception(error))
    try:
        _pickling.loads(_pickling.dumps(error))
        return error, text
    except Exception:  # noqa: BLE001  # whatever its pickling raises
        return RemoteError(f"{type(error).__name__}: {error}", kind=type(error).__qualname__), text


def arrived(error: BaseException, text: str) -> BaseException:
    """The error as it stands in the caller's process, with the worker's traceback as its cause."""
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
