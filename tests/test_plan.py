"""The planner's decisions, with plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video import ParallelConfig
from video.plan import GROWTH, LEAST_SECONDS, TARGET_SECONDS, Choice, ChunkSizes, choose


def chosen(config: ParallelConfig | None = None, **how: object) -> Choice:
    settings = {"coroutine": False, "total": 10, "cpus": 4, "nested": False, "isolate": False} | how
    return choose(config or ParallelConfig(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "how", "backend"),
    [
        (ParallelConfig(), {}, "thread"),
        (ParallelConfig(), {"isolate": True}, "process"),
        (ParallelConfig(), {"total": 1}, "serial"),
        (ParallelConfig(), {"total": 1, "isolate": True}, "process"),
        (ParallelConfig(), {"coroutine": True}, "async"),
        (ParallelConfig(timeout=1), {}, "process"),
        (ParallelConfig(max_items_per_worker=9), {}, "process"),
        (ParallelConfig(max_worker_memory_mb=9), {}, "process"),
        (ParallelConfig(timeout=1, cluster="tcp://there:1"), {"total": 499}, "process"),
        (ParallelConfig(timeout=1, cluster="tcp://there:1"), {"total": 500}, "dask"),
        (ParallelConfig(backend="thread", timeout=1), {}, "thread"),
        (ParallelConfig(backend="process"), {"nested": True}, "serial"),
        (ParallelConfig(backend="mine"), {}, "mine"),
    ],
)
def test_auto_follows_its_rules(config: ParallelConfig, how: dict[str, object], backend: str) -> None:
    choice = chosen(config, **how)
    assert choice.backend == backend
    assert choice.reason
    assert choice.measure == (backend == "thread" and config.backend == "auto")


@given(
    cpus=st.integers(1, 64),
    total=st.none() | st.integers(0, 100),
    isolate=st.booleans(),
)
def test_workers_and_their_threads_fit_the_cpus(cpus: int, total: int | None, isolate: bool) -> None:
    choice = chosen(cpus=cpus, total=total, isolate=isolate)
    busy = choice.workers if total is None else max(1, min(choice.workers, total))
    assert choice.threads >= 1
    assert busy * choice.threads <= max(cpus, busy)


def test_what_the_user_asks_for_is_kept() -> None:
    choice = chosen(ParallelConfig(max_workers=16, threads_per_worker=3))
    assert (choice.workers, choice.threads) == (16, 3)


times = st.lists(st.floats(0, 100), min_size=1, max_size=20)


@given(
    history=st.lists(times, max_size=12), left=st.none() | st.integers(0, 10_000), limit=st.integers(1, 300)
)
def test_a_chunk_has_at_least_one_item_and_at_most_the_limit(
    history: list[list[float]], left: int | None, limit: int
) -> None:
    sizes = ChunkSizes(limit, workers=2)
    for seconds in history:
        before = sizes.next(None)
        sizes.observe(seconds)
        assert sizes.next(None) <= GROWTH * before
    assert 1 <= sizes.next(left) <= limit


@given(left=st.integers(1, 1000), workers=st.integers(1, 16), seconds=st.floats(LEAST_SECONDS, 0.01))
def test_the_last_chunks_leave_work_for_every_worker(left: int, workers: int, seconds: float) -> None:
    sizes = ChunkSizes(300, workers)
    for _ in range(12):
        sizes.observe([seconds])
    assert sizes.next(left) <= max(1, -(-left // (2 * workers)))


@given(left=st.integers(1, 10_000), workers=st.integers(1, 16), seconds=st.floats(1e-7, LEAST_SECONDS))
def test_no_last_chunk_is_too_small_to_be_worth_its_call(left: int, workers: int, seconds: float) -> None:
    sizes = ChunkSizes(1_000_000, workers)
    for _ in range(12):
        sizes.observe([seconds])
    assert sizes.next(left) * seconds >= LEAST_SECONDS / 2


def test_items_of_widely_spread_lengths_travel_alone() -> None:
    sizes = ChunkSizes(256, workers=2)
    for _ in range(12):
        sizes.observe([1e-3] * 10 + [0.1])
    assert sizes.next(None) == 1


def test_long_items_travel_alone_at_once() -> None:
    sizes = ChunkSizes(256, workers=2)
    for _ in range(12):
        sizes.observe([1e-7] * 10)
    assert sizes.next(None) == 256
    sizes.observe([TARGET_SECONDS] * 10)
    assert sizes.next(None) == 1


def test_a_chunk_holds_about_the_target_of_work() -> None:
    sizes = ChunkSizes(10_000, workers=2)
    for _ in range(20):
        sizes.observe([0.001] * 10)
    assert sizes.next(None) == pytest.approx(TARGET_SECONDS / 0.001, rel=0.02)


def test_chunks_are_sized_by_what_is_known_of_items_that_have_not_ended() -> None:
    """Those that have were brief."""
    before, after = ChunkSizes(1000, 1), ChunkSizes(1000, 2)
    before.observe([1e-6] * 5)
    after.follow(before)
    assert after.next(40) > 5
    after.follow(before, least=0.1)
    assert after.next(40) == 1


def test_what_is_known_of_items_that_have_not_ended_makes_no_chunk_larger() -> None:
    """Where none has ended, it is a guess; and what was spread widely still is."""
    fresh, before, after = ChunkSizes(1000, 2), ChunkSizes(1000, 2), ChunkSizes(1000, 2)
    fresh.follow(ChunkSizes(1000, 1), least=0.005)
    assert not fresh.known
    assert fresh.next(None) == 1
    before.observe([0.002, 0.06, 0.001, 0.001])
    after.follow(before, least=0.02)
    assert after.next(None) == 1
