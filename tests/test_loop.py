"""The async engine where a coroutine does not let go of its loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import video.scope as scope
from tests.waiting import until
from video import ParallelConfig, Runner
from video.errors import ItemTimeout


@pytest.fixture
def freed() -> Iterator[threading.Event]:
    """Lets go of what blocks."""
    event = threading.Event()
    yield event
    event.set()


def runner(timeout: float) -> Runner:
    return Runner(ParallelConfig(backend="async", max_workers=4, timeout=timeout))


def test_a_coroutine_that_blocks_is_given_up_and_its_neighbours_are_not(freed: threading.Event) -> None:
    runs: list[int] = []
    told: list[int] = []

    async def task(x: int) -> int:
        runs.append(x)
        try:
            await asyncio.sleep(0.05)
            if x == 2:
                freed.wait(60)
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            told.append(x)
            raise
        return x

    with runner(timeout=0.5) as ours:
        outcomes = ours.map(task, range(4))
        assert [type(one.error) for one in outcomes if not one.ok] == [ItemTimeout]
        assert [one.value for one in outcomes] == [0, 1, None, 3]
        assert [one.attempts for one in outcomes] == [2, 2, 1, 2]
        assert sorted(runs) == [0, 0, 1, 1, 2, 3, 3]
        assert told == []
        freed.set()  # the old loop comes back
        until(lambda: sorted(told) == [0, 1, 2, 3])


def test_what_blocks_within_its_limit_takes_nothing_from_its_neighbours() -> None:
    async def task(x: int) -> int:
        if x == 0:
            await asyncio.sleep(0.05)
            time.sleep(0.5)
        else:
            await asyncio.sleep(0.4)
            await asyncio.sleep(0.2)  # together more than the limit with what item 0 blocks, less without
        return x

    with runner(timeout=0.8) as ours:
        outcomes = ours.map(task, range(4))
    assert [(one.value, one.attempts) for one in outcomes] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_each_coroutine_that_blocks_keeps_a_loop_of_its_own(freed: threading.Event) -> None:
    async def task(x: int) -> int:
        if x % 2:
            freed.wait(60)
        return x

    with runner(timeout=0.3) as ours:
        outcomes = ours.map(task, range(6))
        assert [one.value for one in outcomes] == [0, None, 2, None, 4, None]
        assert {one.attempts for one in outcomes if not one.ok} == {1}
        freed.set()
    until(lambda: not any(thread.name == "video-loop" for thread in threading.enumerate()))


def test_a_coroutine_that_blocks_may_look_whether_it_is_given_up() -> None:
    ended = threading.Event()

    async def task(x: int) -> int:
        try:
            while x == 1:
                scope.check_cancelled()
                time.sleep(0.01)
        except BaseException:
            ended.set()
            raise
        return x

    with runner(timeout=0.3) as ours:
        assert [one.value for one in ours.map(task, range(3))] == [0, None, 2]
        assert ended.wait(10)


def test_a_batch_that_was_left_does_not_block_the_next(freed: threading.Event) -> None:
    begun = threading.Event()

    async def block(x: int) -> int:
        if x == 1:
            begun.set()
            freed.wait(60)
        return x

    async def echo(x: int) -> int:
        return x

    with runner(timeout=50) as ours:
        stream = ours.stream(block, range(2))
        assert next(stream).value == 0
        assert begun.wait(20)
        time.sleep(0.2)
        stream.close()
        assert [one.value for one in ours.map(echo, range(20))] == list(range(20))
        assert not freed.is_set()
        freed.set()


def test_a_coroutine_that_is_given_up_while_it_awaits_disturbs_nobody() -> None:
    async def task(x: int) -> int:
        await asyncio.sleep(60 if x == 1 else 0.45)
        return x

    with runner(timeout=0.6) as ours:
        outcomes = ours.map(task, range(8))
    assert [one.value for one in outcomes] == [0, None, 2, 3, 4, 5, 6, 7]
    assert {one.attempts for one in outcomes} == {1}


async def loop_of(_: int) -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@pytest.mark.parametrize("wanted", [True, False])
def test_coroutines_run_on_uvloop_where_it_is_installed_and_wanted(wanted: bool) -> None:
    pytest.importorskip("uvloop")
    with Runner(ParallelConfig(backend="async", use_uvloop=wanted)) as one:
        assert one.map(loop_of, [1])[0].unwrap() == ("uvloop" if wanted else "asyncio")


def test_coroutines_run_on_asyncios_own_loop_where_uvloop_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with Runner(ParallelConfig(backend="async")) as one:
        assert one.map(loop_of, [1])[0].unwrap() == "asyncio"
