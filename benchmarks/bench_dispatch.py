"""What an engine costs: the overhead of each no-op item, on warm workers.

Peers are `concurrent.futures` and asyncio with as many workers. Ours gives an outcome for each item, with
its time and its error, where theirs give a value or stop at the first error.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from conftest import Side, Table, Versus

from video import ParallelConfig, Runner

ITEMS = 20_000
SINGLE_ITEMS = 4_000
"""With chunks of one item, which cost a hundred times as much on processes."""
CHUNK = 256
"""Of the peer; ours finds its own size, up to as many (`video.plan.LARGEST_CHUNK`)."""
WORKERS = 2
COROUTINES = 64
"""At once, on both sides."""
ROUNDS = 9


Mapped = Callable[..., Side]


def nothing(item: int) -> int:
    return item


async def nothing_async(item: int) -> int:
    return item


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
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(nothing, range(100)))
        yield pool


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The kind of loop that our async engine takes."""
    import uvloop

    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    """Makes a batch of no-op items on a warm runner of ours."""
    runners: list[Runner] = []

    def make(backend: str, count: int, task: Callable[[int], object] = nothing, **settings: int) -> Side:
        workers = COROUTINES if task is nothing_async else WORKERS
        runner = Runner(ParallelConfig(backend=backend, max_workers=workers, **settings))
        runners.append(runner)
        runner.map(task, range(100))
        return lambda: runner.map(task, range(count))

    yield make
    for runner in runners:
        runner.close()


def submit_all(pool: Executor, count: int) -> list[int]:
    return [future.result() for future in [pool.submit(nothing, item) for item in range(count)]]


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
    )


def test_thread_one_by_one(versus: Versus, mapped: Mapped, threads: Executor) -> None:
    versus(
        ("thread, chunks of 1", mapped("thread", SINGLE_ITEMS, chunk_size=1)),
        {
            "ThreadPoolExecutor.map": lambda: list(threads.map(nothing, range(SINGLE_ITEMS))),
            "ThreadPoolExecutor.submit": lambda: submit_all(threads, SINGLE_ITEMS),
        },
        rounds=ROUNDS,
        items=SINGLE_ITEMS,
    )


def test_process(versus: Versus, mapped: Mapped, processes: Executor) -> None:
    versus(
        ("process", mapped("process", ITEMS)),
        {
            f"ProcessPoolExecutor.map, {CHUNK}": lambda: list(
                processes.map(nothing, range(ITEMS), chunksize=CHUNK)
            )
        },
        rounds=ROUNDS,
        items=ITEMS,
    )


def test_process_one_by_one(versus: Versus, mapped: Mapped, processes: Executor) -> None:
    versus(
        ("process, chunks of 1", mapped("process", SINGLE_ITEMS, chunk_size=1)),
        {
            "ProcessPoolExecutor.map, 1": lambda: list(processes.map(nothing, range(SINGLE_ITEMS))),
            "ProcessPoolExecutor.submit": lambda: submit_all(processes, SINGLE_ITEMS),
        },
        rounds=ROUNDS,
        items=SINGLE_ITEMS,
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
    """The peer's semaphore is never waited for, since the coroutines do not wait."""

    async def gathered() -> None:
        turns = asyncio.Semaphore(COROUTINES)

        async def one(item: int) -> int:
            async with turns:
                return await nothing_async(item)

        await asyncio.gather(*(one(item) for item in range(count)))

    versus(
        (f"async, {COROUTINES} coroutines{name}", mapped("async", count, nothing_async, **settings)),
        {"gather with a semaphore": lambda: loop.run_until_complete(gathered())},
        rounds=ROUNDS,
        items=count,
    )
