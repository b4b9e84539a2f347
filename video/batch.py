"""One batch on one executor: the loop between the reducer, which decides, and the engine, which runs.

items -> [draw] -> reducer -> leases on the executor -> [wait] -> reducer -> runs of outcomes -> caller
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import queue
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from video import plan
from video.backends.base import CHUNK_SECONDS, Executor, Ran, Traits, run_chunk, run_packed
from video.config import ParallelConfig
from video.errors import BackendUnavailable, BatchFailed, ItemCancelled, described
from video.events import Event, Kind, Observer, emit, logger
from video.gate import Gate
from video.outcome import Outcome
from video.reducer import Lease, Reducer, Rules
from video.relief import Relief
from video.spot import SpotChecks, SpotCheckWarning

R = TypeVar("R")

DRAW_SECONDS = 0.01
"""A slow input iterator may hold up the forming of a chunk this long; then the chunk goes as it is."""
LEASES_EACH = 4
"""Chunks that the engine has for each worker: the way to and fro is hidden, and little waits behind a stuck
one (benchmarks/bench_dispatch.py: 2 are 1.2 times slower where items travel alone, 8 no faster)."""
HEED_SECONDS = 0.25
"""No wait is longer. CPython looks for signals before a wait and is woken by them in it, and one that comes
in between (on a busy machine, one Ctrl-C of a hundred) would be heeded only when the wait is over."""
AT_HAND = (list, tuple, range)
"""Inputs that never keep anyone waiting."""
PAUSE = object()
"""An input that yields this has nothing to give just now; it calls `Batch.wake` when it has."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine that is there, and how this batch is to use it."""

    choice: plan.Choice
    executor: Executor
    traits: Traits
    run: Callable[..., Ran] = run_chunk
    """What runs a chunk; one that measures it, while the engine is being chosen."""
    target: float | None = None
    """Seconds of work in one chunk; None: what is usual for its kind."""
    each: float = 0.0
    """Seconds that an item is taken for, where those that have ended were briefer."""
    bounded: bool = False
    """Its width holds for what an earlier engine still runs, too."""
    gradual: bool = False
    """So it does until this one has answered, but for one worker."""
    here: bool = False
    """The thread that asks for the outcomes runs the items; what takes long there, holds up nothing else."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a batch has done by now."""

    done: int
    """Items that have ended."""
    work: float
    """Seconds that they took in their workers."""
    left: int | None
    """Items that have not begun, as far as is known; None: nobody knows how many there are."""
    running: tuple[float, ...] = ()
    """For how long those that run have run."""
    last: float = 0.0
    """`time.monotonic()` when one ended last."""
    answer: tuple[float, float] | None = None
    """`time.monotonic()` of the first answer of the engine that the batch is on, and the seconds of work in
    it; None: that has not answered."""


class Pilot(Protocol):
    """Chooses the engine while the batch runs (`video.auto`)."""

    @property
    def eager(self) -> bool:
        """It wants to be asked after everything that happens."""

    check_at: float
    """`time.monotonic()` by which to ask it in any case."""

    def steer(self, now: float, progress: Progress) -> Opened | None:
        """The engine for what comes next, where that changes."""

    def close(self) -> None:
        """The batch has ended."""


class Batch(Generic[R]):
    """One batch, on one engine at a time: what an earlier one has, it keeps."""

    def __init__(
        self,
        owner: object,
        task: Callable[[Any], R],
        items: Iterable[Any],
        total: int | None,
        opened: Opened,
        config: ParallelConfig,
        ordered: bool,
        observers: tuple[Observer, ...],
        prefetch: bool = True,
        pilot: Pilot | None = None,
        gate: Gate | None = None,
        order: Sequence[int] | None = None,
        step_down: Callable[[plan.Choice, BackendUnavailable], Opened] | None = None,
    ) -> None:
        """:param step_down: to a simpler engine, where the present one has broken down; None: never."""
        self._owner = owner  # a caller may keep only the stream; without its runner the workers would end
        self._items = iter(items)
        self._at_hand = type(items) in AT_HAND
        self._total = total
        self._observers = observers
        self._pilot = pilot
        self._gate = gate
        self._config = config
        self._prefetch = prefetch
        self._step_down = step_down

        self._pid = os.getpid()
        self._lock = Lock()
        """Held around the reducer, since `cancel` comes from other threads."""
        self._done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        """(lease number, its future or a part of its results); 0: look again."""
        self._task = task
        self._coroutine = is_coroutine_function(task)
        self._engine = self._place(opened)
        rules, sizes = self._rules(opened, ordered)
        self._reducer = Reducer(rules, sizes, total, gate, order)
        self._checks = SpotChecks(task, config.spot_check) if config.spot_check else None
        self._held: dict[int, tuple[Future[Any], _Place]] = {}
        """What engines have, by lease."""
        self._mine: tuple[Future[Any], tuple[Any, ...]] | None = None
        """A call that is for the caller's own thread."""
        self._last = 0.0
        self._seen: dict[int, float] = {}
        """When a call was first seen running, on an executor that does not say when it began."""
        self._input_error: Exception | None = None
        self._paused = False
        """The input has nothing to give just now."""
        self._stopped = False
        self._abandoned = False
        self._finished = False

    def _place(self, opened: Opened) -> _Place:
        call = Call(self._task, self._coroutine, opened, self._done.put)
        executor = opened.executor
        return _Place(opened, call, getattr(executor, "kill", None), getattr(executor, "running", None))

    def _rules(self, opened: Opened, ordered: bool) -> tuple[Rules, plan.ChunkSizes]:
        choice, total, traits, config = opened.choice, self._total, opened.traits, self._config
        width = choice.workers if total is None else max(1, min(choice.workers, total))
        timed = config.timeout is not None
        # A clock that runs on an item must not run on its neighbours, unless a board tells them apart.
        alone = timed and not traits.exact
        limit = 1 if alone else config.chunk_size or plan.LARGEST_CHUNK
        if config.max_items_per_worker is not None:
            limit = min(limit, config.max_items_per_worker)
        # What is measured is not to wait for its turn, nor to be crowded by more of its kind.
        prefetch = self._prefetch and not alone and not traits.inline and opened.run is run_chunk
        rules = Rules(
            width=width,
            most_leases=LEASES_EACH * width if prefetch else width,
            lookahead=config.lookahead,
            timeout=config.timeout,
            ordered=ordered,
            fast=config.fail == "fast",
            max_kills=config.max_kills,
            max_memory_kills=config.max_memory_kills,
            by_items=self._coroutine,
            bounded=opened.bounded,
            gradual=opened.gradual,
            degrades=self._step_down is not None
            and plan.after_breakdown(choice.backend, timed=timed) is not None,
            forgets=hasattr(opened.executor, "kill"),
        )
        target = opened.target or plan.chunk_seconds(pickles=traits.pickles)
        return rules, plan.ChunkSizes(limit, width, target)

    def _steer(self) -> None:
        """Go on with another engine, if it is time to."""
        if self._reducer.broken is not None:
            self._go_down(self._reducer.broken)
        pilot = self._pilot
        if pilot is None or not (pilot.eager or pilot.check_at <= time.monotonic()):
            return
        opened = pilot.steer(time.monotonic(), self._progress())
        if opened is None:
            return
        before, choice = self._engine.opened.choice, opened.choice
        self._move(opened)
        if choice == before:  # in other steps
            return
        self._tell(Kind.ENGINE_CHOSEN, total=self._total, workers=choice.workers, message=choice.reason)

    def _move(self, opened: Opened) -> None:
        """What comes next is for this engine."""
        rules, sizes = self._rules(opened, self._reducer.rules.ordered)
        engine = self._place(opened)
        with self._lock:
            for number, (future, _) in list(self._held.items()):
                if future.cancel():  # it only waited there
                    del self._held[number]
                    self._reducer.recalled(number)
            self._engine = engine
            self._reducer.move(rules, sizes, opened.each)

    def _go_down(self, error: BackendUnavailable) -> None:
        """The engine has broken down: go on with a simpler one."""
        assert self._step_down is not None
        opened = self._engine.opened
        try:
            opened = self._step_down(opened.choice, error)
        except BackendUnavailable:  # there is no other: what it has left fails as it did
            self._step_down = None
        if self._pilot is not None:  # it counts on engines that work
            self._pilot.close()
            self._pilot = None
        self._move(opened)

    def _progress(self) -> Progress:
        reducer = self._reducer
        with self._lock:
            now = time.monotonic()
            ages = tuple(age for lease in reducer.leases() if (age := self._age(lease, now)) is not None)
            left = None
            if self._total is not None or reducer.ended:
                total = reducer.drawn if reducer.ended else max(self._total or 0, reducer.drawn)
                left = max(0, total - reducer.done - len(ages))
            return Progress(reducer.done, reducer.work, left, ages, self._last, reducer.answer)

    def _age(self, lease: Lease, now: float) -> float | None:
        """For how long the item of a lease that runs now has run, at least; None: none does."""
        held, runs = self._held.get(lease.number), self._runs(lease.number)
        if held is None or runs is None or runs[1] > now:
            return None
        age = now - runs[1]
        if held[1].opened.traits.exact or len(lease.items) == 1:
            return age
        return max(0.0, age - CHUNK_SECONDS)  # the chunk's: after that no other item of it would have begun

    def rounds(self) -> Generator[list[Outcome[R]], None, None]:
        """Outcomes in lists, as soon as there are any."""
        started = time.perf_counter()
        choice, reducer = self._engine.opened.choice, self._reducer
        self._tell(Kind.BATCH_STARTED, total=self._total, workers=choice.workers, message=choice.reason)
        try:
            while not self._stopped:
                if self._abandoned:
                    raise ItemCancelled("its runner was closed while the batch ran")
                self._steer()
                room = self._fill()
                if self._mine is not None:
                    self._run_mine(*self._mine)
                # Not by what the engine still has: a thread that was given up may never end.
                if reducer.leased or reducer.waits or self._paused:
                    self._wait(block=not room)
                if due := self._due():
                    if self._gate is not None:
                        self._gate.flush()
                    yield due
                if reducer.finished:
                    break
            if reducer.failed is not None:
                raise self._batch_failed(reducer.failed)
            if self._input_error is not None:
                raise self._input_error
            if self._checks is not None and not self._stopped:
                self._spot_check(self._checks)
        finally:
            self._finished = True
            gate = self._gate if os.getpid() == self._pid else None  # a forked child has none of this
            if gate is not None:
                self._take_rest()
            self._leave()
            if gate is not None:
                with self._lock:
                    gate.leave(time.monotonic(), reducer.drawn if reducer.ended else None)
            if self._pilot is not None:
                self._pilot.close()
            counts = self._gate.counts() if self._gate is not None and self._observers else {}
            seconds = time.perf_counter() - started
            self._tell(Kind.BATCH_FINISHED, total=reducer.handed, seconds=seconds, counts=counts)

    def stop(self) -> None:
        """End `rounds`, from any thread."""
        self._stopped = True
        self.wake()

    def wake(self) -> None:
        """Make `rounds` look again, from any thread."""
        self._done.put((0, None))

    def abandon(self) -> None:
        """Give up what runs, and make `rounds` raise, from any thread."""
        if not self._finished:
            self._abandoned = True
            self._leave()
            self.wake()

    def cancel(self, index: int) -> bool:
        """See `video.runner.Stream.cancel`; from any thread."""
        with self._lock:
            lease = self._reducer.holder(index)
            if lease is not None:
                _, engine = self._held.get(lease.number, (None, self._engine))
                traits = engine.opened.traits
                if not (traits.kills and (traits.exact or len(lease.items) == 1)):
                    return False  # it would run on, or nobody knows which item of its chunk runs
            running = None if lease is None else self._runs(lease.number)
            cancelled, number = self._reducer.cancel(index, running, time.monotonic())
            if cancelled and lease is not None and len(lease.settled) == len(lease.items):
                # The engine need not run any of it: neither what runs, nor what waits or loads.
                held = self._held.get(lease.number)
                if held is not None and not held[0].cancel():
                    number = lease.number
            if number is not None:
                self._give_up(number)
        self.wake()
        return cancelled

    def _fill(self) -> bool:
        """Lease what can be drawn at once; True if there may be more to draw."""
        reducer, started = self._reducer, time.monotonic()
        while True:
            now = time.monotonic()
            with self._lock:
                next_lease = reducer.next_lease(now)
            if isinstance(next_lease, Lease):
                self._submit(next_lease)
            else:
                # The input is the caller's code, and may take its time: not under the lock.
                items = self._draw(next_lease) if next_lease else []
                if not items:
                    return False
                with self._lock:
                    lease = reducer.drew(items, time.monotonic())
                if lease is not None:
                    self._submit(lease)
            if now - started > DRAW_SECONDS:
                return True  # a slow input must not hold up what is ready, or the time limits

    def _draw(self, size: int) -> list[Any]:
        items: list[Any] = []
        self._paused = False
        try:
            if self._at_hand:
                items += itertools.islice(self._items, size)
                self._reducer.ended = len(items) < size
            else:
                self._reducer.ended = self._draw_patiently(size, items)
        except Exception as error:  # noqa: BLE001  # it is the caller's, and is raised to him at the end
            self._input_error, self._reducer.ended = error, True
        if self._checks is not None:
            self._checks.drew(self._reducer.upcoming(len(items)), items)
        return items

    def _draw_patiently(self, size: int, items: list[Any]) -> bool:
        """Add to `items` what the input gives without delay; True if it has ended."""
        clock, add = time.monotonic, items.append
        patience = clock() + DRAW_SECONDS
        for item in itertools.islice(self._items, size):
            if item is PAUSE:
                self._paused = True
                return False
            add(item)
            if clock() > patience:
                return False
        return len(items) < size

    def _submit(self, lease: Lease) -> None:
        number, engine = lease.number, self._engine
        executor = engine.opened.executor
        if engine.opened.here:
            mine: Future[Any] = Future()
            self._held[number] = mine, engine
            self._mine = mine, engine.call.of(lease)
            mine.add_done_callback(lambda done: self._done.put((number, done)))
            return
        try:
            future = executor.submit(*engine.call.of(lease))
        except Exception as error:  # noqa: BLE001  # an executor may break down in any way
            future = Future()
            future.set_exception(error)
        else:
            if self._observers and len(lease.items) == 1 and hasattr(executor, "watch"):
                executor.watch(future, functools.partial(self._report, lease.indexes[0]))
        self._held[number] = future, engine
        future.add_done_callback(lambda done: self._done.put((number, done)))

    def _run_mine(self, future: Future[Any], call: tuple[Any, ...]) -> None:
        self._mine = None
        if not future.set_running_or_notify_cancel():
            return
        run, *arguments = call
        relief = Relief(self._drive, self.wake)
        try:
            ran = run(*arguments)
        except Exception as error:  # noqa: BLE001  # as an executor has it
            relief.end()
            future.set_exception(error)
        except BaseException:
            self._stopped = True
            relief.end()
            raise
        else:
            relief.end()
            future.set_result(ran)

    def _drive(self, relief: Relief) -> None:
        """The loop of `rounds` in another thread, while its own runs an item."""
        while not (relief.over or self._stopped or self._abandoned):
            self._steer()
            inline = self._engine.opened.traits.inline  # what is next is for the caller's thread, too
            room = not inline and self._fill()
            self._wait(block=not room)

    def _report(self, index: int, fraction: float, words: str) -> None:
        self._tell(Kind.ITEM_PROGRESS, index=index, fraction=fraction, message=words)

    def _wait(self, *, block: bool) -> None:
        """Take what has happened; with `block` wait a little until something has, or a time limit is due."""
        reducer, happened = self._reducer, self._done
        with contextlib.suppress(queue.Empty):
            at = reducer.check_at() if self._pilot is None else min(reducer.check_at(), self._pilot.check_at)
            if self._gate is not None:
                at = min(at, self._gate.watch_at)
            number, what = happened.get(block, max(0.0, min(HEED_SECONDS, at - time.monotonic())))
            while True:
                self._take(number, what)
                number, what = happened.get_nowait()
        now = time.monotonic()
        if reducer.check_at() <= now:
            with self._lock:
                running = {lease.number: self._runs(lease.number) for lease in reducer.leases()}
                for number in reducer.overdue(now, running):
                    self._give_up(number)
        if self._gate is not None and self._gate.watch_at <= now:
            self._watch(self._gate, now)
        self._tell_news()

    def _watch(self, gate: Gate, now: float) -> None:
        why, policy = gate.watch(now)
        if not why:
            return
        for engine in {id(engine): engine for _, engine in self._held.values()}.values():
            relieve = getattr(engine.opened.executor, "relieve", None)
            if relieve is not None and relieve(policy.tree, why):
                policy.ended()
                self._tell(Kind.MEMORY_PRESSED, message=why)
                logger.warning("the fattest worker was ended: %s", why)

    def _take(self, number: int, what: Any) -> None:
        if number and not (self._stopped or self._abandoned):
            self._take_in(number, what)

    def _take_rest(self) -> None:
        """What has ended and nobody will be handed: a checkpoint is to have it all the same."""
        with contextlib.suppress(queue.Empty):
            while True:
                number, what = self._done.get_nowait()
                if number:
                    self._take_in(number, what)

    def _take_in(self, number: int, what: Any) -> None:
        self._last = time.monotonic()
        if isinstance(what, Ran):
            with self._lock:
                self._reducer.returned(number, what, last=False, now=self._last)
            return
        held = self._held.get(number)
        if held is None:  # it was recalled
            return
        answer = _answer(what, held[1])  # not under the lock: reading a result may run the user's code
        with self._lock:
            self._held.pop(number, None)
            self._seen.pop(number, None)
            if isinstance(answer, Ran):
                self._reducer.returned(number, answer, now=self._last)
            else:
                self._reducer.lost(number, answer, self._last)

    def _tell_news(self) -> None:
        """What has happened to items, at once and not in their turn: people watch it."""
        reducer = self._reducer
        with self._lock:
            news, reducer.news = reducer.news, []
            reruns, reducer.reruns = reducer.reruns, []
        if self._observers:
            for count, reason in reruns:
                self._tell(Kind.ITEMS_RERUN, total=count, error=reason)
            for outcome in itertools.chain.from_iterable(news):
                kind = Kind.ITEM_FINISHED if outcome.ok else Kind.ITEM_FAILED
                self._tell(kind, index=outcome.index, seconds=outcome.seconds, error=outcome.error)

    def _give_up(self, number: int) -> None:
        held = self._held.get(number)
        # A lease that its engine could not take has a future that is none of its calls, but is done.
        if held is not None and held[1].kill is not None and not held[0].done():
            held[1].kill(held[0])

    def _runs(self, number: int) -> tuple[int, float] | None:
        """Position and start of the item of a lease that runs now."""
        future, engine = self._held.get(number, (None, None))
        if future is None or engine is None or future.done():
            return None
        if engine.running is not None:
            return engine.running(future)
        if number not in self._seen and future.running():
            self._seen[number] = time.monotonic()
        return (0, self._seen[number]) if number in self._seen else None

    def _due(self) -> list[Outcome[R]]:
        with self._lock:
            runs = self._reducer.due()
        due = runs[0] if len(runs) == 1 else [outcome for run in runs for outcome in run]
        if self._checks is not None:
            self._checks.finished(due)
        return due

    def _batch_failed(self, failed: Outcome[R]) -> BatchFailed:
        reducer, reason = self._reducer, failed.error
        assert reason is not None
        outcomes = reducer.unhanded()
        waiting = reducer.waiting()
        running: list[int] = []
        for lease in reducer.leases():
            held = self._held.get(lease.number)
            # First, so that what is called waiting cannot begin any more.
            never = held is not None and held[0].cancel()
            at = None if never else self._runs(lease.number)
            exact = held is not None and held[1].opened.traits.exact
            for position, index in enumerate(lease.indexes):
                if position not in lease.settled:
                    later = at is not None and exact and position > at[0]
                    (waiting if never or later else running).append(index)
        error = BatchFailed(
            f"item {failed.index} failed, which ends the batch ({described(reason)})",
            failed=failed.index,
            outcomes=outcomes,
            done=sorted(set(reducer.drawn_indexes()).difference(running, waiting)),
            running=running,
            waiting=sorted(waiting),
        )
        error.__cause__ = reason
        return error

    def _spot_check(self, checks: SpotChecks) -> None:
        name = self._engine.opened.choice.backend
        for index, values in checks.differences():
            message = f"item {index}: {name} gave {values[0]!r}, the caller's process {values[1]!r}"
            self._tell(Kind.SPOT_CHECK_DIFFERED, index=index, message=message, values=values)
            warnings.warn(f"spot check: {message}", SpotCheckWarning, stacklevel=2)

    def _leave(self) -> None:
        """Cancel what waits, give up what runs."""
        if os.getpid() != self._pid:
            return  # a forked child: what runs is its parent's
        # All first: the worker of a killed call would take another at once.
        running = [number for number, (future, _) in list(self._held.items()) if not future.cancel()]
        for number in running:
            self._give_up(number)

    def _tell(self, kind: Kind, **fields: Any) -> None:
        if self._observers:
            emit(self._observers, Event(kind, self._engine.opened.choice.backend, **fields))


class _Place(NamedTuple):
    """An engine that the batch uses, or has used."""

    opened: Opened
    call: Call
    kill: Callable[[Future[Any]], None] | None
    running: Callable[[Future[Any]], tuple[int, float] | None] | None


def _answer(future: Future[Any], engine: _Place) -> Ran | BaseException:
    """What a lease came to."""
    if future.cancelled():
        return ItemCancelled("its engine cancelled it")
    if (error := future.exception()) is not None:
        return error
    try:
        return engine.call.read(future.result())
    except Exception as failure:  # noqa: BLE001  # whatever a result's own code raises
        return failure


class Call:
    """How a lease is said to the engine, and how its answer is read.

    :param hand: takes (lease number, results) of items that are done before their lease is.
    """

    def __init__(
        self,
        task: Callable[[Any], Any],
        coroutine: bool,
        opened: Opened,
        hand: Callable[[tuple[int, Ran]], None],
    ) -> None:
        self._run = opened.run
        self._threads = opened.choice.threads
        self._hand = hand
        self._coroutine = coroutine
        self._packs = False
        if coroutine:
            from video.backends.loop import run_coroutines

            self._run_coroutines = run_coroutines
        if opened.traits.pickles:
            from video.backends import _board, _forward, _pickling

            self._unreadable = _board.unreadable
            task = _pickling.Shipped(task)  # type: ignore[assignment]  # it arrives as the task
            # An executor that only submits breaks on much that pickles badly, and carries no logs.
            self._packs = not getattr(opened.executor, "packs", False)
            self._pickling, self._forward, self._levels = _pickling, _forward, _forward.levels()
        self._task = task

    def of(self, lease: Lease) -> tuple[Any, ...]:
        """What to submit.

        :raises NotPicklable: if an item cannot cross.
        """
        if self._coroutine:
            number, hand = lease.number, self._hand
            return (
                self._run_coroutines,
                self._task,
                lease.items,
                self._threads,
                lambda ran: hand((number, ran)),
            )
        if self._packs:
            items = self._pickling.dumps_by_value(lease.items)
            return run_packed, self._task, items, self._threads, self._levels
        return self._run, self._task, lease.items, self._threads

    def read(self, answer: Any) -> Ran:
        if not self._packs:
            return answer  # type: ignore[no-any-return]  # what `run_chunk` returns
        try:
            ran: Ran = self._pickling.loads(answer)
        except Exception as error:
            raise self._unreadable(error) from error
        for note in ran.notes:
            self._forward.replay(note)
        return ran


def is_coroutine_function(task: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(task)) or inspect.iscoroutinefunction(
        getattr(task, "__call__", None)  # noqa: B004  # an object with an async __call__
    )
