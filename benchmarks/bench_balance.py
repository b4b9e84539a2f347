"""How well a batch fills its workers: seconds for items that take time, on warm workers.

What cannot be beaten is a peer too: "ideal" is the work divided by the workers. Items that compute take a
fixed number of steps of pure Python, items that rest leave the CPUs to others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from _peers import joblib_map, standard_pool
from _tasks import rest, spin, steps_for
from conftest import Side, Table, Versus, reported, timed

from video import ParallelConfig, Runner

WORKERS = 2
ROUNDS = 5
LONG_ROUNDS = 3

EQUAL_ITEMS = 40
EQUAL_SECONDS = 0.05

MIXED_ITEMS = 400
MIXED_SECONDS = 2.0
"""Of all of them, on one CPU."""
MIXED_ROUNDS = 9
"""More than elsewhere: all sides are near the ideal, so little decides."""

QUICK_ITEMS = 20_000
SLOW_ITEMS = 40
SLOW_SECONDS = 0.25

MANY_WORKERS = 32
"""Far more than CPUs, as for tasks that wait for a network."""
MANY_ITEMS = 3_200
MANY_SECONDS = 0.01

Mapped = Callable[..., Side]


@pytest.fixture(scope="module")
def table(new_table: Callable[..., Table]) -> Table:
    return new_table("Batches of items that take time, on warm workers: s", "s")


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    """Makes a batch on a warm runner of ours."""
    runners: list[Runner] = []

    def make(workers: int, task: Callable[[Any], object], items: Callable[[], Iterable[Any]]) -> Side:
        runner = Runner(ParallelConfig(backend="process", max_workers=workers))
        runners.append(runner)
        runner.map(rest, [0.02] * 8 * workers)
        return lambda: [outcome.unwrap() for outcome in runner.map(task, items())]

    yield make
    for runner in runners:
        runner.close()


def ideal(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def test_equal_items(versus: Versus, mapped: Mapped) -> None:
    items = [steps_for(EQUAL_SECONDS)] * EQUAL_ITEMS
    versus(
        (f"{EQUAL_ITEMS} items of 50 ms of Python, two workers", mapped(2, spin, lambda: items)),
        {"one worker": mapped(1, spin, lambda: items)},
        rounds=ROUNDS,
        target=0.53,
    )


def test_equal_items_elsewhere(versus: Versus) -> None:
    """The same on the standard library's processes: about what the machine gives just then."""
    items = [steps_for(EQUAL_SECONDS)] * EQUAL_ITEMS
    with standard_pool(2) as two, standard_pool(1) as one:
        versus(
            ("the same on ProcessPoolExecutor, two workers", lambda: list(two.map(spin, items))),
            {"one worker": lambda: list(one.map(spin, items))},
            rounds=ROUNDS,
        )


def test_mixed_items(versus: Versus, mapped: Mapped) -> None:
    """Most are short, a few are long: the logarithms of their lengths are normally distributed."""
    dice = random.Random(3)
    lengths = [dice.lognormvariate(0, 1) for _ in range(MIXED_ITEMS)]
    steps = steps_for(MIXED_SECONDS / sum(lengths))
    items = [round(length * steps) for length in lengths]
    with standard_pool(WORKERS) as pool:
        joblib_map(WORKERS, spin, [1] * 100)
        versus(
            (f"{MIXED_ITEMS} items of mixed lengths", mapped(WORKERS, spin, lambda: items)),
            {
                "joblib, loky": lambda: joblib_map(WORKERS, spin, items),
                "ProcessPoolExecutor.map": lambda: list(pool.map(spin, items)),
            },
            rounds=MIXED_ROUNDS,
            target=1.0,
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("known", [True, False], ids=["known length", "unknown length"])
def test_quick_items_and_then_slow_ones(versus: Versus, mapped: Mapped, known: bool) -> None:
    """Whoever sizes chunks by what is quick, hands one worker more of the slow ones than its share."""
    items = [0.0] * QUICK_ITEMS + [SLOW_SECONDS] * SLOW_ITEMS
    peers: dict[str, Callable[[], float]] = {"ideal": ideal(SLOW_SECONDS * SLOW_ITEMS / WORKERS)}
    if known:
        joblib_map(WORKERS, rest, [0.0] * 100)
        peers["joblib, loky"] = timed(lambda: joblib_map(WORKERS, rest, items))
    name = f"{QUICK_ITEMS:,} no-ops, then {SLOW_ITEMS} items of 0.25 s"
    versus(
        (
            name if known else f"{name}, length unknown",
            timed(mapped(2, rest, lambda: items if known else iter(items))),
        ),
        peers,
        rounds=LONG_ROUNDS,
        meter=reported,
        target={"ideal": 1.1},
    )


@pytest.mark.timeout(300)
def test_many_workers(versus: Versus, mapped: Mapped) -> None:
    items = [MANY_SECONDS] * MANY_ITEMS
    with standard_pool(MANY_WORKERS) as pool:
        versus(
            (
                f"{MANY_ITEMS:,} items of 10 ms, {MANY_WORKERS} workers",
                timed(mapped(MANY_WORKERS, rest, lambda: items)),
            ),
            {
                "ideal": ideal(MANY_SECONDS * MANY_ITEMS / MANY_WORKERS),
                "ProcessPoolExecutor.map": timed(lambda: list(pool.map(rest, items))),
            },
            rounds=ROUNDS,
            meter=reported,
            target={"ideal": 1.25},
        )
