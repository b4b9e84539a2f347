"""Policies in a batch: what they admit runs, what they put off holds no worker, what they answer is final."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video import plan
from video.backends.base import Ran
from video.config import ParallelConfig
from video.errors import ItemCancelled, TaskError, WorkerDied
from video.events import Event, Kind
from video.gate import Gate
from video.outcome import Outcome
from video.policies.base import Job, Policy, Verdict
from video.policies.cache import CachePolicy, MemoryCache
from video.policies.twins import Twins
from video.reducer import Lease, Reducer, Rules
from video.runner import Runner


class Open:
    """Lets everything pass, and writes down what it was asked."""

    name = "open"
    answers = False

    def __init__(self, *, idle: bool = False) -> None:
        self.said: list[tuple[str, int]] = []
        self.held: Counter[int] = Counter()
        self.quiet = idle
        self.total = 0

    def admit(self, job: Job, now: float) -> Verdict:
        self.said.append(("admit", job.index))
        self.held[job.index] += 1
        return None

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        self.said.append(("settle", job.index))
        self.held[job.index] -= 1
        return None

    def withdraw(self, job: Job, now: float) -> None:
        self.said.append(("withdraw", job.index))
        self.held[job.index] -= 1

    def idle(self, now: float) -> bool:
        return self.quiet

    def passed(self, count: int, now: float) -> None:
        self.total += count


class Answers(Open):
    """Answers for some items by itself."""

    name = "answers"

    def __init__(self, *indexes: int) -> None:
        super().__init__()
        self.indexes = indexes

    def admit(self, job: Job, now: float) -> Verdict:
        if job.index in self.indexes:
            return Outcome(job.index, "known", None, 0, origin=self.name)
        return super().admit(job, now)


class Later(Open):
    """Puts each item off once."""

    name = "later"

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.seen: dict[int, float] = {}

    def admit(self, job: Job, now: float) -> Verdict:
        first = self.seen.setdefault(job.index, now)
        if now < first + self.seconds:
            return first + self.seconds - now
        return super().admit(job, now)


class Again(Open):
    """Has an item that fails run again."""

    name = "again"

    def __init__(self, most: int, seconds: float = 0.0) -> None:
        super().__init__(idle=True)
        self.most, self.seconds = most, seconds

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        super().settle(job, outcome, now)
        retriable = outcome.error is not None and not isinstance(outcome.error, ItemCancelled)
        return self.seconds if retriable and outcome.attempts <= self.most else None


class Broken(Open):
    """Raises wherever it is asked."""

    name = "broken"

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def admit(self, job: Job, now: float) -> Verdict:
        if self.where == "admit":
            raise OSError("its store is gone")
        return super().admit(job, now)

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        if self.where == "settle":
            raise OSError("its store is gone")
        return super().settle(job, outcome, now)


def double(x: int) -> int:
    return 2 * x


def run(*policies: Policy, task: Any = double, count: int = 20, **config: Any) -> list[Outcome[Any]]:
    config = {"backend": "thread", "max_workers": 2} | config
    with Runner(ParallelConfig(**config), policies=policies) as runner:
        return runner.map(task, range(count))


# In a batch


def test_what_a_policy_answers_does_not_run_and_has_its_place() -> None:
    ran: list[int] = []
    outcomes = run(Answers(3, 4, 19), task=lambda x: ran.append(x) or x)
    assert sorted(ran) == [x for x in range(20) if x not in (3, 4, 19)]
    assert [one.index for one in outcomes] == list(range(20))
    assert {one.index for one in outcomes if one.origin == "answers"} == {3, 4, 19}
    assert outcomes[3] == Outcome(3, "known", None, 0, origin="answers")


def test_an_answer_passes_the_policies_before_it_and_no_other() -> None:
    before, after = Open(), Open()
    run(before, Answers(0), after, count=1)
    assert before.said == [("admit", 0), ("settle", 0)]
    assert after.said == []


def test_what_one_policy_took_is_given_back_where_a_later_one_puts_the_item_off() -> None:
    first = Open()
    run(first, Later(0.02), count=1)
    assert first.said == [("admit", 0), ("withdraw", 0), ("admit", 0), ("settle", 0)]


def test_policies_settle_in_reverse_order() -> None:
    said: list[str] = []

    class Says(Open):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name  # type: ignore[misc]  # of one test

        def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
            said.append(self.name)
            return None

    run(Says("first"), Says("second"), count=1)
    assert said == ["second", "first"]


def test_items_that_wait_hold_no_worker() -> None:
    """Two workers, and all twenty have been put off before the first has run."""

    class Counts(Later):
        put_off_before_the_first = 0

        def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
            self.put_off_before_the_first = self.put_off_before_the_first or len(self.seen)
            return super().settle(job, outcome, now)

    policy = Counts(0.3)
    outcomes = run(policy)
    assert [one.value for one in outcomes] == [double(x) for x in range(20)]
    assert policy.put_off_before_the_first == 20


@pytest.mark.parametrize("backend", ["serial", "thread", "process", "joblib"])
def test_an_item_that_failed_runs_again_on_every_engine(backend: str, tmp_path: Any) -> None:
    if backend == "joblib":
        pytest.importorskip("joblib")
    place = str(tmp_path)

    def fail_at_first(x: int) -> int:
        import os

        marker = os.path.join(place, str(x))
        if x % 3 == 0 and not os.path.exists(marker):
            open(marker, "w").close()
            raise ConnectionError("cut")
        return 2 * x

    workers = 1 if backend == "serial" else 2
    outcomes = run(Again(2), task=fail_at_first, backend=backend, max_workers=workers)
    assert [one.value for one in outcomes] == [double(x) for x in range(20)]
    assert [one.attempts for one in outcomes] == [2 if x % 3 == 0 else 1 for x in range(20)]


def test_who_put_an_item_off_hears_that_another_has_answered_it() -> None:
    """Else it would keep a place in its queue for an item that never comes."""

    class PutsOff(Open):
        def admit(self, job: Job, now: float) -> Verdict:
            self.said.append(("admit", job.index))
            return 1.0

    first, second, third = Answers(), PutsOff(), Open()
    gate = Gate([first, second, third])
    assert gate.admit(0, "item", 0, 0.0) == 1.0
    first.indexes = (0,)
    assert isinstance(gate.admit(0, "item", 0, 1.0), Outcome)
    assert second.said == [("admit", 0), ("withdraw", 0)]
    assert third.said == []


def test_coroutines_pass_the_gate_too() -> None:
    import asyncio

    tries: Counter[int] = Counter()

    async def fail_at_first(x: int) -> int:
        await asyncio.sleep(0.001)
        tries[x] += 1
        if tries[x] == 1:
            raise ConnectionError("cut")
        return 2 * x

    with Runner(ParallelConfig(backend="async"), policies=[Again(2)]) as runner:
        outcomes = runner.map(fail_at_first, range(50))
    assert [one.value for one in outcomes] == [double(x) for x in range(50)]
    assert {one.attempts for one in outcomes} == {2}


def test_an_item_that_runs_out_of_attempts_fails_with_its_last_error() -> None:
    def fail(x: int) -> int:
        raise ConnectionError(f"cut {x}")

    outcomes = run(Again(2), task=fail, count=3)
    assert [str(one.error) for one in outcomes] == ["cut 0", "cut 1", "cut 2"]
    assert [one.attempts for one in outcomes] == [3, 3, 3]


def test_an_item_whose_worker_is_killed_runs_again_if_a_policy_says_so(tmp_path: Any) -> None:
    place = str(tmp_path)

    def die_at_first(x: int) -> int:
        import os
        import signal

        marker = os.path.join(place, str(x))
        if x == 5 and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * x

    outcomes = run(Again(2), task=die_at_first, backend="process")
    assert [one.value for one in outcomes] == [double(x) for x in range(20)]
    assert outcomes[5].attempts == 2


def test_an_item_that_is_over_its_time_runs_again_if_a_policy_says_so() -> None:
    tries: Counter[int] = Counter()

    def hang_at_first(x: int) -> int:
        tries[x] += 1
        if x == 1 and tries[x] == 1:
            time.sleep(1.0)
        return 2 * x

    outcomes = run(Again(2), task=hang_at_first, count=4, timeout=0.2)
    assert [one.value for one in outcomes] == [0, 2, 4, 6]
    assert outcomes[1].attempts == 2


def test_while_all_policies_are_idle_whole_chunks_pass_unseen_and_are_counted() -> None:
    idle = Open(idle=True)
    outcomes = run(idle, count=5000)
    assert [one.value for one in outcomes] == [double(x) for x in range(5000)]
    assert (idle.said, idle.total) == ([], 5000)


def test_an_idle_policy_still_hears_of_what_fails() -> None:
    def fail_on_7(x: int) -> int:
        if x == 7:
            raise ValueError(x)
        return x

    idle = Open(idle=True)
    run(idle, task=fail_on_7, count=100)
    assert (idle.said, idle.total) == ([("settle", 7)], 99)


def test_a_policy_that_raises_before_an_attempt_costs_that_item_and_says_which_policy() -> None:
    outcomes = run(Broken("admit"), count=3)
    assert all(isinstance(one.error, TaskError) and "broken policy" in str(one.error) for one in outcomes)
    assert {one.attempts for one in outcomes} == {0}


def test_a_policy_that_raises_after_an_attempt_costs_nothing() -> None:
    outcomes = run(Broken("settle"), count=3)
    assert [one.value for one in outcomes] == [0, 2, 4]


def test_a_key_that_cannot_be_had_costs_its_item_alone() -> None:
    with Runner(ParallelConfig(backend="thread"), policies=[Open()]) as runner:
        outcomes = runner.map(double, range(3), key=lambda x: 1 / (x - 1))  # type: ignore[arg-type,return-value]
    assert [one.value for one in outcomes] == [0, None, 4]
    assert isinstance(outcomes[1].error, ZeroDivisionError)


def test_an_item_that_waits_can_be_cancelled() -> None:
    with Runner(ParallelConfig(backend="thread"), policies=[Later(30.0)]) as runner:
        stream = runner.stream(double, range(2))
        found: list[Outcome[Any]] = []
        reader = threading.Thread(target=lambda: found.extend(stream))
        reader.start()
        deadline = time.monotonic() + 10
        while not all(stream.cancel(index) for index in (0, 1)) and time.monotonic() < deadline:
            time.sleep(0.01)
        reader.join(10)
    assert [type(one.error) for one in found] == [ItemCancelled, ItemCancelled]
    assert [one.attempts for one in found] == [0, 0]


def test_an_item_that_waits_and_is_dropped_gives_back_what_it_had_reserved() -> None:
    policy = Later(30.0)
    gate = Gate([policy])
    gate.admit(0, "item", 0, 0.0)
    assert gate.drop(0, 1.0)
    assert not gate.drop(0, 1.0)
    gate.admit(1, "item", 0, 1.0)
    gate.leave(2.0)
    assert policy.said == [("withdraw", 0), ("withdraw", 1)]


def test_leaving_a_batch_gives_back_what_its_items_took() -> None:
    policy = Open()
    release = threading.Event()
    with Runner(ParallelConfig(backend="thread", max_workers=2), policies=[policy]) as runner:
        stream = runner.stream(lambda x: release.wait(5) if x else x, range(100))
        next(stream)
        release.set()
        stream.close()
    assert policy.said
    assert set(policy.held.values()) == {0}


def test_a_cache_and_twins_stand_before_what_is_spent_on_an_attempt() -> None:
    tries: Counter[str] = Counter()

    def fail_at_first(x: str) -> str:
        tries[x] += 1
        if tries[x] == 1:
            raise ConnectionError("cut")
        return x * 2

    config = ParallelConfig(backend="thread", max_retries=2, retry_delay_seconds=0.01, rate_limit_rpm=60_000)
    cache = CachePolicy(MemoryCache(), task="double")
    before = Open()
    with Runner(config, policies=[before, Twins(), cache]) as runner:
        first = runner.map(fail_at_first, ["a", "b", "a", "a"])
        again = runner.map(fail_at_first, ["a", "b"])
    assert [one.value for one in first] == ["aa", "bb", "aa", "aa"]
    assert [one.origin for one in first] == ["run", "run", "twin", "twin"]
    assert {index for what, index in before.said if what == "admit"} == {0, 1}, "it stands after both"
    assert tries == {"a": 2, "b": 2}
    assert [(one.value, one.origin, one.attempts) for one in again] == [
        ("aa", "cache", 0),
        ("bb", "cache", 0),
    ]


def test_no_more_items_begin_in_a_while_than_the_rate_allows() -> None:
    began: list[float] = []
    config = ParallelConfig(backend="thread", max_workers=8, rate_limit_rpm=1200)
    with Runner(config) as runner:
        runner.map(lambda _: began.append(time.monotonic()), range(40))
    began.sort()
    # Twenty a second: whatever the burst at the start, two seconds' worth cannot pass in one.
    assert began[-1] - began[0] > 0.8


def test_what_runs_again_is_told() -> None:
    events: list[Event] = []
    tries: Counter[int] = Counter()

    def fail_at_first(x: int) -> int:
        tries[x] += 1
        if tries[x] == 1:
            raise ConnectionError("cut")
        return x

    with Runner(ParallelConfig(backend="thread"), observers=[events.append], policies=[Again(1)]) as runner:
        runner.map(fail_at_first, range(2))
    again = [event for event in events if event.kind is Kind.ITEMS_RERUN]
    assert sum(event.total or 0 for event in again) == 2
    assert all(isinstance(event.error, ConnectionError) for event in again)


# With plain values


class Sizes(plan.ChunkSizes):
    known = True

    def __init__(self, size: int) -> None:
        super().__init__(size, 1)
        self.size = size

    def observe(self, seconds: Any) -> None:
        pass

    def next(self, left: int | None) -> int:
        return self.size


def test_a_full_engine_is_not_asked_again_and_again() -> None:
    """Else the loop would spin while an item that may go on has no worker to go to."""
    gate = Gate([Later(1.0)])
    reducer = Reducer(Rules(1, 1, 10), Sizes(1), None, gate)
    assert reducer.next_lease(0.0) == 1
    assert reducer.drew([0], 0.0) is None
    assert reducer.next_lease(0.5) == 1
    assert reducer.check_at() == 1.0
    assert reducer.drew([1], 0.5) is None
    lease = reducer.next_lease(1.0)
    assert isinstance(lease, Lease)
    assert reducer.next_lease(2.0) == 0
    assert reducer.check_at() == float("inf")


def test_an_item_that_may_have_killed_its_worker_is_admitted_again_before_it_runs_alone() -> None:
    policy = Open()
    reducer = Reducer(Rules(2, 4, 10, max_kills=2), Sizes(1), None, Gate([policy]))
    assert isinstance(reducer.next_lease(0.0), int)
    lease = reducer.drew([0], 0.0)
    assert lease is not None
    reducer.lost(lease.number, WorkerDied("its worker died"), 1.0)
    again = reducer.next_lease(1.0)
    assert isinstance(again, Lease)
    assert again.alone
    assert policy.said == [("admit", 0), ("withdraw", 0), ("admit", 0)]


@settings(deadline=None, max_examples=60)
@given(
    verdicts=st.lists(
        st.sampled_from(["go", "wait", "answer", "fail", "fail and again"]), min_size=1, max_size=30
    ),
    size=st.integers(1, 5),
    ordered=st.booleans(),
)
def test_every_item_has_one_outcome_and_nothing_stays_taken(
    verdicts: list[str], size: int, ordered: bool
) -> None:
    class Some(Open):
        name = "some"

        def __init__(self) -> None:
            super().__init__()
            self.waited: set[int] = set()

        def admit(self, job: Job, now: float) -> Verdict:
            verdict = verdicts[job.index]
            if verdict == "answer":
                return Outcome(job.index, "known", None, 0, origin=self.name)
            if verdict == "wait" and job.index not in self.waited:
                self.waited.add(job.index)
                return 1.0
            return super().admit(job, now)

        def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
            super().settle(job, outcome, now)
            return 2.0 if verdicts[job.index] == "fail and again" and job.attempts < 3 else None

    some, first = Some(), Open()
    reducer = Reducer(Rules(2, 3, 12, ordered=ordered), Sizes(size), None, Gate([first, some]))
    now, outcomes, left = 0.0, [], list(range(len(verdicts)))
    for _ in range(1000):
        what = reducer.next_lease(now)
        if isinstance(what, int) and what:
            drawn, left = left[:what], left[what:]
            reducer.ended = not left
            if drawn:
                what = reducer.drew(drawn, now) or 0
        if not isinstance(what, Lease):
            for lease in list(reducer.leases()):
                errors = [
                    (place, ValueError(index), "")
                    for place, index in enumerate(lease.indexes)
                    if verdicts[index].startswith("fail")
                ]
                values = [double(index) for index in lease.indexes]
                reducer.returned(lease.number, Ran(values, [0.1] * len(values), errors), now=now)
            now += 0.5
        outcomes += [one for run in reducer.due() for one in run]
        if reducer.finished:
            break
    assert sorted(one.index for one in outcomes) == list(range(len(verdicts)))
    if ordered:
        assert [one.index for one in outcomes] == list(range(len(verdicts)))
    for one in outcomes:
        expected = {"answer": 0, "fail and again": 3}.get(verdicts[one.index], 1)
        assert one.attempts == expected
    assert not any(some.held.values())
    assert not any(first.held.values())
