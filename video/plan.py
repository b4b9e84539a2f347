"""Decisions of the runner as pure functions and small values: which engine, how wide, how large a chunk."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from video.config import BackendType, ParallelConfig

TARGET_SECONDS = 0.1
"""Work in one chunk: long enough to drown the cost of a call (about 0.05 ms, benchmarks/bench_dispatch.py),
short enough that no worker waits long for the last one."""
NEAR_TARGET_SECONDS = 0.02
"""The same where items stay in this process: a call takes a quarter as long, and what is drawn and finished
ahead, a few chunks for each worker, fills this process's own memory."""
LARGEST_CHUNK = 1024
"""The cost of a call is then below 0.1 us an item."""
GROWTH = 64
"""From one chunk to the next: few steps, since each may take 20 ms (Dask). Where quick items come first and
slow ones follow, a worker gives back what it has not begun (`backends.base.CHUNK_SECONDS`)."""
LEAST_SECONDS = 1e-3
"""Work that no chunk goes below at the end of a batch: some ten times the cost of a call."""
SPREAD_SECONDS = 5e-3
"""Below this, items of unlike lengths still travel together: a call costs 1 % of it."""
CLUSTER_ITEMS = 500
"""Items from which on a cluster is taken unmeasured: below, one machine is quick enough."""
ASYNC_WIDTH = 64
"""Coroutines at once: they wait rather than compute, so the CPUs are no bound."""
LOOKAHEAD_EACH = 64
"""Items drawn and not yet handed out, for each worker, where chunks are small: results wait for one that
takes this many times longer than the others, and no worker idles."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a batch runs, and why."""

    backend: str
    workers: int
    threads: int
    """Native threads of each item: workers x threads <= usable CPUs, unless the user asks for more."""
    reason: str
    measure: bool = False
    """No rule says which engine: it is to be measured, and this is where that begins."""


def choose(
    config: ParallelConfig, *, coroutine: bool, total: int | None, cpus: int, nested: bool, isolate: bool
) -> Choice:
    """Choose engine, width and threads by the rules that need no measuring, the first that fits:

    1. inside a worker: serial, so that workers do not multiply;
    2. an engine that the user names;
    3. an `async def` task: async;
    4. what only worker processes can do: dask where a cluster is named and there is enough for it, else
       process;
    5. one item: serial;
    6. else it is to be measured (`video.auto`), on a thread.

    :param total: number of items, or None if the input does not say.
    :param isolate: items must not share the caller's process.
    """
    measure = False
    if nested:
        backend, reason = "serial", "this code already runs in a worker"
    elif config.backend != BackendType.AUTO:
        backend, reason = str(config.backend), "it was asked for"
    elif coroutine:
        backend, reason = "async", "the task is a coroutine function"
    elif words := _needs_processes(config, isolate):
        backend, reason = "process", words
        if names_cluster(config) and (total is None or total >= CLUSTER_ITEMS):
            backend, reason = "dask", f"{words}, and a cluster is there"
    elif total is not None and total <= 1:
        backend, reason = "serial", "there is one item at most"
    else:
        backend, reason, measure = "thread", "nothing is known of the task yet", True

    if backend == "serial":
        workers = 1
    else:
        workers = config.max_workers or (ASYNC_WIDTH if backend == "async" else cpus)
    busy = workers if total is None else max(1, min(workers, total))
    return Choice(backend, workers, native_threads(config.threads_per_worker, cpus, busy), reason, measure)


def native_threads(fixed: int | None, cpus: int, workers: int) -> int:
    """Native threads of each item: what the user says, else what the workers leave of the CPUs."""
    return fixed or max(1, cpus // workers)


def _needs_processes(config: ParallelConfig, isolate: bool) -> str:
    """Why only worker processes will do; empty: others may."""
    if config.timeout is not None:
        return "a time limit needs an engine that can stop an item"
    if isolate:
        return "an item that crashes must not take the program along"
    if config.max_items_per_worker is not None or config.max_worker_memory_mb is not None:
        return "only worker processes can be replaced"
    return ""


def names_cluster(config: ParallelConfig) -> bool:
    """A Dask cluster is there to be used."""
    return config.cluster is not None or bool(os.environ.get("DASK_SCHEDULER_ADDRESS"))


def chunk_seconds(*, pickles: bool) -> float:
    """Seconds of work that one chunk is to take.

    :param pickles: it crosses a process border.
    """
    return TARGET_SECONDS if pickles else NEAR_TARGET_SECONDS


def usual_lookahead(width: int, chunk: int) -> int:
    """Items drawn and not yet handed out at most, where the user does not say."""
    return max(LOOKAHEAD_EACH * width, 4 * width * chunk)


SIMPLER = {"dask": "process", "joblib": "process", "process": "thread", "thread": "serial"}
"""What does the work of an engine that cannot start."""


def simpler(backend: str, *, timed: bool) -> str | None:
    """The engine that does the work of one that cannot; None: there is none.

    :param timed: items have time limits.
    """
    next_one = SIMPLER.get(backend)
    return None if next_one == "serial" and timed else next_one


def after_breakdown(backend: str, *, timed: bool) -> str | None:
    """The same for one that breaks down in the middle of a batch. Not from processes to the program itself:
    whatever ends workers as soon as they start would end that."""
    return None if backend == "process" else simpler(backend, timed=timed)


def instead(choice: Choice, backend: str, why: str) -> Choice:
    """The same on another engine."""
    workers = 1 if backend == "serial" else choice.workers
    return Choice(backend, workers, choice.threads, why)


class ChunkSizes:
    """Sizes of the next chunks, from the seconds that items took in their workers.

    Towards `target` seconds of work by mean plus one deviation; one chunk may be at most `GROWTH` times the
    one before; towards the end of a batch of known length by factoring, so that workers end together
    (Hummel, Schonberg, Flynn: Factoring, CACM 35(8), 1992). Long items, and those of widely spread
    lengths, travel alone.

    :param limit: the largest chunk.
    :param workers: that share what is left.
    :param target: seconds of work in one chunk.
    """

    def __init__(self, limit: int, workers: int, target: float = TARGET_SECONDS) -> None:
        self.limit = limit
        self.seconds = 0.0
        """That all items took together which were observed."""
        self._workers = workers
        self._target = target
        self._size = 1
        self._least = 1
        """Below this, dividing what is left costs more than it gains."""
        self._mean: float | None = None
        self._square = 0.0

    @property
    def known(self) -> bool:
        """There is nothing to learn, or something has been learnt."""
        return self.limit == 1 or self._mean is not None

    def observe(self, seconds: Sequence[float]) -> None:
        """Learn from the item times of one finished chunk."""
        if not seconds:
            return
        count, whole = len(seconds), sum(seconds)
        self.seconds += whole
        if self.limit == 1:
            return
        mean, square = whole / count, sum(map(mul, seconds, seconds)) / count
        if self._mean is not None:  # the latest chunk weighs as much as all before it
            mean, square = (mean + self._mean) / 2, (square + self._square) / 2
        self._mean, self._square = mean, square
        self._resize(GROWTH * self._size)

    def follow(self, other: ChunkSizes, least: float = 0.0) -> None:
        """Go on from what another learnt of the same items.

        :param least: seconds that an item is taken for, where those that have ended were briefer.
        """
        self.seconds = other.seconds
        self._mean, self._square = other._mean, other._square
        if self._mean is not None and self._mean < least:
            spread = max(0.0, self._square - self._mean * self._mean)
            self._mean, self._square = least, least * least + spread
        if self._mean is not None:
            self._resize(self.limit)

    def _resize(self, most: int) -> None:
        assert self._mean is not None
        mean = self._mean
        deviation = math.sqrt(max(0.0, self._square - mean * mean))
        usual = mean + deviation
        wanted = self.limit if usual <= 0 else int(min(self.limit, self._target / usual))
        if deviation > mean and usual > SPREAD_SECONDS:
            wanted = 1
        self._size = max(1, min(wanted, most))
        self._least = self.limit if usual <= 0 else int(min(self.limit, LEAST_SECONDS / usual))

    def next(self, left: int | None) -> int:
        """Items for the next chunk, at least 1; `left` is what remains of the input, where known."""
        if left is None:
            return self._size
        return max(1, min(self._size, max(self._least, math.ceil(left / (2 * self._workers)))))
