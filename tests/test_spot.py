"""What spot checks promise: a fair sample, run again here, and every difference told."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from tests import tasks
from video import ParallelConfig, Runner
from video.errors import ItemTimeout, WorkerDied
from video.events import Event, Kind
from video.outcome import Outcome
from video.spot import SpotChecks, SpotCheckWarning


def differences(
    task: Callable[[Any], Any], items: list[Any], outcomes: Iterable[Outcome[Any]], count: int = 100
) -> dict[int, tuple[Any, Any]]:
    checks = SpotChecks(task, count)
    checks.drew(range(len(items)), items)
    checks.finished(outcomes)
    return dict(checks.differences())


def compared(theirs: Any, ours: Any) -> bool:
    """Whether the two count as the same."""
    return not differences(lambda _: ours, [0], [Outcome(0, theirs, None)])


def chosen(seed: int, count: int, items: int, chunk: int) -> list[int]:
    """The sample, found out by giving a wrong result for every item."""
    checks = SpotChecks(lambda item: item, count)
    checks._random = random.Random(seed)
    for first in range(0, items, chunk):
        some = range(first, min(first + chunk, items))
        checks.drew(some, some)
    checks.finished(Outcome(index, "wrong", None) for index in range(items))
    return [index for index, _ in checks.differences()]


# The sample


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_each_item_is_as_likely_to_be_checked_as_any_other(chunk: int) -> None:
    picked = Counter(index for seed in range(1000) for index in chosen(seed, 2, 10, chunk))
    assert sorted(picked) == list(range(10))
    assert all(abs(times - 200) < 70 for times in picked.values())  # five and a half deviations


@pytest.mark.parametrize(("items", "count"), [(3, 5), (5, 5), (50, 5)])
def test_as_many_items_are_checked_as_asked_for_or_all(items: int, count: int) -> None:
    sample = chosen(1, count, items, 4)
    assert len(sample) == len(set(sample)) == min(items, count)


def test_no_more_items_and_results_are_kept_than_are_to_be_checked() -> None:
    class Thing:
        pass

    alive: weakref.WeakSet[Thing] = weakref.WeakSet()

    def thing() -> Thing:
        new = Thing()
        alive.add(new)
        return new

    checks = SpotChecks(lambda item: item, 3)
    for index in range(500):
        checks.drew([index], [thing()])
        checks.finished([Outcome(index, thing(), None)])
    gc.collect()
    assert len(alive) == 6


def test_results_may_come_in_any_order_and_after_all_is_drawn() -> None:
    outcomes = [Outcome(index, index, None) for index in range(20)]
    random.Random(1).shuffle(outcomes)
    assert differences(lambda item: item, list(range(20)), outcomes, 5) == {}


# The comparison


def test_the_same_results_are_no_difference() -> None:
    outcomes = [Outcome(index, 2 * index, None) for index in range(20)]
    assert differences(tasks.double, list(range(20)), outcomes) == {}


def test_a_difference_is_told_with_both_values() -> None:
    outcomes = [Outcome(0, 0, None), Outcome(1, 3, None)]
    assert differences(tasks.double, [0, 1], outcomes) == {1: (3, 2)}


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        (math.nan, math.nan, True),
        ([1.0, math.nan], [1.0, math.nan], True),
        (math.nan, 1.0, False),
        (np.arange(5), np.arange(5), True),
        (np.arange(5), np.arange(5) + 1, False),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
        ({"a": [np.zeros(3)]}, {"a": [np.zeros(3)]}, True),
        ({"a": [np.zeros(3)]}, {"a": [np.ones(3)]}, False),
        (np.zeros(3), np.zeros(4), False),
        (None, 0, False),
    ],
)
def test_arrays_and_nan_are_compared_by_what_they_hold(theirs: Any, ours: Any, same: bool) -> None:
    assert compared(theirs, ours) == same


def test_the_same_error_is_no_difference() -> None:
    same: Outcome[Any] = Outcome(3, None, ValueError("three is 3"))
    assert differences(tasks.fail_on_3, [0, 1, 2, 3], [same]) == {}


@pytest.mark.parametrize("theirs", [ValueError("three is 4"), TypeError("three is 3")])
def test_another_error_is_a_difference(theirs: Exception) -> None:
    found = differences(tasks.fail_on_3, [0, 1, 2, 3], [Outcome(3, None, theirs)])
    assert found[3][0] is theirs
    assert isinstance(found[3][1], ValueError)


def test_an_error_on_one_side_only_is_a_difference() -> None:
    outcomes = [Outcome(2, None, ValueError("two")), Outcome(3, 3, None)]
    assert sorted(differences(tasks.fail_on_3, [0, 1, 2, 3], outcomes)) == [2, 3]


@pytest.mark.parametrize("error", [ItemTimeout("too long"), WorkerDied("dead")])
def test_what_an_engine_stopped_or_lost_is_not_run_again_here(error: Exception) -> None:
    def fatal(_: int) -> None:
        raise AssertionError("it runs here")

    assert differences(fatal, [0], [Outcome(0, None, error)]) == {}


# Coroutines


def test_a_coroutine_is_run_for_its_result() -> None:
    outcomes = [Outcome(0, 0, None), Outcome(1, 3, None)]
    assert differences(tasks.double_later, [0, 1], outcomes) == {1: (3, 2)}


def test_a_coroutine_is_checked_inside_a_running_loop_too() -> None:
    async def check() -> dict[int, tuple[Any, Any]]:
        return differences(tasks.double_later, [0, 1], [Outcome(0, 0, None), Outcome(1, 3, None)])

    assert asyncio.run(check()) == {1: (3, 2)}


# Through the runner


@pytest.mark.skipif(sys.platform == "win32", reason="the process engine needs POSIX")
def test_a_task_that_depends_on_its_process_is_found_out() -> None:
    events: list[Event] = []
    config = ParallelConfig(backend="process", max_workers=1, spot_check=2)
    with (
        Runner(config, observers=[events.append]) as runner,
        pytest.warns(SpotCheckWarning, match="the caller's process") as warned,
    ):
        outcomes = runner.map(tasks.pid, range(10))
    told = [event for event in events if event.kind == Kind.SPOT_CHECK_DIFFERED]
    assert len(told) == len(warned) == 2
    for event in told:
        assert event.index is not None
        assert event.values == (outcomes[event.index].value, tasks.pid(None))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_task_that_depends_on_its_item_alone_raises_no_alarm(ordered: bool) -> None:
    with Runner(ParallelConfig(backend="thread", max_workers=2, spot_check=5)) as runner:
        outcomes = list(runner.stream(tasks.fail_on_3, range(200), ordered=ordered))
    assert len(outcomes) == 200


def test_without_spot_checks_no_item_runs_twice() -> None:
    calls: list[int] = []
    with Runner(ParallelConfig(backend="thread", max_workers=2)) as runner:
        runner.map(calls.append, range(50))
    assert sorted(calls) == list(range(50))
