"""What callers hold: a runner keeps engines warm, and runs batches on them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import difflib
import functools
import math
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar, Unpack

import video.scope as scope
from video import plan, registry, resources, selector
from video.batch import AT_HAND, Batch, Opened, is_coroutine_function
from video.config import BackendType, ParallelConfig
from video.engines import Engines
from video.errors import (
    BackendUnavailable,
    BatchFailed,
    ConfigError,
    NotPicklable,
    described,
)
from video.events import Observer, logger
from video.gate import Gate
from video.outcome import Outcome
from video.policies.base import Keeper, Policy
from video.policies.standard import standard
from video.selector import Decision

if TYPE_CHECKING:
    from video.auto import Auto

T = TypeVar("T")
R = TypeVar("R")


ORDERS = ("input", "shortest", "longest")
CALIBRATED_FROM = 20.0
"""Seconds of work of which the half second that measuring the engines takes is a small part."""


class How(TypedDict, total=False):
    """What a caller may say of a batch."""

    total: int | None
    """Number of items, where the input has no length but the caller knows."""
    backend: str | None
    """An engine for this batch instead of the configured one."""
    isolate: bool
    """Items must not share the caller's process, since one may crash it: AUTO then takes worker processes. An
    engine that is named is taken all the same."""
    kind: str | None
    """What an item mostly does: "python", "native" (C code that releases the interpreter's lock, or child
    processes), or "io" (it waits). With `cost`, AUTO need not measure; one of them alone changes nothing."""
    cost: float | Callable[[Any], float] | None
    """Seconds that an item takes. Or a function of an item, in any unit: what each takes in comparison with
    the others, for `order`."""
    checkpoint: Keeper | None
    """A `video.policies.checkpoint.Checkpoint` for this batch: what an earlier run has done is not run again.
    It stays the caller's to close."""
    order: str
    """In which order items run: "input" (the default), or by their `cost`: "shortest" first, so that most of
    them are done soon, or "longest" first, so that no worker is left with a long one at the end. The input is
    then read to its end first. Outcomes have their places in either case."""
    key: Callable[[Any], str] | None
    """Of an item, what it uses and others use too (a host, a service): breakers and rate limits are kept for
    each. Called in the caller's own process."""


class Runner:
    """Runs a task on each item of a batch. Workers stay warm from batch to batch until `close`.

    May be used from several threads at once, and as a context manager.

    :param observers: told of every event, in all batches.
    :param policies: what decides whether, when and how often an item runs (`video.policies`). They stand
        after those that the settings ask for, but for those that may have the answer already (a cache,
        twins); and all batches of this runner share them.

    >>> with Runner(ParallelConfig(backend="thread", max_workers=2)) as runner:
    ...     [outcome.value for outcome in runner.map(len, ["a", "bb", "ccc"])]
    [1, 2, 3]
    """

    def __init__(
        self,
        config: ParallelConfig | None = None,
        *,
        observers: Iterable[Observer] = (),
        policies: Iterable[Policy] = (),
    ) -> None:
        if config is not None and not isinstance(config, ParallelConfig):
            raise ConfigError(
                f"config is {config!r}",
                cure='It takes a ParallelConfig, such as ParallelConfig(backend="process").',
            )
        self.config = config or ParallelConfig()
        self._observers = tuple(observers)
        row = (*standard(self.config, self._observers), *policies)
        self._policies = tuple(sorted(row, key=lambda policy: not policy.answers))
        self._engines = Engines(self.config, self._observers)
        self._latest: Callable[[], Decision | None] | None = None
        self._calibrated = False
        self._lock = Lock()
        self._running: weakref.WeakSet[Batch[Any]] = weakref.WeakSet()

    def map(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        **how: Unpack[How],
    ) -> list[Outcome[R]]:
        """One outcome for each item, in input order. Arguments and errors: see `rounds`."""
        outcomes: list[Outcome[R]] = []
        try:
            for some in self.rounds(task, items, **how):
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
        prefetch: bool = True,
        **how: Unpack[How],
    ) -> Stream[R]:
        """Outcomes one by one, as they come. Arguments and errors: see `rounds`.

        :param prefetch: hand workers their next item before they have ended the last, which hides the way
            to and fro; False: an item that has not begun is not with the engine either.
        """
        return Stream(self._batch(task, items, ordered, prefetch, **how))

    def rounds(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        ordered: bool = True,
        **how: Unpack[How],
    ) -> Generator[list[Outcome[R]], None, None]:
        """Outcomes in lists of those that are ready at once. Leaving the generator cancels what waits and
        gives up what runs.

        :param task: a function of one item; with the async engine it may be `async def`.
        :param items: any iterable, an endless one too; at most `lookahead` items are drawn ahead.
        :param ordered: in input order; False: as they finish.
        :param how: see `How`.
        :raises ConfigError: if the engine cannot run this task.
        :raises UnknownName, MissingDependency, BackendUnavailable: if there is no such engine here.
        :raises BatchFailed: with `fail="fast"`, at the first failure.
        :raises Exception: what `items` itself raises, after the outcomes of all that was drawn before.
        """
        return self._batch(task, items, ordered, **how).rounds()

    async def astream(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        *,
        ordered: bool = True,
        **how: Unpack[How],
    ) -> AsyncIterator[Outcome[R]]:
        """`stream` for async callers: the same loop, advanced in a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "video-astream") as thread:
            # The context holds the slot, where this runs in a worker.
            make = functools.partial(self._batch, task, items, ordered, **how)
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
        self._engines.close(self._abandon)

    def _abandon(self) -> None:
        if not self._engines.are_ours:  # after a fork: the batches are the parent's, and its workers too
            self._running.clear()
        with self._lock:
            running = list(self._running)
        for batch in running:
            batch.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def counts(self) -> dict[str, dict[str, Any]]:
        """What the policies of this runner have counted in all its batches, by their names: retries, cache
        hits, open circuits, states of rate limiters, the peak of memory."""
        return Gate(self._policies).counts()

    def choose(self, task: Callable[..., Any], **how: Unpack[How]) -> plan.Choice:
        """What a batch of this task starts on, and why; where `measure` is set, AUTO decides while it runs
        (`explain` then says what and why)."""
        config, slot = self.config, scope.current()
        backend = how.get("backend")
        if backend is not None and backend != BackendType.AUTO:
            config = dataclasses.replace(config, backend=backend)
        return plan.choose(
            config,
            coroutine=is_coroutine_function(task),
            total=how.get("total"),
            cpus=resources.usable_cpus() if slot is None else slot.threads,
            nested=slot is not None,
            isolate=how.get("isolate", False),
        )

    def explain(self, task: Callable[..., Any] | None = None, **how: Unpack[How]) -> Decision | None:
        """Which engine the latest batch of this runner ran on, or runs on by now, and why; None before one.

        `str()` of it is a table of what was measured, and of every engine's prediction or refusal.

        :param task: say instead what a batch of this task would run on, as far as that is known before any
            item has run: by the rules, by what is declared (`kind`, `cost`), or from earlier batches.
        """
        _check_names(how)
        if task is None:
            return None if self._latest is None else self._latest()
        choice = self.choose(task, **how)
        _, known = self._known(task, how)
        asked = self._asked(how)
        machine = selector.Machine(resources.usable_cpus(), min(resources.free_memory(), asked.memory))
        no_choice = choice.backend == "async" or scope.current() is not None
        engines = {} if no_choice else self._eligible()
        candidates = tuple(selector.foresee(one, known, asked, machine) for one in engines.values())
        if choice.measure and known is not None:
            best, reason = selector.decide(candidates)
            threads = plan.native_threads(self.config.threads_per_worker, machine.cpus, best.workers)
            choice = plan.Choice(best.backend, best.workers, threads, reason)
        choice = self._engines.replacement(choice)
        left = how.get("total")
        return Decision(
            choice.backend, choice.workers, choice.threads, choice.reason, candidates, known, machine, left
        )

    def _batch(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        ordered: bool,
        prefetch: bool = True,
        here: bool = True,
        **how: Unpack[How],
    ) -> Batch[R]:
        _check_names(how)
        if not callable(task):
            raise ConfigError(f"the task is {task!r}", cure="It takes a function of one item.")
        if how.get("total") is None and isinstance(items, Sized):
            how["total"] = len(items)
        total = how.get("total")
        selector.declared(how.get("kind"), _seconds(how))  # what is wrong in it is said on every engine
        items, order = _in_order(items, how.get("order", "input"), how.get("cost"))
        if order is not None:
            how["total"] = total = len(order)
        choice = self.choose(task, **how)
        # While the caller's thread runs an item, nobody can be handed another's outcome; what is drawn or
        # observed would be so in a strange thread; and it is no worker that could be prepared.
        prepared = self.config.initializer is not None or self.config.finalizer is not None
        gate = self._gate(how)
        watched = self._observers or gate is not None
        here = here and ordered and type(items) in AT_HAND and not watched and not prepared
        auto = self._auto(task, how, here) if choice.measure else None
        opened = self._engines.open(choice) if auto is None else auto.first()
        if is_coroutine_function(task) and not opened.traits.coroutines:
            raise ConfigError(
                f"the {choice.backend} engine cannot run an `async def` task", cure='Use backend="async".'
            )
        if self.config.timeout is not None and opened.traits.inline and scope.current() is None:
            raise ConfigError(
                f"the {choice.backend} engine cannot hold a time limit", cure="Use process or thread."
            )
        ruled: list[Decision] = []
        """What was decided without measuring, the last of it last."""
        if auto is None:
            ruled.append(_decision(opened.choice, total))
            logger.info("%s", ruled[0].line)
        self._latest = lambda: ruled[-1] if ruled or auto is None else auto.decision
        closings = self._engines.closings

        def step_down(choice: plan.Choice, error: BackendUnavailable) -> Opened:
            simpler = self._engines.step_down(choice, error, closings)
            ruled.append(_decision(simpler.choice, total))
            return simpler

        batch: Batch[R] = Batch(
            self,
            task,
            items,
            total,
            opened,
            self.config,
            ordered,
            self._observers,
            prefetch,
            pilot=auto,
            gate=gate,
            step_down=None if self.config.strict else step_down,
            order=order,
        )
        with self._lock:
            self._running.add(batch)
        return batch

    def _gate(self, how: How) -> Gate | None:
        """Where the policies of a batch stand; None: it has none."""
        keeper, key, cost = how.get("checkpoint"), how.get("key"), how.get("cost")
        if keeper is not None and not hasattr(keeper, "begin_many"):
            raise ConfigError(f"checkpoint is {keeper!r}", cure="It takes a video.Checkpoint(path).")
        if keeper is not None and (total := how.get("total")) is not None:
            keeper.set_total(total)  # now: a batch that is stopped does not come to its end
        if key is not None and not callable(key):
            raise ConfigError(f"key is {key!r}", cure="It takes a function of an item.")
        row = self._policies if keeper is None else (keeper, *self._policies)
        if scope.current() is not None:
            # The item that this runs in holds its own place until it has ended: to wait for room for more
            # would be to wait for ever.
            row = tuple(policy for policy in row if not hasattr(policy, "watch"))
        return Gate(row, key, functools.partial(_weight, cost) if callable(cost) else None) if row else None

    def _auto(self, task: Callable[..., Any], how: How, here: bool) -> Auto:
        """What chooses the engine of a batch while it runs.

        :param here: the caller's own thread may run what is measured.
        """
        # With what it needs, some milliseconds that other batches need not spend.
        from video.auto import Auto
        from video.backends import _pickling

        key, known = self._known(task, how)
        cpus, threads = resources.usable_cpus(), self.config.threads_per_worker
        closings = self._engines.closings

        def open_(choice: plan.Choice, own: bool) -> Opened:
            return self._engines.open(choice, closings, own)

        def crosses() -> str:
            try:
                _pickling.Shipped(task)
            except NotPicklable as error:
                return f"the task does not cross a process border ({error})"
            return ""

        asked = self._asked(how)
        return Auto(
            self._eligible, asked, cpus, threads, open_, self._engines.release, crosses, known, key, here
        )

    def _known(self, task: Callable[..., Any], how: How) -> tuple[str | None, selector.Measured | None]:
        """Under which key a task's items are remembered, and what is known of them."""
        from video import profiles

        key = profiles.key(task)
        known = selector.declared(how.get("kind"), _seconds(how))
        if known is None and key is not None:
            known = profiles.load(key)
        return key, known

    def _asked(self, how: How) -> selector.Asked:
        config = self.config
        return selector.Asked(
            config.max_workers,
            config.chunk_size or plan.LARGEST_CHUNK,
            kills="a time limit" if config.timeout is not None else "",
            isolated="an item may crash it" if how.get("isolate") else "",
            left=how.get("total"),
            memory=config.memory_limit_bytes or math.inf,
        )

    def _eligible(self, ahead: float = 0.0) -> dict[str, selector.Engine]:
        """The engines that AUTO may take.

        :param ahead: seconds of work that are left; much of it is worth measuring first what engines cost.
        """
        from video import calibrate

        names = ["serial", "thread", "process"]
        missing = {"joblib": "does what process does, and is taken only where it is asked for"}
        if plan.names_cluster(self.config):
            names.append("dask")
        else:
            missing["dask"] = "there is no cluster (`cluster`, or DASK_SCHEDULER_ADDRESS)"
        if ahead >= CALIBRATED_FROM and not self._calibrated and not calibrate.stored():
            self._calibrated = True  # even if it cannot be stored
            calibrate.calibrate(names[:3])
        open_ = self._engines.warm()
        engines = {}
        for name, cost in calibrate.costs(names).items():
            traits = registry.backends.get(name).traits
            warm = frozenset(workers for one, workers, own in open_ if one == name and not own)
            engines[name] = selector.Engine(name, traits, cost, warm)
        for name, words in missing.items():
            engines[name] = dataclasses.replace(engines["process"], name=name, missing=words)
        return engines


def _decision(choice: plan.Choice, total: int | None) -> Decision:
    return Decision(choice.backend, choice.workers, choice.threads, choice.reason, left=total)


def _check_names(how: Mapping[str, object]) -> None:
    """:raises ConfigError: for an argument that no batch has."""
    if unknown := how.keys() - How.__annotations__.keys():
        name = min(unknown)
        near = difflib.get_close_matches(name, [*How.__annotations__, "ordered", "prefetch"], 1)
        cure = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(How.__annotations__)}."
        raise ConfigError(f"a batch has no argument {name!r}", cure=cure)


def _seconds(how: How) -> float | None:
    """What an item takes, where the caller says it of all."""
    cost = how.get("cost")
    return None if callable(cost) else cost


def _in_order(
    items: Iterable[T], order: str, cost: float | Callable[[Any], float] | None
) -> tuple[Iterable[T], Sequence[int] | None]:
    """The items as they are to be drawn, and the place of each in the input; None: as they come.

    :raises ConfigError: for an unknown order, or one by a cost that nobody can say.
    """
    if order not in ORDERS:
        raise ConfigError(f"order is {order!r}", cure=f"It takes one of {', '.join(ORDERS)}.")
    if order == "input":
        return items, None
    if not callable(cost):
        raise ConfigError(
            f"order is {order!r}, and cost is {cost!r}", cure="Pass cost=, a function of an item."
        )
    items = list(items)
    costs = [_weight(cost, item, f"item {place}") for place, item in enumerate(items)]
    places = sorted(range(len(items)), key=costs.__getitem__, reverse=order == "longest")
    return [items[place] for place in places], places


def _weight(cost: Callable[[Any], float], item: Any, name: str | None = None) -> float:
    """What the caller's function says of an item, as a number that others can be compared with.

    :raises ConfigError: if it says none.
    """
    cure = "`cost` takes a function of an item that returns a number for each, such as its length in seconds."
    try:
        found: Any = cost(item)
        weight = math.nan if isinstance(found, str | bytes) else float(found)  # "9" is longer than "10"
    except Exception as error:
        raise ConfigError(f"has no cost ({described(error)})", subject=name, cure=cure) from error
    if math.isnan(weight):
        raise ConfigError(f"has the cost {found!r}", subject=name, cure=cure)
    return weight


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
