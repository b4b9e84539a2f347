"""What becomes of each item, with plain values: no threads, no processes, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from video import plan
from video.backends.base import ChunkLost, Ran
from video.errors import (
    BackendUnavailable,
    ItemCancelled,
    ItemTimeout,
    NotPicklable,
    Quarantined,
    RemoteTraceback,
    WorkerDied,
    WorkerOutOfMemory,
)
from video.outcome import Outcome
from video.plan import ChunkSizes
from video.reducer import Lease, Reducer, Rules

Running = dict[int, tuple[int, float] | None]
"""As `Reducer.overdue` takes it."""


class Sizes(ChunkSizes):
    """Chunks of a size that the test says."""

    known = True

    def __init__(self, size: int) -> None:
        super().__init__(size, 1)
        self.size = size

    def observe(self, seconds: Sequence[float]) -> None:
        pass

    def next(self, left: int | None) -> int:
        return self.size


def batch(size: int = 4, total: int | None = None, **rules: Any) -> Reducer:
    rules = {"width": 2, "most_leases": 4, "lookahead": 100} | rules
    return Reducer(Rules(**rules), Sizes(size), total)


def value(index: int) -> str:
    return f"value {index}"


def lease(reducer: Reducer, now: float = 0.0) -> Lease:
    """The next lease; draws what it asks for from an endless input."""
    what = reducer.next_lease(now)
    if isinstance(what, Lease):
        return what
    assert what, "there is nothing to lease"
    return reducer.drew(list(range(reducer.drawn, reducer.drawn + what)), now)


def ran(lease: Lease, positions: Iterable[int], errors: Mapping[int, BaseException] | None = None) -> Ran:
    """The engine's answer for some items, of which some raised."""
    positions = list(positions)
    values = [None if errors and one in errors else value(lease.indexes[one]) for one in positions]
    texts = [(positions.index(one), error, "in the worker") for one, error in (errors or {}).items()]
    return Ran(values, [0.1] * len(values), texts)


def part(lease: Lease, *positions: int) -> Ran:
    return ran(lease, positions)._replace(positions=positions)


def whole(lease: Lease) -> Ran:
    return ran(lease, range(len(lease.items)))


def answer(reducer: Reducer, *leases: Lease) -> None:
    for one in leases:
        reducer.returned(one.number, whole(one))


def lost(lease: Lease, done: int, position: int | None, error: BaseException | None = None) -> ChunkLost:
    """A certain death, after `done` items."""
    return ChunkLost(error or died(), ran(lease, range(done)), position)


def vanished(error: BaseException | None = None) -> ChunkLost:
    """A death of which nothing is known."""
    return ChunkLost(error or died(), Ran([], [], []), certain=False)


def died() -> WorkerDied:
    return WorkerDied("its worker died", exitcode=-9)


def starved() -> WorkerOutOfMemory:
    return WorkerOutOfMemory("its worker took too much memory", exitcode=-9)


def due(reducer: Reducer) -> list[Outcome[Any]]:
    return [outcome for run in reducer.due() for outcome in run]


def drive(reducer: Reducer, until: int) -> list[Outcome[Any]]:
    """Answer what is leased, and what waits, until so many items of the input are handed out."""
    outcomes = due(reducer)
    for _ in range(1000):
        if reducer.drawn >= until:
            reducer.ended = True
        answer(reducer, *list(reducer.leases()))
        outcomes += due(reducer)
        if reducer.finished:
            return outcomes
        lease(reducer)
    raise AssertionError("the batch does not end")


def indexes(outcomes: Iterable[Outcome[Any]]) -> list[int]:
    return [outcome.index for outcome in outcomes]


def attempts(outcomes: Iterable[Outcome[Any]]) -> list[int]:
    return [outcome.attempts for outcome in outcomes]


# Order, and the way of a chunk that nothing happens to


def test_outcomes_wait_for_their_turn() -> None:
    reducer = batch()
    first, second = lease(reducer), lease(reducer)
    answer(reducer, second)
    assert due(reducer) == []
    assert indexes(reducer.unhanded()) == [4, 5, 6, 7]
    answer(reducer, first)
    assert indexes(due(reducer)) == list(range(8))


def test_unordered_outcomes_come_as_their_chunks_end() -> None:
    reducer = batch(ordered=False)
    first, second = lease(reducer), lease(reducer)
    answer(reducer, second)
    assert indexes(due(reducer)) == [4, 5, 6, 7]
    answer(reducer, first)
    assert indexes(due(reducer)) == [0, 1, 2, 3]


def test_each_outcome_has_its_own_items_value_and_time() -> None:
    reducer = batch(2)
    one = lease(reducer)
    reducer.returned(one.number, Ran(["a", "b"], [1.0, 2.0], []))
    assert due(reducer) == [Outcome(0, "a", None, 1, 1.0), Outcome(1, "b", None, 1, 2.0)]


def test_an_item_that_raised_fails_alone_and_keeps_the_workers_traceback() -> None:
    reducer = batch()
    one = lease(reducer)
    reducer.returned(one.number, ran(one, range(4), {2: ValueError("two")}))
    outcomes = due(reducer)
    assert [outcome.ok for outcome in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2].error, ValueError)
    assert isinstance(outcomes[2].error.__cause__, RemoteTraceback)


def test_a_batch_is_finished_when_its_input_has_ended_and_all_is_handed_out() -> None:
    reducer = batch()
    one = lease(reducer)
    assert not reducer.finished
    reducer.ended = True
    answer(reducer, one)
    assert not reducer.finished
    due(reducer)
    assert reducer.finished


def test_an_empty_batch_is_finished() -> None:
    reducer = batch()
    reducer.ended = True
    assert reducer.finished


def test_what_is_recalled_comes_first_and_is_not_charged() -> None:
    reducer = batch()
    first, second = lease(reducer), lease(reducer)
    reducer.recalled(first.number)
    assert reducer.waiting() == [0, 1, 2, 3]
    answer(reducer, first)  # too late: it is not its any more
    again = lease(reducer)
    assert list(again.indexes) == [0, 1, 2, 3]
    answer(reducer, second, again)
    outcomes = due(reducer)
    assert indexes(outcomes) == list(range(8))
    assert set(attempts(outcomes)) == {1}


def test_what_an_earlier_engine_still_runs_takes_no_room_on_the_next() -> None:
    reducer = batch(most_leases=1)
    lease(reducer)
    assert reducer.next_lease(0.0) == 0
    reducer.move(reducer.rules, Sizes(4))
    lease(reducer)
    assert reducer.next_lease(0.0) == 0


def test_an_engine_answers_first_for_what_it_was_given_itself() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.move(reducer.rules, Sizes(4))
    second = lease(reducer)
    answer(reducer, first)
    assert reducer.answer is None
    reducer.returned(second.number, whole(second), now=5.0)
    assert reducer.answer == (5.0, sum(whole(second).seconds))
    answer(reducer, lease(reducer))
    assert reducer.answer == (5.0, sum(whole(second).seconds))
    reducer.move(reducer.rules, Sizes(4))
    assert reducer.answer is None


def test_where_its_width_is_strict_it_does_take_room() -> None:
    reducer = batch(width=2, most_leases=8, bounded=True)
    first = lease(reducer)
    reducer.move(reducer.rules, Sizes(4))
    second = lease(reducer)
    assert reducer.next_lease(0.0) == 0
    answer(reducer, first)
    assert reducer.next_lease(0.0) != 0
    answer(reducer, second)


@pytest.mark.parametrize("elsewhere", [1, 2, 5])
def test_where_it_begins_gradually_one_is_let_on_until_the_engine_has_answered(elsewhere: int) -> None:
    """However many an earlier engine has, and however long it keeps them."""
    reducer = batch(width=2, most_leases=8)
    for _ in range(elsewhere):
        lease(reducer)
    reducer.move(replace(reducer.rules, gradual=True), Sizes(4))
    only = lease(reducer)
    assert reducer.next_lease(0.0) == 0
    answer(reducer, only)
    for _ in range(2):
        lease(reducer)


def test_what_begins_gradually_takes_the_room_of_what_an_earlier_engine_has_ended() -> None:
    reducer = batch(width=2, most_leases=8)
    first = lease(reducer)
    reducer.move(replace(reducer.rules, gradual=True), Sizes(4))
    lease(reducer)
    assert reducer.next_lease(0.0) == 0
    answer(reducer, first)
    assert reducer.next_lease(0.0) != 0


def test_a_chunk_of_which_nothing_was_begun_goes_to_the_next_engine_uncharged() -> None:
    reducer = batch(width=2, most_leases=8)
    first = lease(reducer)
    reducer.move(reducer.rules, Sizes(4))
    reducer.returned(first.number, Ran([], [], []), now=1.0)
    assert reducer.answer is None
    again = lease(reducer)
    assert list(again.indexes) == list(first.indexes)
    answer(reducer, again)
    assert [outcome.attempts for outcome in due(reducer)] == [1] * len(first.items)


def test_a_second_answer_for_a_lease_changes_nothing() -> None:
    reducer = batch()
    one = lease(reducer)
    answer(reducer, one, one)
    reducer.lost(one.number, lost(one, 0, 0))
    assert len(due(reducer)) == 4
    assert reducer.waiting() == []


def test_every_outcome_is_news_at_once_whether_its_turn_has_come_or_not() -> None:
    reducer = batch()
    lease(reducer)
    answer(reducer, lease(reducer))
    assert [indexes(run) for run in reducer.news] == [[4, 5, 6, 7]]


# How much is drawn


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_than_lookahead_is_drawn_and_not_handed_out(ordered: bool) -> None:
    reducer = batch(4, lookahead=6, ordered=ordered)
    lease(reducer)
    second = lease(reducer)
    assert len(second.items) == 2
    assert reducer.next_lease(0) == 0
    answer(reducer, second)
    due(reducer)
    assert reducer.next_lease(0) == (0 if ordered else 2)


def test_without_a_lookahead_as_much_is_drawn_as_keeps_the_workers_busy() -> None:
    reducer = batch(4, lookahead=None, most_leases=1000)
    while reducer.next_lease(0):
        lease(reducer)
    assert reducer.drawn == plan.usual_lookahead(2, 4)


def test_an_item_whose_start_is_put_off_is_looked_at_again_before_that() -> None:
    """While its worker loads, its clock is put off by a minute; it may begin in a moment all the same."""
    reducer = batch(1, timeout=1.0)
    one = lease(reducer, 0.0)
    assert reducer.overdue(1.0, {one.number: (0, 60.0)}) == []
    assert reducer.check_at() == 2.0
    assert reducer.overdue(2.5, {one.number: (0, 1.5)}) == [one.number]


def test_until_a_time_is_known_each_worker_has_one_chunk() -> None:
    reducer = Reducer(Rules(width=2, most_leases=8, lookahead=100), ChunkSizes(64, 2), None)
    first, _ = lease(reducer), lease(reducer)
    assert reducer.next_lease(0) == 0
    answer(reducer, first)
    assert reducer.next_lease(0) == 1  # of long items; but there may be eight by now
    lease(reducer), lease(reducer)


def test_an_engine_never_has_more_leases_than_it_may() -> None:
    reducer = batch(most_leases=2)
    first = lease(reducer)
    lease(reducer)
    assert reducer.next_lease(0) == 0
    answer(reducer, first)
    assert reducer.next_lease(0) == 4


def test_nothing_is_drawn_after_the_end_of_the_input() -> None:
    reducer = batch()
    reducer.ended = True
    assert reducer.next_lease(0) == 0


def test_nothing_is_drawn_where_smaller_chunks_need_less_than_is_drawn_already() -> None:
    reducer = batch(400, lookahead=None)
    lease(reducer)
    reducer._sizes.size = 1  # type: ignore[attr-defined]
    assert reducer.next_lease(0) == 0


def test_a_chunk_at_the_end_is_sized_by_what_is_left() -> None:
    sizes = ChunkSizes(64, workers=1)
    for _ in range(5):
        sizes.observe([0.01])
    reducer = Reducer(Rules(width=1, most_leases=9, lookahead=100), sizes, total=8)
    taken = [len(lease(reducer).items) for _ in range(3)]
    assert taken == [4, 2, 1]


# A chunk that ends early


def test_what_a_chunk_gives_back_goes_first_and_is_not_charged() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.returned(first.number, ran(first, [0]))
    back = lease(reducer)
    assert list(back.indexes) == [1, 2, 3]
    assert back.items == [1, 2, 3]
    answer(reducer, back)
    assert attempts(due(reducer)) == [1, 1, 1, 1]


def test_what_was_given_back_is_divided_where_chunks_have_become_smaller() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.returned(first.number, ran(first, []))
    reducer._sizes.size = 3  # type: ignore[attr-defined]
    assert [list(lease(reducer).indexes) for _ in range(2)] == [[0, 1, 2], [3]]


def test_what_is_given_back_needs_no_room_in_the_lookahead() -> None:
    reducer = batch(4, lookahead=4)
    first = lease(reducer)
    reducer.returned(first.number, ran(first, [0]))
    assert list(lease(reducer).indexes) == [1, 2, 3]


# Deaths that the engine can explain


@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_death_costs_the_item_that_ran_and_no_other(position: int) -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.lost(first.number, lost(first, position, position))
    outcomes = drive(reducer, 8)
    assert indexes(outcomes) == list(range(8))
    assert attempts(outcomes) == [1] * 8
    assert indexes(one for one in outcomes if not one.ok) == [position]
    assert isinstance(outcomes[position].error, WorkerDied)


def test_what_a_dead_worker_had_not_begun_goes_first() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.lost(first.number, lost(first, 1, 1))
    assert list(lease(reducer).indexes) == [2, 3]


def test_what_had_finished_before_a_death_keeps_its_error_too() -> None:
    reducer = batch()
    first = lease(reducer)
    error = ChunkLost(died(), ran(first, [0, 1], {0: ValueError("zero")}), 2)
    reducer.lost(first.number, error)
    outcomes = drive(reducer, 4)
    assert [type(one.error) for one in outcomes] == [ValueError, type(None), WorkerDied, type(None)]


def test_a_death_between_two_items_costs_nothing() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.lost(first.number, lost(first, 2, None))
    outcomes = drive(reducer, 4)
    assert all(one.ok and one.attempts == 1 for one in outcomes)


def test_a_death_after_the_last_item_costs_nothing() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.lost(first.number, lost(first, 4, 4))
    assert all(one.ok for one in due(reducer))
    assert reducer.waiting() == []


def test_a_chunk_whose_worker_died_before_it_began_runs_again_uncharged() -> None:
    reducer = batch()
    first = lease(reducer)
    reducer.lost(first.number, lost(first, 0, None))
    again = lease(reducer)
    assert list(again.indexes) == [0, 1, 2, 3]
    answer(reducer, again)
    assert attempts(due(reducer)) == [1, 1, 1, 1]


def test_a_chunk_whose_workers_die_before_it_begins_is_searched_for_the_culprit() -> None:
    reducer = batch(3)
    for _ in range(2):
        one = lease(reducer)
        reducer.lost(one.number, lost(one, 0, None))
    singles = [lease(reducer) for _ in range(3)]
    assert [list(one.indexes) for one in singles] == [[0], [1], [2]]
    reducer.lost(singles[1].number, lost(singles[1], 0, None))
    answer(reducer, singles[0], singles[2])
    outcomes = due(reducer)
    assert [one.ok for one in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, WorkerDied)


def test_an_item_whose_workers_die_before_it_begins_fails_and_has_never_run() -> None:
    reducer = batch(1)
    for _ in range(2):
        one = lease(reducer)
        reducer.lost(one.number, lost(one, 0, None))
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, WorkerDied)
    assert outcome.attempts == 0


def test_deaths_before_an_item_begins_count_one_less_than_those_where_it_ran() -> None:
    reducer = batch(1, max_kills=3)
    for died_over_it in range(4):
        assert due(reducer) == [], died_over_it
        one = lease(reducer)
        assert list(one.indexes) == [0]
        reducer.lost(one.number, lost(one, 0, None))
    assert [one.ok for one in due(reducer)] == [False]


def test_a_divided_chunk_does_not_forget_that_a_worker_died_over_it() -> None:
    reducer = batch(2)
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, None))
    reducer._sizes.size = 1  # type: ignore[attr-defined]
    for one in [lease(reducer), lease(reducer)]:
        reducer.lost(one.number, lost(one, 0, None))
    assert [one.ok for one in due(reducer)] == [False, False]


def test_a_chunk_that_has_come_further_since_a_worker_died_over_it_is_not_divided() -> None:
    reducer = batch()
    for done in (0, 1, 0):
        one = lease(reducer)
        reducer.lost(one.number, lost(one, done, None))
    assert list(lease(reducer).indexes) == [1, 2, 3]


# Deaths that it cannot explain


def suspects(size: int = 3, **rules: Any) -> Reducer:
    """Items 0 to `size` - 1 have been lost together, and nobody knows by whom."""
    reducer = batch(size, **rules)
    one = lease(reducer)
    reducer.lost(one.number, vanished())
    return reducer


def test_each_suspect_runs_alone_with_nothing_else_in_flight() -> None:
    reducer = suspects()
    for index in range(3):
        one = lease(reducer)
        assert list(one.indexes) == [index]
        assert one.alone
        assert reducer.next_lease(0) == 0
        answer(reducer, one)
    assert not lease(reducer).alone


def test_suspects_wait_until_the_engine_has_nothing_else() -> None:
    reducer = batch()
    first, second = lease(reducer), lease(reducer)
    reducer.lost(first.number, vanished())
    assert reducer.next_lease(0) == 0
    answer(reducer, second)
    assert lease(reducer).alone


def test_a_suspect_that_is_innocent_has_run_twice() -> None:
    reducer = suspects()
    outcomes = drive(reducer, 3)
    assert all(one.ok for one in outcomes)
    assert attempts(outcomes) == [2, 2, 2]


def test_a_suspect_whose_worker_dies_while_it_is_alone_is_the_culprit() -> None:
    reducer = suspects()
    answer(reducer, lease(reducer))
    reducer.lost(lease(reducer).number, vanished())
    outcomes = drive(reducer, 3)
    assert [one.ok for one in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, WorkerDied)
    assert outcomes[1].attempts == 2


def test_a_suspect_may_kill_as_many_workers_as_any_other() -> None:
    reducer = suspects(1, max_kills=2)
    reducer.lost(lease(reducer).number, vanished())
    assert due(reducer) == []
    reducer.lost(lease(reducer).number, vanished())
    assert isinstance(due(reducer)[0].error, Quarantined)


def test_a_suspect_that_fails_in_any_other_way_while_it_is_alone_fails_with_that() -> None:
    reducer = suspects(1)
    reducer.lost(lease(reducer).number, RuntimeError("the engine choked"))
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, RuntimeError)
    assert outcome.attempts == 2


def test_a_suspect_whose_worker_dies_before_it_begins_is_still_to_run_alone() -> None:
    reducer = suspects()
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, None))
    for index in [1, 2, 0]:
        one = lease(reducer)
        assert (list(one.indexes), one.alone) == ([index], True)
        answer(reducer, one)


def test_what_had_finished_is_kept_where_a_death_is_not_explained() -> None:
    reducer = batch()
    one = lease(reducer)
    reducer.lost(one.number, ChunkLost(died(), ran(one, [0, 1]), certain=False))
    assert indexes(due(reducer)) == [0, 1]
    assert reducer.waiting() == [2, 3]


def test_an_item_that_only_may_have_killed_its_worker_runs_again_alone_and_the_rest_at_once() -> None:
    reducer = batch()
    one = lease(reducer)
    reducer.lost(one.number, ChunkLost(died(), ran(one, [0]), 1, certain=False))
    alone = lease(reducer)
    assert (list(alone.indexes), alone.alone) == ([1], True)
    answer(reducer, alone)
    rest = lease(reducer)
    assert list(rest.indexes) == [2, 3]
    answer(reducer, rest)
    assert attempts(due(reducer)) == [1, 2, 1, 1]


def test_what_runs_again_is_told_with_the_reason() -> None:
    (rerun,) = suspects().reruns
    assert rerun[0] == 3
    assert isinstance(rerun[1], WorkerDied)


# How often an item may kill


def kill(reducer: Reducer, error: BaseException) -> Lease:
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, 0, error))
    return one


def test_an_item_that_may_kill_again_runs_again_alone() -> None:
    reducer = batch(1, max_kills=2)
    kill(reducer, died())
    again = lease(reducer)
    assert again.alone
    answer(reducer, again)
    (outcome,) = due(reducer)
    assert outcome.ok
    assert outcome.attempts == 2


def test_an_item_that_runs_again_is_told_with_the_reason() -> None:
    reducer = batch(1, max_kills=2)
    error = died()
    kill(reducer, error)
    assert reducer.reruns == [(1, error)]


def test_an_item_that_has_killed_max_kills_workers_is_quarantined() -> None:
    reducer = batch(1, max_kills=3)
    for _ in range(3):
        kill(reducer, died())
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, Quarantined)
    assert isinstance(outcome.error.__cause__, WorkerDied)
    assert (outcome.error.kills, outcome.error.exitcode, outcome.attempts) == (3, -9, 3)


def test_an_item_that_may_not_kill_even_twice_fails_with_the_death_itself() -> None:
    reducer = batch(1, max_kills=1)
    kill(reducer, died())
    (outcome,) = due(reducer)
    assert type(outcome.error) is WorkerDied


def test_deaths_for_want_of_memory_are_counted_apart() -> None:
    reducer = batch(1, max_kills=1, max_memory_kills=3)
    kill(reducer, starved())
    kill(reducer, starved())
    assert due(reducer) == []
    kill(reducer, starved())
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, Quarantined)
    assert isinstance(outcome.error.__cause__, WorkerOutOfMemory)


def test_the_quarantine_counts_kills_of_both_kinds() -> None:
    reducer = batch(1, max_kills=1, max_memory_kills=3)
    kill(reducer, starved())
    kill(reducer, died())
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, Quarantined)
    assert outcome.error.kills == 2


# Time limits


def timed(size: int = 3, timeout: float = 10.0, **rules: Any) -> Reducer:
    return batch(size, timeout=timeout, forgets=True, **rules)


def test_without_a_limit_nobody_is_to_look() -> None:
    reducer = batch()
    one = lease(reducer)
    assert reducer.check_at() == float("inf")
    assert reducer.overdue(1e9, {one.number: (0, 0.0)}) == []


def test_a_limit_runs_from_an_items_start_and_not_from_its_lease() -> None:
    reducer = timed()
    one = lease(reducer, 100.0)
    assert reducer.check_at() == 110.0
    assert reducer.overdue(110.0, {one.number: (0, 105.0)}) == []
    assert reducer.check_at() == 115.0
    assert reducer.overdue(115.0, {one.number: (0, 105.0)}) == [one.number]


@pytest.mark.parametrize("running", [None, (0, 500.0)])
def test_an_item_that_has_not_begun_is_not_overdue(running: tuple[int, float] | None) -> None:
    reducer = timed()
    one = lease(reducer)
    assert reducer.overdue(400.0, {one.number: running}) == []
    assert reducer.check_at() == 410.0
    assert due(reducer) == []


def test_a_limit_starts_anew_where_the_worker_has_gone_on_to_the_next_item() -> None:
    reducer = timed()
    one = lease(reducer)
    assert reducer.overdue(10.0, {one.number: (1, 9.0)}) == []
    assert reducer.check_at() == 19.0


def test_an_overdue_item_fails_at_once_with_the_time_that_it_took() -> None:
    reducer = timed()
    one = lease(reducer)
    reducer.overdue(12.0, {one.number: (0, 1.0)})
    (outcome,) = due(reducer)
    assert isinstance(outcome.error, ItemTimeout)
    assert (outcome.attempts, outcome.seconds) == (1, 11.0)


def test_the_neighbours_of_an_overdue_item_are_not_charged() -> None:
    reducer = timed()
    one = lease(reducer)
    reducer.overdue(12.0, {one.number: (1, 1.0)})
    reducer.lost(one.number, lost(one, 1, 1))
    outcomes = drive(reducer, 3)
    assert [one.ok for one in outcomes] == [True, False, True]
    assert attempts(outcomes) == [1, 1, 1]
    assert isinstance(outcomes[1].error, ItemTimeout)


def test_an_answer_that_comes_after_the_item_was_given_up_is_dropped() -> None:
    reducer = timed()
    one = lease(reducer)
    reducer.overdue(12.0, {one.number: (1, 1.0)})
    answer(reducer, one)
    outcomes = due(reducer)
    assert [type(one.error) for one in outcomes] == [type(None), ItemTimeout, type(None)]
    assert reducer.waiting() == []


def test_an_item_that_was_killed_in_anothers_place_is_not_to_blame() -> None:
    reducer = timed()
    one = lease(reducer)
    reducer.overdue(12.0, {one.number: (0, 1.0)})
    reducer.lost(one.number, lost(one, 1, 1))  # the overdue item had just ended
    outcomes = drive(reducer, 3)
    assert [type(one.error) for one in outcomes] == [ItemTimeout, type(None), type(None)]
    assert attempts(outcomes) == [1, 2, 1]


def test_a_chunk_that_was_killed_before_it_began_is_not_to_blame() -> None:
    reducer = timed(2)
    one = lease(reducer)
    reducer.overdue(12.0, {one.number: (0, 1.0)})
    reducer.lost(one.number, lost(one, 0, None))
    again = lease(reducer)
    reducer.lost(again.number, lost(again, 0, None))
    assert reducer.waiting() == [1]


def test_what_the_engine_knows_to_be_innocent_runs_again_with_the_others_and_is_never_to_blame() -> None:
    reducer = batch(3)
    for _ in range(3):
        one = lease(reducer)
        reducer.lost(one.number, ChunkLost(died(), Ran([], [], []), 0, certain=False, innocent=True))
        assert reducer.waiting() == [0, 1, 2]
    outcomes = drive(reducer, 3)
    assert all(one.ok for one in outcomes)
    assert attempts(outcomes) == [4, 1, 1]


def test_what_ran_alone_is_not_to_blame_either_where_the_engine_knows_better() -> None:
    reducer = batch(1)
    one = lease(reducer)
    reducer.lost(one.number, ChunkLost(died(), Ran([], [], []), 0, certain=False))
    alone = lease(reducer)
    assert alone.alone
    reducer.lost(alone.number, ChunkLost(died(), Ran([], [], []), 0, certain=False, innocent=True))
    outcomes = drive(reducer, 1)
    assert [(one.ok, one.attempts) for one in outcomes] == [(True, 3)]


def test_of_items_side_by_side_all_have_run_where_one_has() -> None:
    reducer = batch(3, by_items=True, width=3)
    one = lease(reducer)
    reducer.lost(one.number, ChunkLost(died(), Ran([], [], []), 0, innocent=True))
    assert attempts(drive(reducer, 3)) == [2, 2, 2]


def test_a_killed_lease_is_killed_once() -> None:
    reducer = timed()
    one = lease(reducer)
    running: Running = {one.number: (0, 0.0)}
    assert reducer.overdue(10.0, running) == [one.number]
    assert reducer.check_at() == float("inf")
    assert reducer.overdue(99.0, running) == []


def test_an_engine_that_replaces_its_worker_is_not_waited_for() -> None:
    reducer = timed(1, most_leases=1)
    one = lease(reducer)
    reducer.overdue(10.0, {one.number: (0, 0.0)})
    assert reducer.next_lease(10.0) == 1


def test_a_worker_that_nobody_replaces_holds_its_place_until_it_ends() -> None:
    reducer = batch(1, timeout=10.0, most_leases=1)
    one = lease(reducer)
    reducer.overdue(10.0, {one.number: (0, 0.0)})
    assert len(due(reducer)) == 1
    assert reducer.next_lease(10.0) == 0
    answer(reducer, one)
    assert due(reducer) == []
    assert reducer.next_lease(20.0) == 1


def test_a_worker_that_cannot_get_rid_of_its_results_is_killed_and_they_are_kept() -> None:
    reducer = timed()
    one = lease(reducer)
    assert reducer.overdue(700.0, {one.number: (3, 650.0)}) == [one.number]
    assert due(reducer) == []
    reducer.lost(one.number, lost(one, 3, 3))
    assert all(outcome.ok for outcome in due(reducer))
    assert reducer.waiting() == []


def test_each_lease_has_its_own_clock() -> None:
    reducer = timed(1)
    first, second = lease(reducer, 0.0), lease(reducer, 4.0)
    running: Running = {first.number: (0, 0.0), second.number: (0, 4.0)}
    assert reducer.overdue(10.0, running) == [first.number]
    assert reducer.check_at() == 14.0
    assert reducer.overdue(14.0, running) == [second.number]


# Cancelling one item


def cancelled(outcomes: Iterable[Outcome[Any]]) -> list[int]:
    return [one.index for one in outcomes if isinstance(one.error, ItemCancelled)]


def test_an_item_that_was_given_back_is_cancelled_where_it_waits() -> None:
    reducer = batch()
    one = lease(reducer)
    reducer.returned(one.number, ran(one, [0]))
    assert reducer.cancel(2, None, 0.0) == (True, None)
    back = lease(reducer)
    assert list(back.indexes) == [1, 3]
    assert back.items == [1, 3]
    answer(reducer, back)
    outcomes = due(reducer)
    assert cancelled(outcomes) == [2]
    assert attempts(outcomes) == [1, 1, 0, 1]


def test_a_suspect_is_cancelled_where_it_waits() -> None:
    reducer = suspects()
    assert reducer.cancel(0, None, 0.0) == (True, None)
    assert list(lease(reducer).indexes) == [1]


def test_a_leased_item_that_has_not_begun_is_cancelled_without_a_kill() -> None:
    reducer = batch(forgets=True)
    one = lease(reducer)
    assert reducer.cancel(2, (1, 0.0), 5.0) == (True, None)
    answer(reducer, one)
    outcomes = due(reducer)
    assert cancelled(outcomes) == [2]
    assert [one.attempts for one in outcomes] == [1, 1, 0, 1]


def test_a_running_item_is_cancelled_with_a_kill_that_costs_its_neighbours_nothing() -> None:
    reducer = batch(forgets=True)
    one = lease(reducer)
    assert reducer.cancel(1, (1, 2.0), 5.0) == (True, one.number)
    reducer.lost(one.number, lost(one, 1, 1))
    outcomes = drive(reducer, 4)
    assert cancelled(outcomes) == [1]
    assert attempts(outcomes) == [1, 1, 1, 1]
    assert outcomes[1].seconds == 3.0


def test_a_cancelled_items_neighbour_that_was_killed_in_its_place_is_not_to_blame() -> None:
    reducer = batch(2, forgets=True)
    one = lease(reducer)
    reducer.cancel(0, (0, 2.0), 5.0)
    reducer.lost(one.number, lost(one, 1, 1))
    outcomes = drive(reducer, 2)
    assert cancelled(outcomes) == [0]
    assert outcomes[1].ok


def test_an_item_whose_worker_still_loads_is_cancelled_without_a_kill() -> None:
    reducer = batch(forgets=True)
    lease(reducer)
    assert reducer.cancel(0, (0, 60.0), 5.0) == (True, None)
    assert attempts(due(reducer)) == [0]


def test_a_cancelled_item_does_not_make_its_chunk_forget_that_a_worker_died_over_it() -> None:
    reducer = batch(2)
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, None))
    reducer.cancel(0, None, 0.0)
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, None))
    assert [type(outcome.error) for outcome in due(reducer)] == [ItemCancelled, WorkerDied]


def test_a_cancelled_item_whose_workers_die_before_it_begins_has_one_outcome() -> None:
    reducer = batch(1)
    one = lease(reducer)
    reducer.lost(one.number, lost(one, 0, None))
    one = lease(reducer)
    reducer.cancel(0, None, 0.0)
    reducer.lost(one.number, lost(one, 0, None))
    assert cancelled(due(reducer)) == [0]
    assert reducer.unhanded() == []
    assert len(reducer.news) == 1


def test_an_item_that_has_ended_in_a_chunk_that_runs_on_cannot_be_cancelled() -> None:
    reducer = batch()
    one = lease(reducer)
    assert reducer.cancel(0, (1, 0.0), 5.0) == (False, None)
    answer(reducer, one)
    assert cancelled(due(reducer)) == []


@pytest.mark.parametrize("index", [0, 99])
def test_an_item_that_is_done_or_not_drawn_cannot_be_cancelled(index: int) -> None:
    reducer = batch()
    answer(reducer, lease(reducer))
    assert reducer.cancel(index, None, 0.0) == (False, None)


def test_an_item_is_cancelled_once() -> None:
    reducer = batch()
    lease(reducer)
    assert reducer.cancel(1, None, 0.0) == (True, None)
    assert reducer.cancel(1, None, 0.0) == (False, None)


def test_a_call_that_was_cancelled_before_it_began_holds_its_place_until_the_engine_is_rid_of_it() -> None:
    reducer = batch(1, forgets=True, most_leases=1)
    one = lease(reducer)
    reducer.cancel(0, None, 0.0)
    assert reducer.next_lease(0) == 0
    answer(reducer, one)
    assert cancelled(due(reducer)) == [0]


def test_a_cancelled_item_that_runs_all_the_same_is_stopped_at_its_limit() -> None:
    reducer = timed()
    one = lease(reducer)
    reducer.cancel(1, (0, 0.0), 5.0)
    assert reducer.overdue(20.0, {one.number: (1, 8.0)}) == [one.number]
    assert reducer.check_at() > 20.0
    assert cancelled(reducer.unhanded()) == indexes(reducer.unhanded()) == [1]


def test_a_cancelled_item_that_kills_its_worker_all_the_same_has_one_outcome() -> None:
    reducer = batch(2)
    one = lease(reducer)
    reducer.cancel(1, (0, 0.0), 5.0)
    reducer.lost(one.number, lost(one, 1, 1))
    outcomes = due(reducer)
    assert cancelled(outcomes) == [1]
    assert len(outcomes) == 2


# The first failure ends the batch


def test_fast_ends_the_batch_at_the_first_failure() -> None:
    reducer = batch(fast=True)
    one, other = lease(reducer), lease(reducer)
    reducer.returned(one.number, ran(one, range(4), {1: ValueError("one"), 3: ValueError("three")}))
    assert reducer.finished
    assert reducer.failed is not None
    assert reducer.failed.index == 1
    assert reducer.next_lease(0) == 0
    assert [list(held.indexes) for held in reducer.leases()] == [list(other.indexes)]


def test_fast_counts_a_death_as_a_failure() -> None:
    reducer = batch(fast=True)
    kill(reducer, died())
    assert reducer.finished
    assert reducer.waiting() == [1, 2, 3]


def test_fast_lets_a_death_pass_that_is_not_the_items_last() -> None:
    reducer = batch(fast=True, max_kills=2)
    kill(reducer, died())
    assert not reducer.finished


# Coroutines: the items of a lease run side by side


def coroutines(width: int = 4, **rules: Any) -> Reducer:
    return batch(width, width=width, most_leases=2 * width, by_items=True, **rules)


def test_the_items_of_a_lease_may_end_in_any_order() -> None:
    reducer = coroutines()
    one = lease(reducer)
    reducer.returned(one.number, part(one, 3, 1), last=False)
    assert due(reducer) == []
    reducer.returned(one.number, part(one, 0), last=False)
    assert [outcome.value for outcome in due(reducer)] == [value(0), value(1)]
    reducer.returned(one.number, part(one, 2), last=False)
    reducer.returned(one.number, part(one))
    assert [outcome.value for outcome in due(reducer)] == [value(2), value(3)]
    assert list(reducer.leases()) == []


def test_width_bounds_the_items_in_flight() -> None:
    reducer = coroutines()
    one = lease(reducer)
    assert reducer.next_lease(0) == 0
    reducer.returned(one.number, part(one, 2, 0), last=False)
    assert reducer.next_lease(0) == 2


def test_an_item_that_was_answered_in_part_has_no_second_outcome_where_its_lease_is_lost() -> None:
    reducer = coroutines()
    one = lease(reducer)
    reducer.returned(one.number, part(one, 1, 3), last=False)
    reducer.lost(one.number, ItemCancelled("its loop was closed"))
    outcomes = due(reducer)
    assert indexes(outcomes) == [0, 1, 2, 3]
    assert cancelled(outcomes) == [0, 2]


def test_an_item_that_was_answered_in_part_cannot_be_cancelled() -> None:
    reducer = coroutines()
    one = lease(reducer)
    reducer.returned(one.number, part(one, 1), last=False)
    assert reducer.cancel(1, None, 0.0) == (False, None)


def test_an_item_that_raised_keeps_its_error_in_a_part() -> None:
    reducer = coroutines()
    one = lease(reducer)
    failed = ran(one, [2, 0], {2: ValueError("two")})._replace(positions=[2, 0])
    reducer.returned(one.number, failed, last=False)
    assert due(reducer)[0].value == value(0)
    assert [outcome.index for outcome in reducer.unhanded() if not outcome.ok] == [2]


def test_parts_that_were_never_answered_run_again() -> None:
    reducer = coroutines()
    one = lease(reducer)
    reducer.returned(one.number, part(one, 1), last=False)
    reducer.returned(one.number, part(one))
    assert reducer.waiting() == [0, 2, 3]


# Calls that the engine could not take


def test_a_chunk_that_cannot_be_pickled_is_divided_to_find_the_item() -> None:
    reducer = batch(3)
    reducer.lost(lease(reducer).number, NotPicklable("cannot be pickled"))
    singles = [lease(reducer) for _ in range(3)]
    assert [list(one.indexes) for one in singles] == [[0], [1], [2]]
    reducer.lost(singles[1].number, NotPicklable("cannot be pickled"))
    answer(reducer, singles[0], singles[2])
    outcomes = due(reducer)
    assert attempts(outcomes) == [1, 0, 1]
    assert isinstance(outcomes[1].error, NotPicklable)


def test_what_arrived_is_kept_where_the_rest_of_a_chunk_does_not_unpickle() -> None:
    reducer = batch()
    one = lease(reducer)
    error = NotPicklable("the result does not unpickle")
    reducer.lost(one.number, ChunkLost(error, ran(one, [0, 1]), certain=False))
    assert indexes(due(reducer)) == [0, 1]
    assert [list(lease(reducer).indexes) for _ in range(2)] == [[2], [3]]


@pytest.mark.parametrize("error", [BackendUnavailable("it is gone"), ItemCancelled("it was cancelled")])
def test_a_chunk_that_the_engine_refuses_fails_at_once_and_has_never_run(error: BaseException) -> None:
    reducer = batch()
    reducer.lost(lease(reducer).number, error)
    outcomes = due(reducer)
    assert [one.error for one in outcomes] == [error] * 4
    assert attempts(outcomes) == [0, 0, 0, 0]


def test_an_answer_for_more_items_than_were_given_gives_no_outcome_to_any_of_them() -> None:
    reducer = batch(2)
    one = lease(reducer)
    reducer.returned(one.number, Ran(["a", "b", "c"], [0.1] * 3, []))
    assert due(reducer) == []
    assert reducer.waiting() == [0, 1]


# Whatever happens

LOSSES = ["dies", "starves", "dies between", "vanishes", "suspect", "breaks", "cannot cross", "is gone"]


@settings(max_examples=200, deadline=None)
@given(
    losses=st.lists(st.sampled_from(LOSSES), min_size=1, max_size=8),
    size=st.integers(1, 5),
    kills=st.integers(1, 3),
    by_items=st.booleans(),
)
def test_a_batch_whose_every_lease_is_lost_comes_to_an_end(
    losses: list[str], size: int, kills: int, by_items: bool
) -> None:
    reducer = batch(size, max_kills=kills, max_memory_kills=kills, by_items=by_items)
    outcomes: list[Outcome[Any]] = []
    for turn in range(500):
        reducer.ended = reducer.drawn >= 5
        outcomes += due(reducer)
        if reducer.finished:
            break
        one = lease(reducer)
        how = losses[turn % len(losses)]
        errors = {
            "dies": lost(one, 0, 0),
            "starves": lost(one, 0, 0, starved()),
            "dies between": lost(one, 0, None),
            "vanishes": vanished(),
            "suspect": ChunkLost(died(), ran(one, []), 0, certain=False),
            "breaks": RuntimeError("broken"),
            "cannot cross": NotPicklable("cannot cross"),
            "is gone": BackendUnavailable("it is gone"),
        }
        reducer.lost(one.number, errors[how])
    assert indexes(outcomes) == list(range(reducer.drawn))
    assert not any(one.ok for one in outcomes)


@dataclass
class Held:
    """What the engine of the model has of a lease."""

    lease: Lease
    done: int = 0
    """Items that have ended, where they run one after another."""
    running: bool = False
    start: float = 0.0
    killed: bool = False
    answered: set[int] = field(default_factory=set)
    """Positions, where items run side by side."""

    def open(self) -> list[int]:
        return [position for position in range(len(self.lease.items)) if position not in self.answered]


class AnyBatch(RuleBasedStateMachine):
    """A model plays both the caller and the engine, at random. Three kinds of engines:

    - exact: it knows which item of a chunk runs, and how each death came about;
    - blind: it knows that a chunk runs, and nothing else;
    - beside: it runs the items of a lease side by side, and answers in parts.
    """

    @initialize(
        kind=st.sampled_from(["exact", "blind", "beside"]),
        width=st.integers(1, 3),
        more=st.integers(0, 3),
        lookahead=st.integers(1, 12),
        length=st.integers(0, 20),
        ordered=st.booleans(),
        fast=st.sampled_from([False, False, True]),
        timeout=st.sampled_from([None, 4.0]),
        kills=st.booleans(),
        max_kills=st.integers(1, 3),
        max_memory_kills=st.integers(1, 3),
    )
    def begin(
        self,
        kind: str,
        width: int,
        more: int,
        lookahead: int,
        length: int,
        kills: bool,
        timeout: float | None,
        **rules: Any,
    ) -> None:
        self.kind, self.length, self.kills = kind, length, kills
        self.lookahead = lookahead
        # A clock that runs on an item must not run on its neighbours.
        self.largest = 5 if kind == "exact" or timeout is None else 1
        self.limits = Rules(
            width=width,
            most_leases=width + more,
            timeout=timeout,
            by_items=kind == "beside",
            forgets=kills,
            lookahead=lookahead,
            **rules,
        )
        self.sizes = Sizes(1)
        self.reducer = Reducer(self.limits, self.sizes, None)
        self.now = 0.0
        self.held: dict[int, Held] = {}
        self.elsewhere: set[int] = set()
        self.handed: list[Outcome[Any]] = []
        self.outcomes: dict[int, Outcome[Any]] = {}
        self.leased: Counter[int] = Counter()
        self.begun: Counter[int] = Counter()
        self.deaths: Counter[int] = Counter()
        self.starvations: Counter[int] = Counter()
        self.unbegun: Counter[int] = Counter()

    # The caller

    @rule(size=st.integers(1, 5), slow=st.integers(0, 2))
    def draw_and_lease(self, size: int, slow: int) -> None:
        """:param slow: items that the input does not give in time."""
        self.sizes.size = self.sizes.limit = min(size, self.largest)
        what = self.reducer.next_lease(self.now)
        if isinstance(what, int):
            left = self.length - self.reducer.drawn
            count = min(max(1, what - slow), left) if what else 0
            self.reducer.ended = self.reducer.ended or (what > 0 and count == left)
            if not count:
                return
            first = self.reducer.drawn
            what = self.reducer.drew(list(range(first, first + count)), self.now)
        assert what.items == list(what.indexes)
        self.leased.update(what.indexes)
        self.held[what.number] = Held(what)

    @rule()
    def hand_out(self) -> None:
        self.handed += due(self.reducer)

    @rule(index=st.integers(0, 20))
    def cancel(self, index: int) -> None:
        one = self.reducer.holder(index)
        if one is not None and not self.kills:
            return  # as the runner does: it would run on
        had = index in self.outcomes
        running = None if one is None else self.runs(self.held[one.number])
        done, number = self.reducer.cancel(index, running, self.now)
        self.take_outcomes()
        assert done == (not had and index in self.outcomes)
        if done:
            assert isinstance(self.outcomes[index].error, ItemCancelled)
        if number is not None:
            assert one is not None
            assert number == one.number
            self.held[number].killed = True

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        if self.reducer.check_at() > self.now:
            return
        held = {one.number: self.held[one.number] for one in self.reducer.leases()}
        before = set(self.outcomes)
        for number in self.reducer.overdue(self.now, {one: self.runs(held[one]) for one in held}):
            assert not held[number].killed
            held[number].killed = True
        self.take_outcomes()
        assert self.reducer.check_at() > self.now, "whoever waits for it would wait for nothing"
        for index in self.outcomes.keys() - before:
            (one,) = (one for one in held.values() if index in one.lease.indexes)
            assert self.limits.timeout is not None
            assert self.now - one.start >= self.limits.timeout
            assert one.killed
            assert isinstance(self.outcomes[index].error, ItemTimeout)

    # The engine

    def runs(self, held: Held) -> tuple[int, float] | None:
        if held.running:
            return held.done if self.kind == "exact" else 0, held.start
        if self.kind == "exact" and held.done:
            return held.done, self.now + 100.0  # results are on their way
        return None

    def any_of(self, data: st.DataObject) -> Held:
        return self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """The engine begins a lease, or the next item of one."""
        held = self.any_of(data)
        if held.running and self.kind == "exact":
            held.done, held.running = held.done + 1, False
        elif not held.running and held.done < len(held.lease.items):
            held.running, held.start = True, self.now
            count = 1 if self.kind == "exact" else len(held.lease.items)
            self.begun.update(held.lease.indexes[held.done : held.done + count])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.answer_for(self.any_of(data))

    def answer_for(self, held: Held) -> None:
        """The rest runs to its end."""
        positions = held.open()
        self.begin_from(held, len(held.lease.items))
        if self.kind == "beside":
            self.reducer.returned(held.lease.number, part(held.lease, *positions), last=False)
            positions = []
        answer = part(held.lease, *positions) if self.kind == "beside" else ran(held.lease, positions)
        del self.held[held.lease.number]
        self.reducer.returned(held.lease.number, answer)

    def begin_from(self, held: Held, until: int) -> None:
        """Those from what has run or runs up to `until` begin."""
        if self.kind == "exact":
            self.begun.update(held.lease.indexes[held.done + held.running : until])
        elif not held.running:
            self.begun.update(held.lease.indexes)

    @precondition(lambda self: self.held and self.kind != "beside")
    @rule(data=st.data())
    def end_early(self, data: st.DataObject) -> None:
        held = self.any_of(data)
        least = held.done + held.running
        count = data.draw(st.integers(least, len(held.lease.items)))
        self.begin_from(held, count)
        del self.held[held.lease.number]
        self.reducer.returned(held.lease.number, ran(held.lease, range(count)))

    @precondition(lambda self: self.held and self.kind == "beside")
    @rule(data=st.data())
    def answer_in_part(self, data: st.DataObject) -> None:
        held = self.any_of(data)
        if held.running and held.open():
            positions = data.draw(st.lists(st.sampled_from(held.open()), unique=True, min_size=1))
            held.answered.update(positions)
            self.reducer.returned(held.lease.number, part(held.lease, *positions), last=False)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), memory=st.booleans(), certain=st.booleans())
    def die(self, data: st.DataObject, memory: bool, certain: bool) -> None:
        self.die_under(self.any_of(data), memory, certain)

    def die_under(self, held: Held, memory: bool, certain: bool) -> None:
        """:param certain: of an exact engine: that the item that ran is to blame."""
        one, error = held.lease, starved() if memory else died()
        del self.held[one.number]
        known = any(one is lease for lease in self.reducer.leases())
        if self.kind != "exact":
            to_blame = list(one.indexes) if one.alone else []
            loss: BaseException = ChunkLost(error, ran(one, []), certain=False) if certain else error
        elif held.running:
            to_blame = [one.indexes[held.done]] if certain or one.alone else []
            loss = ChunkLost(error, ran(one, range(held.done)), held.done, certain=certain)
        else:
            to_blame = []
            if not held.done:
                self.unbegun.update(one.indexes)
            # After the last item its position is their number, or nobody can say.
            position = held.done if certain and held.done == len(one.items) else None
            loss = ChunkLost(error, ran(one, range(held.done)), position)
        if known and not held.killed:
            to_blame = [index for index in to_blame if index not in self.outcomes]
            (self.starvations if memory else self.deaths).update(to_blame)
        self.reducer.lost(one.number, loss)

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        error=st.sampled_from([BackendUnavailable("gone"), ItemCancelled("dropped"), NotPicklable("what")]),
    )
    def refuse(self, data: st.DataObject, error: BaseException) -> None:
        """The engine could not take a lease."""
        held = self.any_of(data)
        if not held.running and not held.done:
            del self.held[held.lease.number]
            self.reducer.lost(held.lease.number, error)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        """The batch takes back what only waits."""
        held = self.any_of(data)
        if not held.running and not held.done and not held.killed:
            del self.held[held.lease.number]
            self.reducer.recalled(held.lease.number)

    @rule()
    def move(self) -> None:
        """The batch goes on with another engine."""
        self.sizes = Sizes(1)
        self.reducer.move(self.limits, self.sizes)
        self.elsewhere = {one.number for one in self.reducer.leases()}

    # The laws

    def take_outcomes(self) -> None:
        """Note the outcomes that are new, each when it comes."""
        fresh = [outcome for run in self.reducer.news for outcome in run]
        self.reducer.news.clear()
        for outcome in fresh:
            assert outcome.index not in self.outcomes, "a second outcome"
            self.outcomes[outcome.index] = outcome
            self.check(outcome)

    def check(self, outcome: Outcome[Any]) -> None:
        index, error = outcome.index, outcome.error
        assert outcome.value == (value(index) if outcome.ok else None)
        assert outcome.attempts >= outcome.ok
        assert outcome.attempts <= self.leased[index]
        if self.kind == "exact":
            assert outcome.attempts == self.begun[index]
        kills = self.deaths[index] + self.starvations[index]
        if isinstance(error, Quarantined):
            assert error.kills == kills > 1
        elif isinstance(error, WorkerDied):
            assert kills == 1 or self.unbegun[index] > 1

    @invariant()
    def every_item_is_in_one_place(self) -> None:
        self.take_outcomes()
        leases = list(self.reducer.leases())
        open_ = [
            index
            for one in leases
            for position, index in enumerate(one.indexes)
            if position not in one.settled
        ]
        places = [*self.outcomes, *self.reducer.waiting(), *open_]
        assert sorted(places) == list(range(self.reducer.drawn))
        kept = [*self.handed, *self.reducer.unhanded()]
        assert Counter(indexes(kept)) == Counter(self.outcomes.keys())
        assert self.reducer._open == len(open_)
        if self.limits.by_items:
            assert len(open_) <= self.limits.width
        for index in {*self.reducer.waiting(), *open_}:
            assert self.deaths[index] < self.limits.max_kills
            assert self.starvations[index] < self.limits.max_memory_kills

    @invariant()
    def outcomes_are_handed_out_in_order(self) -> None:
        assert self.reducer.handed == len(self.handed)
        if self.limits.ordered:
            assert indexes(self.handed) == list(range(len(self.handed)))

    @invariant()
    def bounds_are_kept(self) -> None:
        leases = list(self.reducer.leases())
        assert self.reducer.drawn - self.reducer.handed <= self.lookahead
        here = [one for one in leases if one.number not in self.elsewhere]
        assert len(here) <= self.limits.most_leases
        assert len(leases) == 1 or not any(one.alone for one in leases)
        assert {one.number for one in leases} <= self.held.keys()

    def teardown(self) -> None:
        """From here on all goes well, and so the batch ends with all its outcomes."""
        if not hasattr(self, "reducer"):
            return
        for _ in range(200):
            if self.reducer.failed is not None:
                assert self.limits.fast
                assert self.reducer.finished
                return
            for held in list(self.held.values()):
                if held.killed:
                    self.die_under(held, memory=False, certain=True)
                else:
                    self.answer_for(held)
            self.take_outcomes()
            self.hand_out()
            if self.reducer.finished:
                break
            self.draw_and_lease(5, 0)
        assert self.reducer.finished
        assert sorted(indexes(self.handed)) == list(range(self.length))
        self.every_item_is_in_one_place()
        self.outcomes_are_handed_out_in_order()


TestAnyBatch = AnyBatch.TestCase
TestAnyBatch.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def gone(**about: Any) -> BackendUnavailable:
    return BackendUnavailable("it has broken down", **about)


def test_what_an_engine_had_that_breaks_down_is_for_the_next_one_uncharged() -> None:
    reducer = batch(size=2, degrades=True)
    first, second = lease(reducer), lease(reducer)
    reducer.lost(first.number, gone())
    assert reducer.broken is not None
    reducer.move(Rules(width=1, most_leases=4, lookahead=100), Sizes(2))
    assert reducer.broken is None
    reducer.lost(second.number, gone())  # it had been with the engine from before
    assert reducer.broken is None
    answer(reducer, lease(reducer), lease(reducer))
    assert [(one.index, one.value, one.attempts) for one in due(reducer)] == [
        (index, value(index), 1) for index in range(4)
    ]


def test_what_may_have_begun_on_an_engine_that_breaks_down_does_not_begin_on_another() -> None:
    reducer = batch(size=1, degrades=True)
    reducer.lost(lease(reducer).number, gone(begun=True))
    assert reducer.broken is not None
    [outcome] = due(reducer)
    assert isinstance(outcome.error, BackendUnavailable)


def test_without_another_engine_all_that_is_left_fails() -> None:
    reducer = batch(size=2)
    reducer.lost(lease(reducer).number, gone())
    assert reducer.broken is None
    assert [type(one.error) for one in due(reducer)] == [BackendUnavailable] * 2
