"""The engines of a runner: opened once and kept warm; where one cannot start, or breaks down in a batch, a
simpler one does its work.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from threading import Lock

from video import plan, registry
from video.backends.base import Executor, Traits
from video.batch import Opened
from video.config import ParallelConfig
from video.errors import BackendUnavailable, ConfigError, ItemCancelled
from video.events import Event, Kind, Observer, emit, logger

_owners = itertools.count(1)

Key = tuple[str, int, int]
"""Name, width, and the number of the batch that has it for itself (0: all may use it)."""


class EngineReplacedWarning(RuntimeWarning):
    """An engine cannot start here, or has broken down, and a simpler one does its work."""


class Engines:
    """May be used from several threads at once.

    :param observers: told of each engine that is replaced.
    """

    def __init__(self, config: ParallelConfig, observers: tuple[Observer, ...]) -> None:
        self.closings = 0
        """Batches from before the last one may open nothing any more."""
        self._config = config
        self._observers = observers
        self._lock = Lock()
        self._open: dict[Key, tuple[Executor, Traits]] = {}
        self._replaced: dict[str, tuple[str, str]] = {}
        """Engines that cannot start or have broken down: what does their work, and which of both."""
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _shut, self._open, self._pid)

    def open(self, choice: plan.Choice, closings: int | None = None, own: bool = False) -> Opened:
        """The engine that was chosen; where it cannot start, the next simpler one, with one warning.

        :param closings: for a batch that began after so many closings.
        :param own: for this batch alone.
        :raises BackendUnavailable: if there is none that starts, or `strict` is set.
        :raises ItemCancelled: if the runner was closed since the batch began.
        """
        told: list[Event] = []
        try:
            return self._first_that_starts(choice, closings, own, told)
        finally:  # not under the lock: who is told may close the runner
            for event in told:
                emit(self._observers, event)
            if told:
                self._warn("; ".join(event.message for event in told), raises=closings is None)

    def step_down(self, choice: plan.Choice, error: BackendUnavailable, closings: int) -> Opened:
        """A simpler engine for a batch whose own has broken down.

        :raises BackendUnavailable: if there is none.
        """
        event = None
        with self._lock:
            simpler = plan.after_breakdown(choice.backend, timed=self._config.timeout is not None)
            if simpler is None:
                raise error
            if choice.backend not in self._replaced:
                event = self._replace(choice.backend, simpler, "has broken down", error)
        if event is not None:
            emit(self._observers, event)
            logger.warning("%s", event.message)
            self._warn(event.message, raises=False)
        return self.open(choice, closings)

    def replacement(self, choice: plan.Choice) -> plan.Choice:
        """The same on the engine that does this one's work, as far as is known: itself, where it was not
        refused."""
        name, why = choice.backend, ""
        while name in self._replaced:
            name, what = self._replaced[name]
            why = why or f"{choice.backend} {what}"
        return plan.instead(choice, name, why) if why else choice

    def warm(self) -> list[Key]:
        """Those that are open."""
        with self._lock:
            return list(self._open)

    def release(self, executor: Executor) -> None:
        """A batch does not need the engine any more that it had for itself."""
        with self._lock:
            if not getattr(executor, "idle", False):
                return  # it ends when the runner does, which waits for what was given up
            for key, (one, _) in list(self._open.items()):
                if one is executor:
                    del self._open[key]
        executor.shutdown(wait=False)

    def close(self, abandon: Callable[[], object]) -> None:
        """End them all.

        :param abandon: has the batches that run give up, once they can open nothing more.
        """
        with self._lock:
            self.closings += 1
            abandon()
            self._replaced.clear()
            _shut(self._open, self._pid)

    @property
    def are_ours(self) -> bool:
        """False: this process was forked from the one that opened them."""
        return self._pid == os.getpid()

    def _first_that_starts(
        self, asked: plan.Choice, closings: int | None, own: bool, told: list[Event]
    ) -> Opened:
        with self._lock:
            if closings is not None and closings != self.closings:
                raise ItemCancelled("its runner was closed while the batch ran")
            if not self.are_ours:
                self._pid = os.getpid()
                self._open.clear()
            while True:
                choice = self.replacement(asked)
                try:
                    return Opened(choice, *self._executor(choice, own))
                except BackendUnavailable as error:
                    simpler = plan.simpler(choice.backend, timed=self._config.timeout is not None)
                    if self._config.strict or simpler is None:
                        told.clear()  # the error says all
                        raise
                    told.append(self._replace(choice.backend, simpler, "cannot start", error))

    def _replace(self, name: str, simpler: str, what: str, error: BackendUnavailable) -> Event:
        """From now on `simpler` does the work of this engine; what to tell of it."""
        self._replaced[name] = simpler, what
        message = f"the {name} engine {what}, {simpler} is used instead: {error}"
        return Event(Kind.ENGINE_REPLACED, simpler, message=message, error=error)

    @staticmethod
    def _warn(message: str, *, raises: bool) -> None:
        """
        :param raises: it may, where the user has made warnings errors; else that would end a batch that runs.
        """
        with contextlib.nullcontext() if raises else contextlib.suppress(EngineReplacedWarning):
            warnings.warn(message, EngineReplacedWarning, stacklevel=_callers_level())

    def _executor(self, choice: plan.Choice, own: bool) -> tuple[Executor, Traits]:
        key = choice.backend, choice.workers, next(_owners) if own else 0
        if key not in self._open:
            backend = registry.backends.get(choice.backend)(self._config)
            executor, traits = backend.open(choice.workers), backend.traits
            if traits.kills and not hasattr(executor, "kill"):
                executor.shutdown(wait=False)
                raise ConfigError(
                    f"the {choice.backend} engine says that it kills, and its executor has no method `kill`",
                    cure="Its author has to add one, or to say `kills=False`.",
                )
            self._open[key] = executor, traits
        return self._open[key]


def _callers_level() -> int:
    """The `stacklevel` of the first frame outside this package, seen from the calling function."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("video."):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # None at the end
    return level


def _shut(executors: dict[Key, tuple[Executor, Traits]], owner: int) -> None:
    while executors and os.getpid() == owner:  # a forked child must not end its parent's workers
        _, (executor, _) = executors.popitem()
        executor.shutdown(wait=True, cancel_futures=True)
