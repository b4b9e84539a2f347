"""One batch on one executor: the loop that draws items, leases them out in chunks, and collects outcomes.

    items -> [fill] -> leases on the executor -> [wait] -> outcomes by index -> [due] -> caller

A lease is a chunk that the executor has. A chunk that fails as a whole (its worker died, or something in it
would not cross the border) is rerun one item at a time, so that only the culprit fails.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from video import plan
from video.backends.base import Executor, Ran, Traits, arrived, run_chunk, run_chunk_abroad, run_coroutine
from video.config import ParallelConfig
from video.errors import ItemCancelled, ItemTimeout
from video.events import Event, Kind, Observer, emit
from video.outcome import Outcome

R = TypeVar("R")

UNSTARTED_CHECK_SECONDS = 0.02
"""How often a call that has a time limit and has not begun is looked at; a started one has a due time."""
DRAW_SECONDS = 0.01
"""A slow input iterator may hold up the forming of a chunk this long; then the chunk goes as it is."""


class Lease:
    """A chunk that the executor has."""

    __slots__ = ("attempts", "expired", "indexes", "items", "seen")

    def __init__(self, indexes: Sequence[int], items: list[Any], attempts: int = 1) -> None:
        self.attempts = attempts
        self.indexes = indexes
        self.items = items
        self.expired = False
        self.seen: float | None = None
        """When it was first seen running, on an executor that does not say when it began."""


class Batch(Generic[R]):
    """One batch on one executor."""

    def __init__(
        self,
        owner: object,
        task: Callable[[Any], R],
        items: Iterator[Any],
        total: int | None,
        executor: Executor,
        traits: Traits,
        choice: plan.Choice,
        config: ParallelConfig,
        ordered: bool,
        observers: tuple[Observer, ...],
    ) -> None:
        self._owner = owner  # a caller may keep only the stream; without its runner the workers would end
        self._items = items
        self._total = total
        self._executor = executor
        self._choice = choice
        self._timeout = config.timeout
        self._ordered = ordered
        self._observers = observers

        coroutine = is_coroutine_function(task)
        self._run = run_coroutine if coroutine else run_chunk_abroad if traits.pickles else run_chunk
        if traits.pickles:
            from video.backends._pickling import Shipped

            task = Shipped(task)  # type: ignore[assignment]  # it arrives as the task
        self._task = task

        width = choice.workers if total is None else max(1, min(choice.workers, total))
        # A clock that runs on an item must not run on its neighbours; a coroutine shares its loop anyway.
        alone = coroutine or self._timeout is not None
        limit = 1 if alone else config.chunk_size or plan.LARGEST_CHUNK
        self._sizes = plan.ChunkSizes(limit, width)
        # One chunk more for each worker hides the way to and fro, but must not wait behind a stuck one.
        self._most_leases = width if alone or choice.backend == "serial" else 2 * width
        self._lookahead = config.lookahead or plan.LOOKAHEAD_EACH * width

        self._leases: dict[Future[Ran], Lease] = {}
        self._done: queue.SimpleQueue[Future[Ran] | None] = queue.SimpleQueue()
        self._again: deque[tuple[int, Any]] = deque()
        self._ready: dict[int, Outcome[R]] = {}
        self._drawn = 0
        self._handed = 0
        self._exhausted = False
        self._input_error: Exception | None = None
        self._stopped = False
        self._abandoned = False
        self._finished = False

    def rounds(self) -> Generator[list[Outcome[R]], None, None]:
        """Outcomes in lists, as soon as there are any."""
        started = time.perf_counter()
        choice = self._choice
        self._tell(Kind.BATCH_STARTED, total=self._total, workers=choice.workers, message=choice.reason)
        try:
            while not self._stopped:
                if self._abandoned:
                    raise ItemCancelled("its runner was closed while the batch ran")
                room = self._fill()
                if self._leases:
                    self._wait(block=not room)
                if due := self._due():
                    yield due
                if self._exhausted and self._handed == self._drawn:
                    break
            if self._input_error is not None:
                raise self._input_error
        finally:
            self._finished = True
            self._leave()
            self._tell(Kind.BATCH_FINISHED, total=self._handed, seconds=time.perf_counter() - started)

    def stop(self) -> None:
        """End `rounds`, from any thread."""
        self._stopped = True
        self._done.put(None)

    def abandon(self) -> None:
        """Give up what runs, and make `rounds` raise, from any thread."""
        if not self._finished:
            self._abandoned = True
            self._leave()
            self._done.put(None)

    def _fill(self) -> bool:
        """Lease what can be drawn at once; True if there may be more to draw."""
        while len(self._leases) < self._most_leases:
            started = time.monotonic()
            lease = self._draw()
            if lease is None:
                return False
            try:
                future = self._executor.submit(self._run, self._task, lease.items, self._choice.threads)
            except Exception as error:  # noqa: BLE001  # an executor may break down in any way
                future = Future()
                future.set_exception(error)
            self._leases[future] = lease
            if self._observers and len(lease.items) == 1 and hasattr(self._executor, "watch"):
                self._executor.watch(future, functools.partial(self._report, lease.indexes[0]))
            future.add_done_callback(self._done.put)
            if time.monotonic() - started > DRAW_SECONDS:
                return True  # a slow input must not hold up what is ready, or the time limits
        return False

    def _report(self, index: int, fraction: float, words: str) -> None:
        self._tell(Kind.ITEM_PROGRESS, index=index, fraction=fraction, message=words)

    def _draw(self) -> Lease | None:
        if self._again:
            index, item = self._again.popleft()
            return Lease((index,), [item], attempts=2)
        room = self._lookahead - (self._drawn - self._handed)
        if self._exhausted or room < 1:
            return None
        left = None if self._total is None else max(1, self._total - self._drawn)
        size = min(room, self._sizes.next(left))
        items: list[Any] = []
        patience = time.monotonic() + DRAW_SECONDS
        try:
            for item in itertools.islice(self._items, size):
                items.append(item)
                if time.monotonic() > patience:
                    break
            else:
                self._exhausted = len(items) < size
        except Exception as error:  # noqa: BLE001  # it is the caller's, and is raised to him at the end
            self._input_error, self._exhausted = error, True
        if not items:
            return None
        first, self._drawn = self._drawn, self._drawn + len(items)
        return Lease(range(first, self._drawn), items)

    def _wait(self, *, block: bool) -> None:
        """Take what has finished; with `block` wait until something has, or until a time limit is due."""
        with contextlib.suppress(queue.Empty):
            future = self._done.get(block, self._next_check() if block else None)
            while True:
                if future is not None:
                    self._take(future)
                future = self._done.get_nowait()
        if self._timeout is not None:
            self._expire(self._timeout)

    def _take(self, future: Future[Ran]) -> None:
        lease = self._leases.pop(future, None)
        if lease is None or lease.expired or self._stopped or self._abandoned:
            return
        error = ItemCancelled("its engine cancelled it") if future.cancelled() else future.exception()
        if error is None:
            self._keep(lease, future.result())
        elif len(lease.items) == 1:
            began = self._began(future, lease)
            seconds = 0.0 if began is None else max(0.0, time.monotonic() - began)
            self._finish(Outcome(lease.indexes[0], None, error, lease.attempts, seconds))
        else:
            self._again.extend(zip(lease.indexes, lease.items, strict=True))
            self._tell(Kind.ITEMS_RERUN, total=len(lease.items), error=error)

    def _keep(self, lease: Lease, ran: Ran) -> None:
        self._sizes.observe(ran.seconds)
        errors = {position: arrived(error, text) for position, error, text in ran.errors}
        for position, index in enumerate(lease.indexes):
            error = errors.get(position) if errors else None
            seconds = ran.seconds[position]
            self._finish(Outcome(index, ran.values[position], error, lease.attempts, seconds))

    def _finish(self, outcome: Outcome[R]) -> None:
        self._ready[outcome.index] = outcome
        if self._observers:
            kind = Kind.ITEM_FINISHED if outcome.ok else Kind.ITEM_FAILED
            self._tell(kind, index=outcome.index, seconds=outcome.seconds, error=outcome.error)

    def _due(self) -> list[Outcome[R]]:
        if self._ordered:
            due = []
            while (outcome := self._ready.pop(self._handed, None)) is not None:
                due.append(outcome)
                self._handed += 1
            return due
        due, self._ready = list(self._ready.values()), {}
        self._handed += len(due)
        return due

    def _began(self, future: Future[Ran], lease: Lease) -> float | None:
        began = getattr(self._executor, "began", None)
        if began is not None:
            return began(future)  # type: ignore[no-any-return]  # as `backends.base` says
        if lease.seen is None and future.running():
            lease.seen = time.monotonic()
        return lease.seen

    def _next_check(self) -> float | None:
        """Seconds until a time limit may be due, or None if none can be."""
        if self._timeout is None:
            return None
        wait = self._timeout
        for future, lease in self._leases.items():
            if not lease.expired:
                began, now = self._began(future, lease), time.monotonic()
                if began is None or began > now:
                    return UNSTARTED_CHECK_SECONDS
                wait = min(wait, began + self._timeout - now)
        return max(0.0, wait)

    def _expire(self, timeout: float) -> None:
        now = time.monotonic()
        kill = getattr(self._executor, "kill", None)
        for future, lease in list(self._leases.items()):
            began = self._began(future, lease)
            if lease.expired or future.done() or began is None or now - began < timeout:
                continue
            lease.expired = True
            if kill is not None:
                kill(future)
                del self._leases[future]
            error = ItemTimeout(
                f"ran longer than its limit of {timeout:g} s", cure="Raise `timeout`, or look at this input."
            )
            self._finish(Outcome(lease.indexes[0], None, error, lease.attempts, now - began))

    def _leave(self) -> None:
        """Cancel what waits, give up what runs."""
        kill = getattr(self._executor, "kill", None)
        for future in list(self._leases):
            if not future.cancel() and kill is not None:
                kill(future)

    def _tell(self, kind: Kind, **fields: Any) -> None:
        if self._observers:
            emit(self._observers, Event(kind, self._choice.backend, **fields))


def is_coroutine_function(task: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(task)) or inspect.iscoroutinefunction(
        getattr(task, "__call__", None)  # noqa: B004  # an object with an async __call__
    )
