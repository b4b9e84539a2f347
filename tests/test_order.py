"""The order in which items run, and that their outcomes have their places whatever it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tasks
from video.config import ParallelConfig
from video.errors import BatchFailed, ConfigError
from video.policies.twins import Twins
from video.runner import Runner

COSTS = [3, 1, 4, 1, 5, 9, 2, 6]


def ran(order: str, costs: list[int] = COSTS, **config: Any) -> list[int]:
    """The items, as places in the input, in the order in which one thread ran them."""
    seen: list[int] = []
    with Runner(ParallelConfig(backend="thread", max_workers=1, **config)) as runner:
        outcomes = runner.map(seen.append, range(len(costs)), order=order, cost=costs.__getitem__)
    assert [one.index for one in outcomes] == list(range(len(costs)))
    return seen


def test_the_shortest_run_first_and_equal_ones_as_they_came() -> None:
    assert ran("shortest") == [1, 3, 6, 0, 2, 4, 7, 5]


def test_the_longest_run_first_and_equal_ones_as_they_came() -> None:
    assert ran("longest") == [5, 7, 4, 2, 0, 6, 1, 3]


def test_without_an_order_they_run_as_they_came() -> None:
    assert ran("input") == list(range(8))


@pytest.mark.parametrize("backend", ["serial", "thread", "process", "joblib", "auto"])
def test_outcomes_have_their_places_on_every_engine(backend: str) -> None:
    if backend == "joblib":
        pytest.importorskip("joblib")
    with Runner(ParallelConfig(backend=backend, max_workers=1 if backend == "serial" else 2)) as runner:
        outcomes = runner.map(tasks.double, range(500), order="longest", cost=lambda x: x % 7)
    assert [one.index for one in outcomes] == list(range(500))
    assert [one.value for one in outcomes] == [2 * x for x in range(500)]


def test_unordered_outcomes_come_as_they_finish_with_their_own_index() -> None:
    with Runner(ParallelConfig(backend="thread", max_workers=1, chunk_size=1)) as runner:
        stream = runner.stream(tasks.double, COSTS, order="shortest", cost=lambda x: x, ordered=False)
        outcomes = list(stream)
    assert [one.value for one in outcomes] == sorted(2 * x for x in COSTS)
    assert all(one.value == 2 * COSTS[one.index] for one in outcomes)


def test_a_small_lookahead_does_not_stop_a_batch_whose_first_item_runs_last() -> None:
    assert ran("shortest", [100, *range(99)], lookahead=2)[-1] == 0


def test_an_input_of_any_kind_is_read_to_its_end_first() -> None:
    with Runner(ParallelConfig(backend="thread")) as runner:
        outcomes = runner.map(tasks.double, (x for x in range(10)), order="longest", cost=lambda x: x)
    assert [one.value for one in outcomes] == [2 * x for x in range(10)]


def test_the_first_failure_names_its_place_in_the_input() -> None:
    with (
        Runner(ParallelConfig(backend="serial", fail="fast")) as runner,
        pytest.raises(BatchFailed) as failed,
    ):
        runner.map(tasks.fail_on_3, range(8), order="longest", cost=lambda x: x)
    assert failed.value.failed == 3
    assert set(failed.value.done) >= {7, 6, 5, 4, 3}


def test_spot_checks_compare_the_right_items() -> None:
    with Runner(ParallelConfig(backend="process", max_workers=2, spot_check=20)) as runner:
        outcomes = runner.map(tasks.double, range(100), order="shortest", cost=lambda x: -x)
    assert [one.value for one in outcomes] == [2 * x for x in range(100)]


def test_an_order_needs_a_cost_and_an_unknown_one_is_refused() -> None:
    with Runner(ParallelConfig(backend="thread")) as runner:
        with pytest.raises(ConfigError, match="cost"):
            runner.map(tasks.double, range(3), order="shortest")
        with pytest.raises(ConfigError, match="longest"):
            runner.map(tasks.double, range(3), order="random")


def fail(item: int) -> float:
    raise KeyError(item)


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (lambda item: float("nan") if item == 2 else 1.0, "item 2: has the cost nan"),
        (lambda item: "10" if item == 2 else 1.0, "item 2: has the cost '10'"),
        (lambda item: None if item == 2 else 1.0, "item 2: has no cost"),
        (lambda item: fail(item) if item == 2 else 1.0, "item 2: has no cost .*KeyError"),
        (lambda: 1.0, "item 0: has no cost"),
        ("shortest", "cost is 'shortest'"),
        (-1, "cost is -1"),
        (float("nan"), "cost is nan"),
    ],
)
def test_a_cost_that_is_no_number_is_refused_with_the_item_and_the_cure(cost: Any, says: str) -> None:
    ran: list[int] = []
    with (
        Runner(ParallelConfig(backend="thread")) as runner,
        pytest.raises(ConfigError, match=rf"{says}(.|\n)*(takes)"),
    ):
        runner.map(ran.append, range(4), order="shortest", cost=cost)
    assert ran == []


def test_without_an_order_a_cost_that_is_no_number_costs_its_item_alone() -> None:
    with Runner(ParallelConfig(backend="thread"), policies=[Twins()]) as runner:
        outcomes = runner.map(tasks.double, range(3), cost=lambda item: "1" if item == 1 else 1.0)
    assert [one.ok for one in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, ConfigError)


@settings(deadline=None, max_examples=30)
@given(costs=st.lists(st.integers(0, 50), max_size=40), order=st.sampled_from(["shortest", "longest"]))
def test_the_order_is_by_cost_and_loses_nothing(costs: list[int], order: str) -> None:
    seen = ran(order, costs)
    assert sorted(seen) == list(range(len(costs)))
    steps = itertools.pairwise([costs[place] for place in seen])
    assert all(one <= next_ if order == "shortest" else one >= next_ for one, next_ in steps)
