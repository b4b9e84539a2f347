"""What every engine costs on this machine: measured once, stored, and used until a version changes.

Other work on the machine can only make a figure larger, so each is the least of several rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from video import profiles, registry, resources
from video.backends.base import Backend, Executor, Traits, run_chunk, run_packed
from video.config import ParallelConfig
from video.errors import BackendUnavailable, MissingDependency, VideoError
from video.selector import Cost

WORKERS = 2
"""As the benchmarks have them; one where there is one CPU."""
CALLS = 64
"""Of one item, sent at once: the way to and fro is hidden, as in a batch."""
CHUNKS = 4
CHUNK_ITEMS = 1024
"""What `video.plan.LARGEST_CHUNK` is."""
ARRAYS = 4
ARRAY_BYTES = 4 << 20
"""Of the size of a frame; below 1 MB the call itself is most of what it takes."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
ROUND_SECONDS = 0.05
"""For the rounds of one figure together, if the least number of them takes no longer."""
START_SECONDS = 0.15
"""The same for cold starts."""
NAP_SECONDS = 1e-3
"""Length of a first call on threads: without, one would answer for all. It is subtracted."""
SETTLE_SECONDS = 0.5
"""A worker that has not answered for so long after the others is not waited for."""
FAR_QUICKER = 0.5
"""A start is stored that took less than this share of what was measured: one that is seen ends with the first
worker's answer, some time before the last."""
PATIENCE = 60.0
"""Seconds for one answer."""
MOST_SECONDS = 3600.0
"""A stored figure above this is damage."""

Progress = Callable[[str, Cost | VideoError | None], object]
"""Told (engine, None) before it is measured, then (engine, its cost) or (engine, why it has none)."""


def costs(names: Iterable[str]) -> dict[str, Cost]:
    """What engines cost here: as stored for this machine, else as their traits have it. Measures nothing.

    :param names: of engines. Those that cannot be loaded are left out.
    """
    known = remembered()
    found: dict[str, Cost] = {}
    for name in names:
        if name in known:
            found[name] = known[name]
        else:
            with contextlib.suppress(VideoError):
                found[name] = _assumed(registry.backends.get(name).traits)
    return found


def stored() -> bool:
    """Whether there are measured figures for this machine and these versions."""
    return bool(remembered())


def remembered() -> dict[str, Cost]:
    """The figures that are stored for this machine and these versions, by engine; mostly all or none."""
    try:
        path = file()
        status = path.stat()
        versions, engines = _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):
        return {}
    return dict(engines) if versions == _versions() else {}


def started(name: str, seconds: float) -> None:
    """An engine was just seen to start within so many seconds. If a far longer start is stored of it, that
    was measured while the machine had other work, and is put right."""
    known = remembered()
    if name in known and 0 < seconds < FAR_QUICKER * known[name].start:
        _store(known | {name: dataclasses.replace(known[name], start=seconds)})


def file() -> Path:
    """Where the figures are stored."""
    return profiles.folder() / "constants.json"


def calibrate(names: Iterable[str] | None = None, progress: Progress | None = None) -> dict[str, Cost]:
    """Measure engines, and store what they cost once all are measured; stored figures of others stay.

    It takes up to half a second for each engine, but for joblib and dask, which take some.

    :param names: None: all that are built in and installed, but not dask.
    :param progress: see `Progress`.
    :return: one entry for each engine that could start.
    :raises UnknownName: if there is no such engine; nothing is measured then.
    """
    if names is None:
        every = [name for name in registry.backends.builtin if name != "dask"]
        names = [name for name in every if registry.backends.why_unavailable(name) is None]
    names = list(names)
    for name in names:
        if name not in registry.backends.names():
            registry.backends.get(name)
    tell = progress or (lambda *_: None)
    found: dict[str, Cost] = {}
    for name in names:
        tell(name, None)
        try:
            found[name] = measure(name)
        except (BackendUnavailable, MissingDependency) as error:
            tell(name, error)
        else:
            tell(name, found[name])
    if found:
        _store(remembered() | found)
    return found


def _store(costs: dict[str, Cost]) -> None:
    engines = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
    profiles.write(file(), {"versions": _versions(), "engines": engines})


def measure(name: str) -> Cost:
    """What one engine costs, with its default settings; it is closed afterwards, and nothing is stored.

    :raises UnknownName, MissingDependency: if there is no such engine here.
    :raises BackendUnavailable: if it cannot start, or does not answer within a minute.
    """
    kind = registry.backends.get(name)
    try:
        return _measure(kind, min(WORKERS, resources.usable_cpus()), ParallelConfig(backend=name))
    except VideoError:
        raise
    except Exception as error:
        raise BackendUnavailable(
            f"cannot be measured ({type(error).__name__}: {error})",
            subject=f"backend {name!r}",
            cure="Leave it out, or see `video check-backend`.",
        ) from error


def _measure(kind: Any, workers: int, config: ParallelConfig) -> Cost:
    traits: Traits = kind.traits
    workers = 1 if traits.inline else workers
    with _opened(kind(config), workers) as executor:
        _all_answered(executor, traits, workers)  # this start loads modules, so its time is worth nothing
        call = _least(_round(executor, traits, abs, [[-1]] * CALLS))
        chunk = _least(_round(executor, traits, abs, [list(range(CHUNK_ITEMS))] * CHUNKS))
        byte = 0.0
        if traits.pickles:
            import numpy

            # A task that returns what it is given, and that workers can import without us.
            arrays = [[numpy.ones(ARRAY_BYTES, numpy.uint8)] for _ in range(ARRAYS)]
            array = _least(_round(executor, traits, numpy.asarray, arrays))
            byte = max(0.0, array - call) / (2 * ARRAY_BYTES)

    def cold() -> float:
        begun = time.perf_counter()
        with _opened(kind(config), workers) as executor:
            return _all_answered(executor, traits, workers) - begun

    start = _least(cold, START_SECONDS, rounds=2)
    return Cost(start, call, max(0.0, chunk - call) / CHUNK_ITEMS, byte)


@contextlib.contextmanager
def _opened(backend: Backend, workers: int) -> Iterator[Executor]:
    executor = backend.open(workers)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _least(seconds: Callable[[], float], budget: float = ROUND_SECONDS, rounds: int = LEAST_ROUNDS) -> float:
    """The least of at least so many rounds, and of more within the budget."""
    end = time.perf_counter() + budget
    found = [seconds() for _ in range(rounds)]
    while time.perf_counter() < end and len(found) < MOST_ROUNDS:
        found.append(seconds())
    return min(found)


def _all_answered(executor: Executor, traits: Traits, workers: int) -> float:
    """`time.perf_counter()` of when the last worker had given its first answer."""
    # Of a worker process its number is enough, and it need not import us for that.
    ask, nap = (os.getpid, 0.0) if traits.pickles else (_nap, 0.0 if traits.inline else NAP_SECONDS)
    answered: set[object] = set()
    last = time.perf_counter()
    while len(answered) < workers and (not answered or time.perf_counter() < last + SETTLE_SECONDS):
        calls = [executor.submit(ask, *([nap] if ask is _nap else [])) for _ in range(workers)]
        for call in calls:
            worker = call.result(PATIENCE)
            if worker not in answered:
                answered.add(worker)
                last = time.perf_counter()
    return last - nap


def _nap(seconds: float) -> int:
    time.sleep(seconds)
    return threading.get_ident()


def _round(
    executor: Executor, traits: Traits, task: Callable[[Any], Any], chunks: list[list[Any]]
) -> Callable[[], float]:
    """What sends all chunks as `video.batch.Call` does, reads the answers, and returns seconds for each."""
    submit, read = _ways(executor, traits, task)

    def run() -> float:
        begun = time.perf_counter()
        calls = [submit(chunk) for chunk in chunks]
        for call in calls:
            read(call.result(PATIENCE))
        return (time.perf_counter() - begun) / len(chunks)

    return run


def _ways(
    executor: Executor, traits: Traits, task: Callable[[Any], Any]
) -> tuple[Callable[[list[Any]], Future[Any]], Callable[[Any], object]]:
    """How a chunk is sent, and how its answer is read."""
    if not traits.pickles:
        return lambda items: executor.submit(run_chunk, task, items, 1), lambda ran: ran
    from video.backends import _forward, _pickling

    shipped: Any = _pickling.Shipped(task)  # it arrives as the task
    if getattr(executor, "packs", False):
        return lambda items: executor.submit(run_chunk, shipped, items, 1), lambda ran: ran
    levels = _forward.levels()
    dumps, loads = _pickling.dumps_by_value, _pickling.loads
    return lambda items: executor.submit(run_packed, shipped, dumps(items), 1, levels), loads


def _assumed(traits: Traits) -> Cost:
    """Until it is measured: in between what engines of the kind took on one machine."""
    if traits.pickles:
        return Cost(traits.start, traits.call, item=1e-6, byte=1e-9)
    return Cost(traits.start, traits.call, item=3e-7)


def _versions() -> dict[str, str | int]:
    return profiles.versions() | {"machine": _digest(platform.node())}


@functools.lru_cache(maxsize=1)
def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _read(path: Path, *state: int) -> tuple[object, dict[str, Cost]]:  # noqa: ARG001  # see below
    """What a file holds: (versions, figures by engine).

    :param state: changes with the file, which is then read again.

    :raises OSError, ValueError: if it cannot be read, or is not ours.
    """
    found = profiles.read(path)
    engines = found.get("engines")
    if not isinstance(engines, dict):
        raise ValueError(f"{path} holds no engines")
    costs: dict[str, Cost] = {}
    for name, figures in engines.items():
        if not isinstance(figures, dict):
            raise ValueError(f"{path} holds no figures of {name}")
        fields = [field.name for field in dataclasses.fields(Cost)]
        costs[name] = Cost(*(profiles.figure(figures.get(field), MOST_SECONDS) for field in fields))
    return found.get("versions"), costs
