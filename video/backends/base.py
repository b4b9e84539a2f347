"""What an engine is: one that opens an executor, and says by its traits which promises it can keep.

`submit -> Future` is the whole interface. Three more methods are optional, and the runner uses them where
they exist:

- `kill(future)`: give up this running call now. Where the trait `kills` holds, it is really stopped;
  elsewhere its worker is replaced, so that it holds no slot any more.
- `began(future)`: `time.monotonic()` of the moment when the call really started; None, or a time to come,
  if it has not.
- `watch(future, listener)`: pass on what the call reports of its progress (`video.scope.report`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import video.scope as scope
from video.config import ParallelConfig
from video.errors import NotPicklable, RemoteError, RemoteTraceback


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
    """What became of a chunk: three plain sequences, since they are cheap to pickle."""

    values: list[Any]
    """One for each item; None where it failed."""
    seconds: list[float]
    errors: list[tuple[int, BaseException, str]]
    """(position in the chunk, error, traceback text or "" where the error still has its own)"""


def run_chunk(task: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Ran:
    """Run `task` on each item; what one raises costs that item alone.

    :param threads: native threads that an item may use.
    """
    slot = scope.current()
    if slot is None:
        with scope.entered(scope.Slot(threads)):
            return _run(task, items)
    slot.threads = threads
    return _run(task, items)


def _run(task: Callable[[Any], Any], items: Sequence[Any]) -> Ran:
    values: list[Any] = []
    seconds: list[float] = []
    errors: list[tuple[int, BaseException, str]] = []
    clock = time.perf_counter
    for position, item in enumerate(items):
        start = clock()
        try:
            values.append(task(item))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # sys.exit() in an item must not end its worker
            values.append(None)
            errors.append((position, error, ""))
        seconds.append(clock() - start)
    return Ran(values, seconds, errors)


def run_chunk_abroad(task: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Ran:
    """`run_chunk` in a worker across a process border: its errors are made fit to travel."""
    ran = run_chunk(task, items, threads)
    return ran._replace(errors=[(position, *portable(error)) for position, error, _ in ran.errors])


async def run_coroutine(task: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Ran:
    """`run_chunk` for an `async def` task, one item after the other."""
    scope.enter(scope.Slot(threads))
    values: list[Any] = []
    seconds: list[float] = []
    errors: list[tuple[int, BaseException, str]] = []
    for position, item in enumerate(items):
        start = time.perf_counter()
        try:
            values.append(await task(item))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a cancellation must pass
            values.append(None)
            errors.append((position, error, ""))
        seconds.append(time.perf_counter() - start)
    return Ran(values, seconds, errors)


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


def without_unpicklable(ran: Ran, dumps: Callable[[Any], bytes]) -> Ran:
    """`ran` with each value that `dumps` refuses replaced by an error of its own item."""
    values, errors = list(ran.values), list(ran.errors)
    for position, value in enumerate(values):
        try:
            dumps(value)
        except Exception as error:  # noqa: BLE001  # whatever its pickling raises
            values[position] = None
            reason = NotPicklable(
                f"the result, of type {type(value).__qualname__}, cannot be pickled ({error})",
                cure="Return plain data, or use the thread engine.",
            )
            errors.append((position, reason, ""))
    return Ran(values, ran.seconds, sorted(errors, key=lambda one: one[0]))
