"""What callers hold: a runner keeps engines warm, and runs batches on them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import os
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import video.scope as scope
from video import plan, registry
from video.backends.base import Executor, Traits
from video.batch import Batch, is_coroutine_function
from video.config import BackendType, ParallelConfig
from video.errors import BackendUnavailable, BatchFailed, ConfigError
from video.events import Event, Kind, Observer, emit
from video.outcome import Outcome

T = TypeVar("T")
R = TypeVar("R")


class Runner:
    """Runs a task on each item of a batch. Workers stay warm from batch to batch until `close`.

    May be used from several threads at once, and as a context manager.

    >>> with Runner(ParallelConfig(backend="thread", max_workers=2)) as runner:
    ...     [outcome.value for outcome in runner.map(len, ["a", "bb", "ccc"])]
    [1, 2, 3]
    """

    def __init__(self, config: ParallelConfig | None = None, *, observers: Iterable[Observer] = ()) -> None:
        if config is not None and not isinstance(config, ParallelConfig):
            raise ConfigError(
                f"config is {config!r}",
                cure='It takes a ParallelConfig, such as ParallelConfig(backend="process").',
            )
        self.config = config or ParallelConfig()
        self._observers = tuple(observers)
        self._opening = Lock()
        self._open: dict[str, tuple[Executor, Traits]] = {}
        self._replaced: dict[str, str] = {}
        """Engines that cannot start, and what does their work."""
        self._running: weakref.WeakSet[Batch[Any]] = weakref.WeakSet()
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _shut, self._open, self._pid)

    def map(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        total: int | None = None,
        backend: str | None = None,
        usual: str = "thread",
    ) -> list[Outcome[R]]:
        """One outcome for each item, in input order. Arguments and errors: see `rounds`."""
        outcomes: list[Outcome[R]] = []
        try:
            for some in self.rounds(task, items, total=total, backend=backend, usual=usual):
                outcomes += some
        except BatchFailed as stop:  # nobody else has them
            stop.outcomes = outcomes + stop.outcomes
            raise
        return outcomes

    def stream(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        ordered: bool = True,
        total: int | None = None,
        backend: str | None = None,
        usual: str = "thread",
        prefetch: bool = True,
    ) -> Stream[R]:
        """Outcomes one by one, as they come. Arguments and errors: see `rounds`.

        :param prefetch: hand workers their next item before they have ended the last, which hides the way
            to and fro; False: an item that has not begun is not with the engine either.
        """
        return Stream(self._batch(task, items, ordered, total, backend, usual, prefetch))

    def rounds(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        ordered: bool = True,
        total: int | None = None,
        backend: str | None = None,
        usual: str = "thread",
    ) -> Generator[list[Outcome[R]], None, None]:
        """Outcomes in lists of those that are ready at once. Leaving the generator cancels what waits and
        gives up what runs.

        :param task: a function of one item; with the async engine it may be `async def`.
        :param items: any iterable, an endless one too; at most `lookahead` items are drawn ahead.
        :param ordered: in input order; False: as they finish.
        :param total: number of items, where `items` has no length but the caller knows.
        :param backend: an engine for this batch instead of the configured one.
        :param usual: the engine that AUTO falls back on (see `video.plan.choose`).
        :raises ConfigError: if the engine cannot run this task.
        :raises UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
        :raises BatchFailed: with `fail="fast"`, at the first failure.
        :raises Exception: what `items` itself raises, after the outcomes of all that was drawn before.
        """
        return self._batch(task, items, ordered, total, backend, usual).rounds()

    async def astream(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        ordered: bool = True,
        total: int | None = None,
        backend: str | None = None,
        usual: str = "thread",
    ) -> AsyncIterator[Outcome[R]]:
        """`stream` for async callers: the same loop, advanced in a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "video-astream") as thread:
            # The context holds the slot, where this runs in a worker.
            make = functools.partial(self._batch, task, items, ordered, total, backend, usual)
            batch = await loop.run_in_executor(thread, contextvars.copy_context().run, make)
            rounds = batch.rounds()
            try:
                while True:
                    advance = loop.run_in_executor(thread, next, rounds, None)
                    # Shielded: a cancelled caller must not leave the thread inside the batch unheeded.
                    outcomes = await asyncio.shield(advance)
                    if outcomes is None:
                        return
                    for outcome in outcomes:
                        yield outcome
            finally:
                batch.stop()
                await loop.run_in_executor(thread, rounds.close)

    def close(self) -> None:
        """End the workers and what they run. The runner can be used again; it then starts new ones.

        A batch that still runs, in another thread, ends there with `ItemCancelled`.
        """
        with self._opening:
            if self._pid != os.getpid():  # after a fork: the batches are the parent's, and its workers too
                self._running.clear()
            for batch in list(self._running):
                batch.abandon()
            self._replaced.clear()
            _shut(self._open, self._pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def choose(
        self,
        task: Callable[..., Any],
        total: int | None,
        *,
        backend: str | None = None,
        usual: str = "thread",
    ) -> plan.Choice:
        """What a batch of `total` items (None: unknown) of this task would run on, and why."""
        config, slot = self.config, scope.current()
        if backend is not None and backend != BackendType.AUTO:
            config = dataclasses.replace(config, backend=backend)
        return plan.choose(
            config,
            coroutine=is_coroutine_function(task),
            total=total,
            cpus=scope.usable_cpus() if slot is None else slot.threads,
            nested=slot is not None,
            usual=usual,
        )

    def _batch(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        ordered: bool,
        total: int | None,
        backend: str | None,
        usual: str,
        prefetch: bool = True,
    ) -> Batch[R]:
        if not callable(task):
            raise ConfigError(f"the task is {task!r}", cure="It takes a function of one item.")
        if total is None and isinstance(items, Sized):
            total = len(items)
        choice, executor, traits = self._engine(self.choose(task, total, backend=backend, usual=usual))
        if is_coroutine_function(task) and not traits.coroutines:
            raise ConfigError(
                f"the {choice.backend} engine cannot run an `async def` task", cure='Use backend="async".'
            )
        if self.config.timeout is not None and traits.inline and scope.current() is None:
            raise ConfigError(
                f"the {choice.backend} engine cannot hold a time limit", cure="Use process or thread."
            )
        batch: Batch[R] = Batch(
            self,
            task,
            items,
            total,
            executor,
            traits,
            choice,
            self.config,
            ordered,
            self._observers,
            prefetch,
        )
        with self._opening:
            self._running.add(batch)
        return batch

    def _engine(self, choice: plan.Choice) -> tuple[plan.Choice, Executor, Traits]:
        """The engine that was chosen; where it cannot start, the next simpler one, with one warning."""
        with self._opening:
            if self._pid != os.getpid():  # after a fork: the workers are the parent's
                self._pid = os.getpid()
                self._open.clear()
            messages: list[str] = []
            while True:
                name = self._replaced.get(choice.backend, choice.backend)
                if name != choice.backend:
                    choice = plan.instead(choice, name)
                try:
                    engine = self._executor(choice)
                    if messages:
                        warnings.warn("; ".join(messages), EngineReplacedWarning, stacklevel=_callers_level())
                    return choice, *engine
                except BackendUnavailable as error:
                    simpler = plan.SIMPLER.get(name)
                    holds = simpler != "serial" or self.config.timeout is None
                    if self.config.strict or simpler is None or not holds:
                        raise
                    self._replaced[name] = simpler
                    message = f"the {name} engine cannot start, {simpler} is used instead: {error}"
                    emit(self._observers, Event(Kind.ENGINE_REPLACED, simpler, message=message, error=error))
                    messages.append(message)

    def _executor(self, choice: plan.Choice) -> tuple[Executor, Traits]:
        if choice.backend not in self._open:
            backend = registry.backends.get(choice.backend)(self.config)
            self._open[choice.backend] = backend.open(choice.workers), backend.traits
        return self._open[choice.backend]


class EngineReplacedWarning(RuntimeWarning):
    """An engine cannot start here, and a simpler one does its work."""


class Stream(Generic[R]):
    """Outcomes of a running batch, one by one. Leaving it (`close`, or the end of a `with` block) cancels
    what waits and gives up what runs."""

    def __init__(self, batch: Batch[R]) -> None:
        self._batch = batch
        self._outcomes = _flat(batch.rounds())

    def __iter__(self) -> Iterator[Outcome[R]]:
        return self._outcomes

    def __next__(self) -> Outcome[R]:
        return next(self._outcomes)

    def cancel(self, index: int) -> bool:
        """Cancel one item, from any thread; its outcome is an `ItemCancelled`.

        An item that runs is stopped where the engine's trait `kills` holds. One that has not begun but
        travels in a chunk with others may still run; its result is then dropped.

        :return: False if it has ended, was not drawn yet, or runs where nothing can stop it.
        """
        return self._batch.cancel(index)

    def wake(self) -> None:
        """Say, from any thread, that an input that had paused (`video.batch.PAUSE`) has more to give."""
        self._batch.wake()

    def close(self) -> None:
        self._outcomes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _flat(rounds: Generator[list[Outcome[R]], None, None]) -> Generator[Outcome[R], None, None]:
    with contextlib.closing(rounds):
        for outcomes in rounds:
            yield from outcomes


def _callers_level() -> int:
    """The `stacklevel` of the first frame outside this package, seen from the calling function."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("video."):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # None at the end
    return level


def _shut(executors: dict[str, tuple[Executor, Traits]], owner: int) -> None:
    while executors and os.getpid() == owner:  # a forked child must not end its parent's workers
        _, (executor, _) = executors.popitem()
        executor.shutdown(wait=True, cancel_futures=True)
