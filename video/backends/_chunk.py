"""A chunk of items in its worker, and what its engine says of it.

A worker process imports this and little else: no typing, dataclasses or asyncio, which would take longer
than all the rest of its start (benchmarks/bench_start.py).
"""

from __future__ import annotations

import threading
import time
from collections import namedtuple

import video.scope as scope
from video.errors import NotPicklable, RemoteError, RemoteTraceback, described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NamedTuple

CHUNK_SECONDS = 0.2
"""A chunk that has run this long gives back what it has not begun: it was sized for less work, and other
workers may be idle. Twice what the planner aims at where items cross a border."""

if TYPE_CHECKING:

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

else:
    Ran = namedtuple("Ran", "values seconds errors positions notes", defaults=(None, ()))


class ChunkLost(Exception):
    """A chunk that its engine lost, and what is known about it.

    :param error: why, as the culprit's outcome will say it.
    :param finished: what had finished before; kept.
    :param position: in the chunk, of the item that ran when it was lost; None: none had begun, or it was
        between two.
    :param certain: that item is to blame. Where a death takes other workers along (loky), nobody knows.
    :param innocent: none of its items is, since the engine knows of another cause.
    """

    def __init__(
        self,
        error: BaseException,
        finished: Ran,
        position: int | None = None,
        *,
        certain: bool = True,
        innocent: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.finished = finished
        self.position = position
        self.certain = certain
        self.innocent = innocent


def joined(parts: list[Ran]) -> Ran:
    """Parts of one chunk, in order, as one."""
    if len(parts) == 1:
        return parts[0]
    whole = Ran([], [], [])
    for part in parts:
        done = len(whole.values)
        whole.errors.extend((done + place, error, text) for place, error, text in part.errors)
        whole.values.extend(part.values)
        whole.seconds.extend(part.seconds)
    return whole


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


_hearing = threading.Lock()


def run_packed(task: Callable[[Any], Any], items: bytes, threads: int, levels: dict[str, int]) -> bytes:
    """`run_chunk` for an engine that only submits: what crosses is bytes, so that nothing that an item is
    or returns can break the engine, and what it logs, prints and warns comes along.

    :param items: pickled list.
    :param levels: of the caller's loggers, see `_forward.levels`.
    """
    from video.backends import _forward, _pickling  # only where borders are crossed

    notes: list[_forward.Note] = []
    forwarding = _forward.Forwarding(notes.append, levels)
    # Streams belong to the process: of calls that run side by side in one, only the first is heard.
    heard = _hearing.acquire(blocking=False)
    if heard:
        forwarding.start()
    try:
        try:
            unpacked = _pickling.loads(items)
        except Exception as error:
            raise NotPicklable(
                f"does not unpickle in a worker process ({described(error)})",
                cure="Pass plain data such as paths, or use the thread engine.",
            ) from error
        ran = run_chunk(task, unpacked, threads)
    finally:
        if heard:
            forwarding.flush()
            forwarding.stop()
            _hearing.release()
    errors = [
        (place, error, text) if text else (place, *portable(error)) for place, error, text in ran.errors
    ]
    ran = ran._replace(errors=errors, notes=notes)
    try:
        return _pickling.dumps_by_value(ran)
    except NotPicklable:
        return _pickling.dumps_by_value(_pickling.without_unpicklable(ran))


def portable(error: BaseException) -> tuple[BaseException, str]:
    """The error, or a `RemoteError` in its stead where it cannot cross a border, and its traceback text.

    Errors that pickle but do not unpickle (httpx's, for one) break whole pools elsewhere, so the round
    trip is tried here, in the worker.
    """
    import traceback

    from video.backends import _pickling  # only where borders are crossed

    text = "".join(traceback.format_exception(error))
    # The text says it all. Plain pickle drops these, but tblib, which `distributed` installs for every kind
    # of error, takes them along, and with them whatever those errors hold: connections, secrets, megabytes.
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        _pickling.loads(_pickling.dumps(error))
        return error, text
    except Exception:  # noqa: BLE001  # whatever its pickling raises
        return RemoteError(described(error), kind=type(error).__qualname__), text


def arrived(error: BaseException, text: str) -> BaseException:
    """The error as it stands in the caller's process, with the worker's traceback as its cause."""
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
