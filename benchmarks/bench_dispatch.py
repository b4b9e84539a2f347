"""What an engine costs: the overhead of each no-op item, on warm workers.

Peers have as many workers. Ours gives an outcome for each item, with its time and its error, where theirs
give a value or stop at the first error.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from _peers import PATIENCE, joblib_map, mpire, standard_pool
from _tasks import nothing, nothing_async
from conftest import Side, Table, Versus, reported, timed

from video import Outcome, ParallelConfig, Runner
from video.outcome import first_runs
from video.policies.base import Policy
from video.policies.breaker import BreakerPolicy
from video.policies.retry import Retry

ITEMS = 20_000
SINGLE_ITEMS = 4_000
"""With chunks of one item, which cost a hundred times as much on processes."""
DASK_ITEMS = 5_000
"""As a task each, an item costs Dask more than a millisecond."""
CHUNK = 256
"""Of the peer; ours finds its own size, up to as many (`video.plan.LARGEST_CHUNK`)."""
WORKERS = 2
COROUTINES = 64
"""At once, on both sides."""
ROUNDS = 9
DASK_ROUNDS = 7
DASK_CALM = 0.3
"""Seconds between the sides, in which the cluster's loops come to rest."""

Mapped = Callable[..., Side]


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table(f"Dispatch of no-op items, {WORKERS} workers, warm: us for each item", "us")


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(nothing, range(WORKERS)))
        yield pool


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with standard_pool(WORKERS) as pool:
        yield pool


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The kind of loop that our async engine takes."""
    import uvloop

    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def others() -> Iterator[dict[str, Callable[..., Future[int]]]]:
    """What submits to the pools of other packages: for one test, since they keep the CPUs busy when idle."""
    import deadpool
    import pebble

    with deadpool.Deadpool(WORKERS) as first:
        second = pebble.ProcessPool(WORKERS, context=multiprocessing.get_context("forkserver"))
        submits = {
            "deadpool.submit": first.submit,
            "pebble.submit": lambda task, item: second.schedule(task, args=[item]),
        }
        for submit in submits.values():
            submit_all(submit, 100)
        yield submits
        second.stop()
        second.join()


@pytest.fixture
def client() -> Iterator[Any]:
    """Of a cluster of two local processes, which both sides use.

    It sets variables in this process and leaves them there; one of them (MALLOC_TRIM_THRESHOLD_) doubles what
    a large message costs in each child that is started later.
    """
    import distributed

    environment = dict(os.environ)
    with distributed.Client(
        n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as client:
        yield client
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    """Makes a batch of no-op items on a warm runner of ours."""
    runners: list[Runner] = []

    def make(
        backend: str,
        count: int,
        task: Callable[[int], object] = nothing,
        policies: Iterable[Policy] = (),
        **settings: Any,
    ) -> Side:
        workers = COROUTINES if task is nothing_async else WORKERS
        config = ParallelConfig(backend=backend, max_workers=workers, **settings)
        runner = Runner(config, policies=policies)
        runners.append(runner)
        runner.map(task, range(100))
        return lambda: runner.map(task, range(count))

    yield make
    for runner in runners:
        runner.close()


def submit_all(submit: Callable[..., Future[int]], count: int) -> list[int]:
    futures = [submit(nothing, item) for item in range(count)]
    return [future.result(PATIENCE) for future in futures]


def test_outcomes(versus: Versus) -> None:
    """Why outcomes are drafted first: the same ones, made by their own constructor."""
    indexes, values, seconds = range(ITEMS), [None] * ITEMS, [0.0] * ITEMS

    def construct() -> list[Outcome[None]]:
        return [
            Outcome(index, value, None, 1, second)
            for index, value, second in zip(indexes, values, seconds, strict=True)
        ]

    assert first_runs(indexes, values, seconds) == construct()
    versus(
        ("outcomes, drafted", lambda: first_runs(indexes, values, seconds)),
        {"a frozen dataclass": construct},
        rounds=ROUNDS,
        items=ITEMS,
    )


def test_serial(versus: Versus, mapped: Mapped, threads: Executor) -> None:
    """A bare loop is no peer, but says what all of it is worth."""
    versus(
        ("serial", mapped("serial", ITEMS)),
        {
            "a bare loop": lambda: [nothing(item) for item in range(ITEMS)],
            "ThreadPoolExecutor.map": lambda: list(threads.map(nothing, range(ITEMS))),
        },
        rounds=ROUNDS,
        items=ITEMS,
    )


def test_serial_one_by_one(versus: Versus, mapped: Mapped) -> None:
    versus(
        ("serial, chunks of 1", mapped("serial", SINGLE_ITEMS, chunk_size=1)),
        {"a bare loop": lambda: [nothing(item) for item in range(SINGLE_ITEMS)]},
        rounds=ROUNDS,
        items=SINGLE_ITEMS,
    )


def test_thread(versus: Versus, mapped: Mapped, threads: Executor) -> None:
    versus(
        ("thread", mapped("thread", ITEMS)),
        {"ThreadPoolExecutor.map": lambda: list(threads.map(nothing, range(ITEMS)))},
        rounds=ROUNDS,
        items=ITEMS,
        target=0.25,
    )


def test_thread_one_by_one(versus: Versus, mapped: Mapped, threads: Executor) -> None:
    versus(
        ("thread, chunks of 1", mapped("thread", SINGLE_ITEMS, chunk_size=1)),
        {
            "ThreadPoolExecutor.map": lambda: list(threads.map(nothing, range(SINGLE_ITEMS))),
            "ThreadPoolExecutor.submit": lambda: submit_all(threads.submit, SINGLE_ITEMS),
        },
        rounds=ROUNDS,
        items=SINGLE_ITEMS,
    )


def test_process(versus: Versus, mapped: Mapped, processes: Executor) -> None:
    """Ours with four policies that have nothing to do; joblib in its automatic batches, mpire in its 64
    chunks for each worker."""
    idle = [Retry(), BreakerPolicy(), Retry(), BreakerPolicy(name="another")]

    def standard() -> list[int]:
        return list(processes.map(nothing, range(ITEMS), chunksize=CHUNK))

    joblib_map(WORKERS, nothing, range(100))
    with mpire(WORKERS, "map", ITEMS) as run_mpire:
        versus(
            ("process, four idle policies", timed(mapped("process", ITEMS, policies=idle))),
            {
                "process, bare": timed(mapped("process", ITEMS)),
                f"ProcessPoolExecutor.map, {CHUNK}": timed(standard),
                "joblib, loky": timed(lambda: joblib_map(WORKERS, nothing, range(ITEMS))),
                "mpire.map": run_mpire,
            },
            rounds=ROUNDS,
            items=ITEMS,
            meter=reported,
            target={"joblib, loky": 0.5, "mpire.map": 0.35},
        )


def test_process_one_by_one(
    versus: Versus, mapped: Mapped, processes: Executor, others: dict[str, Callable[..., Future[int]]]
) -> None:
    submits = {"ProcessPoolExecutor.submit": processes.submit, **others}
    versus(
        ("process, chunks of 1", mapped("process", SINGLE_ITEMS, chunk_size=1)),
        {
            "ProcessPoolExecutor.map, 1": lambda: list(processes.map(nothing, range(SINGLE_ITEMS))),
            **{name: partial(submit_all, submit, SINGLE_ITEMS) for name, submit in submits.items()},
        },
        rounds=ROUNDS,
        items=SINGLE_ITEMS,
        target={"ProcessPoolExecutor.submit": 1.0},
    )


def test_async_with_a_plain_task(
    versus: Versus,
    mapped: Mapped,
    threads: Executor,
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def in_threads() -> None:
        await asyncio.gather(*(loop.run_in_executor(threads, nothing, item) for item in range(ITEMS)))

    versus(
        ("async, plain task", mapped("async", ITEMS)),
        {"gather of run_in_executor": lambda: loop.run_until_complete(in_threads())},
        rounds=ROUNDS,
        items=ITEMS,
    )


@pytest.mark.parametrize(
    ("name", "count", "settings"),
    [("", ITEMS, {}), (", chunks of 1", SINGLE_ITEMS, {"chunk_size": 1})],
    ids=["automatic", "one by one"],
)
def test_async_with_a_coroutine(
    versus: Versus,
    mapped: Mapped,
    loop: asyncio.AbstractEventLoop,
    name: str,
    count: int,
    settings: dict[str, int],
) -> None:
    """The peers' semaphore is never waited for, since the coroutines do not wait."""

    async def one(turns: asyncio.Semaphore, item: int) -> int:
        async with turns:
            return await nothing_async(item)

    async def gathered() -> None:
        turns = asyncio.Semaphore(COROUTINES)
        await asyncio.gather(*(one(turns, item) for item in range(count)))

    async def grouped() -> list[int]:
        turns = asyncio.Semaphore(COROUTINES)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(turns, item)) for item in range(count)]
        return [task.result() for task in tasks]

    versus(
        (f"async, {COROUTINES} coroutines{name}", mapped("async", count, nothing_async, **settings)),
        {
            "gather with a semaphore": lambda: loop.run_until_complete(gathered()),
            "TaskGroup with a semaphore": lambda: loop.run_until_complete(grouped()),
        },
        rounds=ROUNDS,
        items=count,
        target={} if settings else {"TaskGroup with a semaphore": 1.2},
    )


@pytest.mark.timeout(300)
def test_dask(versus: Versus, mapped: Mapped, client: Any) -> None:
    """`pure=False`, since the peer would else hash each item, and might find the last round's results."""

    def theirs() -> float:
        start = time.perf_counter()
        client.gather(client.map(nothing, range(DASK_ITEMS), pure=False))
        end = time.perf_counter()
        # The cluster forgets so many tasks for a while yet, which must not fall into our time.
        while client.run_on_scheduler(tasks_left) or any(client.run(tasks_held).values()):
            time.sleep(0.05)
        time.sleep(DASK_CALM)
        return end - start

    ours = mapped("dask", DASK_ITEMS, cluster=client, strict=True)
    versus(
        ("dask", timed(ours)),
        {"client.map with gather": theirs},
        rounds=DASK_ROUNDS,
        items=DASK_ITEMS,
        meter=reported,
        target=0.02,
    )


def tasks_left(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def tasks_held(dask_worker: Any) -> int:
    return len(dask_worker.state.tasks)
