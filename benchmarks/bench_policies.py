"""The policies' costs in one table, each against what it is to cost at most.

Idle ones are what they add to an item of a bare runner: both run in turns, and their difference is the
figure. The others are those of `bench_rate.py`, `bench_checkpoint.py`, `bench_cache.py` and
`bench_breaker.py`, which tell more of each. All but the limiter's are CPU time of this process, since nothing
in them waits. A bound is no measurement; breakers of other packages are, and are left out where they are not
installed (pip install pybreaker circuitbreaker interlock-cb).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_breaker
import bench_cache
import bench_checkpoint
import pytest
from conftest import Side, Table, Versus, reported, wall_seconds

from video.config import ParallelConfig
from video.policies.cache import MemoryCache, SqliteCache
from video.runner import Runner

ROUNDS = 7
ITEMS = 50_000
PER_SECOND = 20_000
CALLS = 5_000

IDLE = {
    "retries and breaker": {"max_retries": 3, "circuit_breaker_enabled": True},
    "memory guard": {"memory_limit_gb": 1024.0},
}
"""Settings of the standard policies that have nothing to do while all goes well. (A rate limit counts each
item, so it never idles.)"""


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table("Policies, an item", "us")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """It would meet one side or the other, by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def nothing(item: int) -> None:
    pass


def bound(microseconds: float, items: int = 1) -> Side:
    """Stands for what an item may cost."""
    return lambda: microseconds * 1e-6 * items


def cpu_seconds(side: Callable[[], object]) -> float:
    start = time.process_time()
    side()
    return time.process_time() - start


def batch(runner: Runner) -> float:
    """CPU seconds."""
    return cpu_seconds(lambda: [None for _ in runner.rounds(nothing, range(ITEMS))])


@pytest.mark.parametrize("backend", ["serial", "process"])
@pytest.mark.parametrize("which", IDLE)
def test_idle_policies(versus: Versus, which: str, backend: str) -> None:
    def runner(**more: Any) -> Runner:
        workers = None if backend == "serial" else 2
        return Runner(ParallelConfig(backend=backend, max_workers=workers, **more))

    with runner() as bare, runner(**IDLE[which]) as guarded:
        batch(bare), batch(guarded)  # the workers start
        versus(
            (f"idle over bare, {backend}: {which}", lambda: batch(guarded) - batch(bare)),
            {"at most": bound(0.5, ITEMS)},
            rounds=ROUNDS,
            items=ITEMS,
            meter=reported,
            target=1.0,
        )


def test_a_limiter(versus: Versus) -> None:
    def limited() -> float:
        config = ParallelConfig(backend="thread", max_workers=2, rate_limit_rpm=60 * PER_SECOND)
        with Runner(config) as runner:
            return wall_seconds(lambda: runner.map(nothing, range(PER_SECOND)))

    versus(
        (f"through a limiter of {PER_SECOND:,}/s, {PER_SECOND:,} items", limited),
        {"ideal": bound(1e6 / PER_SECOND, PER_SECOND)},
        rounds=5,
        items=PER_SECOND,
        meter=reported,
        target=1.1,
    )


@pytest.mark.parametrize("size", [1024, 64])
def test_a_checkpoint(versus: Versus, folder: Path, size: int) -> None:
    versus(
        (
            f"checkpoint, begun and committed in groups of {size}",
            lambda: cpu_seconds(lambda: bench_checkpoint.in_groups(bench_checkpoint.fresh(folder), size)),
        ),
        {"at most": bound(30, bench_checkpoint.ITEMS)},
        rounds=ROUNDS,
        items=bench_checkpoint.ITEMS,
        meter=reported,
        target=1.0,
    )


@pytest.mark.parametrize("where", ["memory", "SQLite"])
def test_a_cache_hit(versus: Versus, folder: Path, where: str) -> None:
    items = bench_cache.plain(CALLS)
    store = MemoryCache(2 * CALLS) if where == "memory" else SqliteCache(folder / "cache")
    side = bench_cache.Side(store)
    side.round(items)
    versus(
        (f"cache hit, {where}, 500 bytes of JSON", lambda: 1e-6 * bench_cache.each(side.admit, items)),
        {"at most": bound(20)},
        rounds=ROUNDS,
        meter=reported,
        target=1.0,
    )
    store.close()


def test_a_breaker(versus: Versus) -> None:
    sides = {name: (title, make()) for name, (title, make) in bench_breaker.installed().items()}

    def cost(call: bench_breaker.Call) -> Side:
        return lambda: 1e-6 * bench_breaker.cost(call, CALLS)

    versus(
        ("breaker, a call that goes well", cost(sides["ours"][1])),
        {title: cost(call) for name, (title, call) in sides.items() if name != "ours"},
        rounds=ROUNDS,
        meter=reported,
    )


def test_a_breaker_that_is_idle(versus: Versus) -> None:
    versus(
        (f"breaker, in chunks of {bench_breaker.CHUNK}", lambda: 1e-6 * bench_breaker.idle_cost()),
        {"at most": bound(0.5)},
        rounds=ROUNDS,
        meter=reported,
        target=1.0,
    )
