"""`ParallelExecutor` keeps the promises of `concurrent.futures.Executor` on every engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any
from unittest import mock

import pytest

import video
from tests import tasks
from tests.waiting import until
from video import ParallelConfig, ParallelExecutor
from video.errors import ConfigError, ItemTimeout, RemoteTraceback, UnknownName, WorkerDied
from video.registry import backends


def engines(*names: str) -> list[Any]:
    """Those that are there; what another process starts slowly is a slow test."""
    return [
        pytest.param(
            name,
            marks=[
                pytest.mark.skipif(
                    backends.why_unavailable(name) is not None, reason=f"{name} is not installed"
                ),
                *([pytest.mark.slow] if name in ("joblib", "dask") else []),
            ],
        )
        for name in names
    ]


ENGINES = ["serial", "thread", "process", "joblib", "dask", "async"]

Make = Callable[..., ParallelExecutor]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One of Dask for all tests here: to start it takes longer than each of them. It sets variables of this
    process (OMP_NUM_THREADS among them), which later workers would take for the user's."""
    import distributed

    with (
        mock.patch.dict(os.environ),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def make(request: pytest.FixtureRequest) -> Make:
    """An executor of an engine, by name."""

    def start(name: str, max_workers: int = 2, **more: Any) -> ParallelExecutor:
        if name == "dask":
            more["cluster"] = request.getfixturevalue("cluster")
        return video.executor(backend=name, max_workers=max_workers, strict=True, **more)

    return start


@pytest.fixture(scope="module", params=engines(*ENGINES))
def pool(request: pytest.FixtureRequest, make: Make) -> Iterator[ParallelExecutor]:
    """One of an engine for all tests that leave it as it was: some take seconds to start."""
    with make(request.param) as pool:
        yield pool


@pytest.fixture(params=engines(*ENGINES))
def own_pool(request: pytest.FixtureRequest, make: Make) -> Iterator[ParallelExecutor]:
    """One to be shut down."""
    with make(request.param) as pool:
        yield pool


def test_it_is_an_executor(pool: ParallelExecutor) -> None:
    assert isinstance(pool, concurrent.futures.Executor)


def test_submit_passes_all_arguments(pool: ParallelExecutor) -> None:
    assert pool.submit(int, "11", base=2).result(20) == 3


def test_a_keyword_may_have_any_name(pool: ParallelExecutor) -> None:
    assert pool.submit(lambda **words: sorted(words), fn=1, self=2).result(20) == ["fn", "self"]


def test_map_gives_results_in_order_and_stops_at_the_shortest(pool: ParallelExecutor) -> None:
    assert list(pool.map(pow, range(6), [2] * 4)) == [0, 1, 4, 9]


def test_map_in_chunks_gives_the_same(pool: ParallelExecutor) -> None:
    assert list(pool.map(pow, range(10), [2] * 10, chunksize=3)) == [n * n for n in range(10)]


def test_map_raises_where_the_failure_stands(pool: ParallelExecutor) -> None:
    results = pool.map(divmod, [1, 1, 1], [2, 3, 0])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_chunk_below_one_is_refused(pool: ParallelExecutor) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=0)


@pytest.mark.parametrize("pool", engines("thread", "process", "joblib", "dask", "async"), indirect=True)
def test_map_waits_no_longer_than_its_timeout(pool: ParallelExecutor) -> None:
    pool.submit(abs, -1).result(20)  # the start of an engine is no part of it
    results = pool.map(time.sleep, [0, 1.3], timeout=0.7)
    assert next(results) is None
    with pytest.raises(TimeoutError):
        next(results)


def test_an_error_arrives_with_its_kind_and_words(pool: ParallelExecutor) -> None:
    error = pool.submit(int, "x").exception(20)
    assert isinstance(error, ValueError)
    assert "invalid literal" in str(error)


@pytest.mark.parametrize("pool", engines("process", "joblib", "dask"), indirect=True)
def test_a_workers_traceback_comes_along(pool: ParallelExecutor) -> None:
    error = pool.submit(tasks.fail_on_3, 3).exception(20)
    assert error is not None
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail_on_3" in str(error.__cause__)


def test_callbacks_are_called_with_the_future(pool: ParallelExecutor) -> None:
    called: list[Future[int]] = []
    future = pool.submit(abs, -1)
    future.add_done_callback(called.append)
    future.result(20)
    until(lambda: called == [future])


def test_waiting_for_several_works(pool: ParallelExecutor) -> None:
    futures = [pool.submit(abs, -n) for n in range(20)]
    done, waiting = concurrent.futures.wait(futures, timeout=20)
    assert not waiting
    assert {one.result() for one in concurrent.futures.as_completed(done)} == set(range(20))


@pytest.mark.parametrize("engine", engines("thread", "process", "joblib", "dask", "async"))
def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_cannot(engine: str, make: Make) -> None:
    with make(engine, 1) as pool:
        running = pool.submit(time.sleep, 0.5)
        until(running.running)
        waiting = pool.submit(abs, -1)
        assert waiting.cancel()
        assert not running.cancel()
        with pytest.raises(CancelledError):
            waiting.result(20)
        assert running.result(20) is None
        assert pool.submit(abs, -2).result(20) == 2


def test_shutdown_waits_for_what_was_submitted(own_pool: ParallelExecutor) -> None:
    futures = [own_pool.submit(time.sleep, 0.01) for _ in range(20)]
    own_pool.shutdown()
    assert all(one.done() and one.exception() is None for one in futures)


@pytest.mark.parametrize("engine", engines("thread", "process", "joblib", "dask", "async"))
def test_shutdown_can_cancel_what_waits(engine: str, make: Make) -> None:
    pool = make(engine, 1)
    running = pool.submit(time.sleep, 0.3)
    until(running.running)
    waiting = [pool.submit(abs, -1) for _ in range(10)]
    pool.shutdown(cancel_futures=True)
    assert running.exception() is None
    assert all(one.cancelled() for one in waiting)


def test_shutdown_without_waiting_still_does_the_work(own_pool: ParallelExecutor) -> None:
    future = own_pool.submit(tasks.double, 4)
    own_pool.shutdown(wait=False)
    assert future.result(20) == 8


def test_nothing_can_be_submitted_after_shutdown(own_pool: ParallelExecutor) -> None:
    own_pool.shutdown()
    own_pool.shutdown()  # again is no error
    with pytest.raises(RuntimeError, match="after shutdown"):
        own_pool.submit(abs, 1)


def test_several_threads_may_submit(pool: ParallelExecutor) -> None:
    sums: list[int] = []

    def use() -> None:
        sums.append(sum(one.result(20) for one in [pool.submit(abs, -n) for n in range(25)]))

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(30)
    assert sums == [300] * 4


def test_an_idle_executor_keeps_no_argument_and_no_result_alive() -> None:
    class Thing:
        pass

    with video.executor(backend="thread", max_workers=1) as pool:
        thing = Thing()
        seen = weakref.ref(thing)
        future = pool.submit(lambda one: [one], thing)
        future.result(20)
        del thing, future
        pool.submit(abs, 1).result(20)
        until(lambda: gc.collect() >= 0 and seen() is None)


def test_a_coroutine_function_is_awaited_on_the_async_engine() -> None:
    with video.executor(backend="async", max_workers=4) as pool:
        assert list(pool.map(tasks.double_later, range(5))) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("engine", engines("process", "joblib", "dask"))
def test_a_dead_worker_fails_its_own_call_only(engine: str, make: Make) -> None:
    with make(engine) as pool:
        futures = [pool.submit(tasks.kill_on_3, n) for n in range(8)]
        errors = [one.exception(20) for one in futures]
    assert [n for n, error in enumerate(errors) if error is not None] == [3]
    assert isinstance(errors[3], WorkerDied)


@pytest.mark.parametrize("engine", engines("process", "joblib", "dask"))
def test_a_time_limit_holds_for_each_call(engine: str, make: Make) -> None:
    with make(engine, timeout=0.5) as pool:
        futures = [pool.submit(tasks.hang_on_3, n) for n in range(6)]
        errors = [one.exception(20) for one in futures]
    assert [n for n, error in enumerate(errors) if isinstance(error, ItemTimeout)] == [3]


@pytest.mark.parametrize("pool", engines("serial", "thread", "process", "joblib", "dask"), indirect=True)
def test_a_coroutine_function_is_refused_elsewhere(pool: ParallelExecutor) -> None:
    with pytest.raises(ConfigError, match='backend="async"'):
        pool.submit(tasks.double_later, 1)


def test_asyncio_can_run_on_it(pool: ParallelExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, abs, -n) for n in range(5)))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_what_was_submitted_is_done_before_the_program_ends() -> None:
    code = (
        "import time, video\n"
        "pool = video.executor(backend='thread', max_workers=1)\n"
        "pool.submit(time.sleep, 0.3)\n"
        "pool.submit(print, 'done', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "done\n", done.stderr


def test_an_unknown_engine_or_setting_is_refused_at_once() -> None:
    with pytest.raises(UnknownName, match="process"):
        video.executor(backend="proces")
    with pytest.raises(ConfigError, match="max_workers"):
        video.executor(max_worker=2)
    with pytest.raises(ConfigError, match="by name"):
        video.executor("process")  # type: ignore[arg-type]


def test_settings_go_on_top_of_a_config() -> None:
    with video.executor(ParallelConfig(backend="process", max_workers=1), backend="thread") as pool:
        assert pool.submit(threading.get_ident).result(20) != threading.get_ident()
