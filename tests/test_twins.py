"""Equal items of a batch run once: with plain values, against a law, and in real batches."""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.killed import append
from video.config import ParallelConfig
from video.errors import (
    CircuitOpen,
    ConfigError,
    InvalidMedia,
    ItemCancelled,
    ItemTimeout,
    Quarantined,
    WorkerDied,
    WorkerOutOfMemory,
)
from video.gate import Gate
from video.outcome import Outcome
from video.policies import twins as twins_module
from video.policies.base import Job
from video.policies.cache import CachePolicy, MemoryCache
from video.policies.retry import Retry
from video.policies.twins import LONGEST_POLL, Twins
from video.runner import Runner


def done(job: Job, value: Any = None, error: BaseException | None = None) -> Outcome[Any]:
    return Outcome(job.index, value, error, 1, 0.5)


def trio() -> tuple[Twins, list[Job]]:
    """A leader that runs, and two that wait."""
    twins, jobs = Twins(), [Job(index, {"a": 1}) for index in range(3)]
    assert twins.admit(jobs[0], 0.0) is None
    assert all(isinstance(twins.admit(job, 0.0), float) for job in jobs[1:])
    return twins, jobs


def test_twins_wait_for_the_first_and_have_its_answer_under_their_own_index() -> None:
    twins, (leader, *others) = trio()
    assert twins.waiting(leader) == [1, 2]
    assert twins.settle(leader, done(leader, "x"), 1.0) is None
    for job in others:
        assert twins.admit(job, 1.0) == Outcome(job.index, "x", None, 0, 0.0, "twin")
    assert twins.counts() == {"shared": 2, "shared_failures": 0}


def test_unlike_items_do_not_wait_for_each_other() -> None:
    twins = Twins()
    assert [
        twins.admit(Job(index, item), 0.0) for index, item in enumerate(["a", "b", 1, True, (1,), [1]])
    ] == [None] * 6


def test_a_key_function_says_who_are_twins() -> None:
    twins = Twins(key=str.lower)
    leader, twin = Job(0, "A"), Job(1, "a")
    assert twins.admit(leader, 0.0) is None
    assert twins.admit(twin, 0.0) is not None


@pytest.mark.parametrize("key", [None, lambda item: 5, lambda item: item.nothing])
def test_an_item_without_a_key_runs_by_itself(
    key: Callable[[Any], Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    twins, item = Twins(key), object()
    for index in range(3):
        job = Job(index, item)
        assert twins.admit(job, 0.0) is None
        assert twins.settle(job, done(job), 0.0) is None
    assert twins.waiting(job) == []
    assert len(caplog.records) == 1


OWN = [ValueError("x"), InvalidMedia("x"), PermissionError(13, "x"), ItemTimeout("x"), Quarantined("x")]
NOT = [WorkerDied("x"), WorkerOutOfMemory("x"), ConnectionError("x"), CircuitOpen("x"), ItemCancelled("x")]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_a_failure_that_is_the_items_own_fault_is_shared(error: Exception) -> None:
    twins, (leader, *others) = trio()
    twins.settle(leader, done(leader, error=error), 0.0)
    for job in others:
        assert twins.admit(job, 0.0) == Outcome(job.index, None, error, 0, 0.0, "twin")
    assert twins.counts()["shared_failures"] == 2


@pytest.mark.parametrize("error", NOT, ids=lambda error: type(error).__name__)
def test_after_any_other_failure_the_next_twin_runs(error: Exception) -> None:
    twins, (leader, second, third) = trio()
    twins.settle(leader, done(leader, error=error), 0.0)
    assert twins.waiting(leader) == [1], "one of them is to be woken"
    assert twins.admit(third, 0.0) is None
    assert isinstance(twins.admit(second, 0.0), float)
    twins.settle(third, done(third, "y"), 0.0)
    assert twins.admit(second, 0.0) == Outcome(1, "y", None, 0, 0.0, "twin")


def test_a_leader_that_waits_for_its_next_attempt_stays_the_leader() -> None:
    twins, (leader, second, _) = trio()
    twins.withdraw(leader, 0.0)
    assert isinstance(twins.admit(second, 10.0), float)
    assert twins.admit(leader, 11.0) is None


def test_a_leader_that_its_batch_forgets_is_followed_by_another() -> None:
    twins, jobs = trio()
    del jobs[0]
    gc.collect()
    assert twins.admit(jobs[0], 0.0) is None
    assert isinstance(twins.admit(jobs[1], 0.0), float)


def test_a_twin_asks_ever_less_often_up_to_a_bound() -> None:
    twins, jobs = trio()
    waits: list[Any] = [twins.admit(jobs[1], 0.0) for _ in range(2000)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_POLL


def test_nothing_is_kept_once_the_last_twin_has_its_answer() -> None:
    twins, jobs = trio()
    twins.settle(jobs[0], done(jobs[0], "x"), 0.0)
    assert twins.in_flight() == 1
    for job in jobs[1:]:
        twins.admit(job, 0.0)
    del job
    jobs.clear()
    gc.collect()
    assert twins.in_flight() == 0
    assert twins.admit(Job(9, {"a": 1}), 0.0) is None, "a later one runs anew"


def test_twins_that_are_dropped_leave_nothing_behind() -> None:
    twins, jobs = trio()
    jobs[:] = jobs[:1]
    gc.collect()
    assert twins.waiting(jobs[0]) == []
    twins.settle(jobs[0], done(jobs[0], "x"), 0.0)
    jobs.clear()
    gc.collect()
    assert twins.in_flight() == 0


def test_no_twin_can_change_what_another_has() -> None:
    twins, (leader, second, third) = trio()
    value: dict[str, list[int]] = {"parts": [1]}
    twins.settle(leader, done(leader, value), 0.0)
    value["parts"].append(2)
    answers = [twins.admit(job, 0.0) for job in (second, third)]
    for answer in answers:
        assert isinstance(answer, Outcome)
        assert answer.value == {"parts": [1]}
        answer.value["parts"].append(3)


def test_what_cannot_be_copied_is_shared_itself() -> None:
    twins, (leader, second, _) = trio()
    lock = threading.Lock()
    twins.settle(leader, done(leader, lock), 0.0)
    answer = twins.admit(second, 0.0)
    assert isinstance(answer, Outcome)
    assert answer.value is lock


def test_a_key_that_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="key"):
        Twins("name")  # type: ignore[arg-type]


class Batch(RuleBasedStateMachine):
    """Items come, wait, run, end in every way, and are dropped; as a gate would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.twins = Twins()
        self.drawn = 0
        self.waiting: dict[int, Job] = {}
        """To be admitted (again)."""
        self.running: dict[int, Job] = {}
        self.answered: set[int] = set()
        self.values: dict[str, set[str]] = {}
        """By key, what its runs gave."""
        self.runs: Counter[str] = Counter()

    @rule(item=st.sampled_from("abc"))
    def draw(self, item: str) -> None:
        self.waiting[self.drawn] = Job(self.drawn, item)
        self.drawn += 1

    def ask(self, index: int) -> None:
        job = self.waiting[index]
        verdict = self.twins.admit(job, 0.0)
        if verdict is None:
            assert all(one.item != job.item for one in self.running.values()), "two of a kind run at once"
            self.running[index] = self.waiting.pop(index)
        elif isinstance(verdict, Outcome):
            assert verdict.index == index
            assert verdict.origin == "twin"
            assert index not in self.answered
            what = verdict.value if verdict.error is None else str(verdict.error)
            assert what in self.values[job.item]
            self.answered.add(index)
            del self.waiting[index]
        else:
            assert 0 < verdict <= LONGEST_POLL

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(sorted(self.waiting))))

    def settle(self, index: int, how: str) -> None:
        job = self.running.pop(index)
        self.runs[job.item] += 1
        text = f"{how} {sum(self.runs.values())}"
        errors: dict[str, Exception] = {"own": ValueError(text), "died": WorkerDied(text)}
        if how != "died":
            self.values.setdefault(job.item, set()).add(text)
        others = [one.index for one in self.waiting.values() if one.item == job.item]
        assert (
            self.twins.settle(job, done(job, text if how == "done" else None, errors.get(how)), 0.0) is None
        )
        assert set(self.twins.waiting(job)) <= set(others)
        self.answered.add(index)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["done", "own", "died"]))
    def end(self, data: st.DataObject, how: str) -> None:
        self.settle(data.draw(st.sampled_from(sorted(self.running))), how)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.running)))
        self.twins.withdraw(self.running[index], 0.0)
        job = self.running.pop(index)
        self.waiting[index] = job
        for other in [one for one in self.waiting if one != index and self.waiting[one].item == job.item]:
            self.ask(other)
            assert other in self.waiting, "nobody overtakes a leader that is tried again"
        self.ask(index)
        assert index in self.running

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted({*self.running, *self.waiting})))
        self.running.pop(index, None)
        self.waiting.pop(index, None)
        self.answered.add(index)

    def teardown(self) -> None:
        """Whatever has happened, all of them have an answer in the end, and nothing is kept."""
        for _ in range(3 * self.drawn + 3):
            for index in list(self.waiting):
                self.ask(index)
            for index in list(self.running):
                self.settle(index, "done")
        assert not self.waiting
        assert self.answered == set(range(self.drawn))
        assert self.twins.in_flight() == 0


TestBatch = Batch.TestCase
TestBatch.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


# At the gate


def waiting_trio() -> Gate:
    """A leader that runs and two that have asked so often that they ask once a second."""
    gate = Gate([Twins()])
    assert gate.admit(0, "a", 0, 0.0) is None
    for index in (1, 2):
        gate.admit(index, "a", 0, 0.0)
    for _ in range(9):
        for index, item, _ in gate.due(1e9, 9):
            assert isinstance(gate.admit(index, item, 0, 100.0), float)
    assert gate.next_at == 100.0 + LONGEST_POLL
    return gate


def test_twins_are_looked_at_the_moment_that_the_first_has_its_answer() -> None:
    gate = waiting_trio()
    gate.settle("a", Outcome(0, "x", None, 1), 100.1)
    assert gate.next_at == 100.1
    assert gate.due(100.1, 9) == [(1, "a", False), (2, "a", False)]
    assert [gate.admit(index, "a", 0, 100.1) for index in (1, 2)] == [
        Outcome(index, "x", None, 0, 0.0, "twin") for index in (1, 2)
    ]
    assert gate.next_at == float("inf")


def test_after_a_failure_that_is_not_shared_one_of_them_is_looked_at_and_runs() -> None:
    gate = waiting_trio()
    gate.settle("a", Outcome(0, None, ConnectionError("cut"), 1), 100.1)
    assert gate.due(100.1, 9) == [(1, "a", False)]
    assert gate.admit(1, "a", 0, 100.1) is None
    assert gate.next_at == 100.0 + LONGEST_POLL
    gate.settle("a", Outcome(1, "x", None, 1), 100.2)
    assert gate.due(100.2, 9) == [(2, "a", False)]


def test_twins_of_a_leader_that_is_dropped_while_it_waits_are_looked_at() -> None:
    gate = Gate([Twins(), Retry(max_retries=1, delay=60.0)])
    gate.admit(0, "a", 0, 0.0)
    gate.admit(1, "a", 0, 0.0)
    gate.due(1e9, 1)
    gate.admit(1, "a", 0, 30.0)
    assert isinstance(gate.settle("a", Outcome(0, None, ConnectionError("cut"), 1), 30.0), float)
    assert gate.drop(0, 30.01)
    assert gate.due(30.01, 9) == [(1, "a", False)]
    assert gate.admit(1, "a", 0, 30.01) is None


def test_one_that_is_dropped_is_not_looked_at_any_more() -> None:
    gate = waiting_trio()
    assert gate.drop(1, 100.05)
    gate.settle("a", Outcome(0, "x", None, 1), 100.1)
    assert gate.waiting() == [2]
    assert gate.due(100.1, 9) == [(2, "a", False)]
    assert gate.due(1e9, 9) == []


# In batches


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_batch_does_not_wait_until_twins_would_have_asked_again(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins_module, "POLL_SECONDS", 1e6)
    monkeypatch.setattr(twins_module, "LONGEST_POLL", 1e6)
    with Runner(ParallelConfig(backend=engine, max_workers=2), policies=[Twins()]) as runner:
        outcomes = runner.map(functools.partial(work, tmp_path), ["a", "b", "a", "a", "b"])
    assert [one.unwrap() for one in outcomes] == ["A", "B", "A", "A", "B"]
    assert "twin" in {one.origin for one in outcomes}


def work(folder: Path, item: str) -> str:
    append(folder / "effects", item)
    if item == "bad":
        raise ValueError("bad")
    return item.upper()


def effects(folder: Path) -> Counter[str]:
    return Counter((folder / "effects").read_text().split())


@pytest.mark.parametrize("engine", ["serial", "thread", "process"])
@pytest.mark.parametrize("cached", ["no cache", "before", "behind"])
def test_a_batch_runs_twins_once(tmp_path: Path, engine: str, cached: str) -> None:
    items = ["a", "b", "a", "bad", "a", "bad", "c", "b", "a"] * 3
    twins, cache = Twins(), CachePolicy(MemoryCache(), task="work")
    orders: dict[str, list[Any]] = {"no cache": [twins], "before": [cache, twins], "behind": [twins, cache]}
    with Runner(ParallelConfig(backend=engine, max_workers=2), policies=orders[cached]) as runner:
        outcomes = runner.map(functools.partial(work, tmp_path), items)
    assert [one.index for one in outcomes] == list(range(len(items)))
    for item, outcome in zip(items, outcomes, strict=True):
        if item == "bad":
            assert isinstance(outcome.error, ValueError)
        else:
            assert outcome.unwrap() == item.upper()
    if cached != "no cache":
        # What comes after the last of its twins was answered runs anew without a cache, and not with one.
        assert {item: count for item, count in effects(tmp_path).items() if item != "bad"} == dict.fromkeys(
            "abc", 1
        )
    assert sum(effects(tmp_path).values()) <= len(items)
    assert twins.in_flight() == 0


def flaky(folder: Path, item: str) -> str:
    append(folder / "effects", item)
    if effects(folder)[item] < 3:
        raise ConnectionError("cut")
    return item


def test_a_leader_is_tried_again_for_all_of_its_twins(tmp_path: Path) -> None:
    policies: list[Any] = [Twins(), Retry(max_retries=5, delay=0.02)]
    with Runner(ParallelConfig(backend="thread", max_workers=4), policies=policies) as runner:
        outcomes = runner.map(functools.partial(flaky, tmp_path), ["a"] * 8)
    assert [one.unwrap() for one in outcomes] == ["a"] * 8
    assert effects(tmp_path) == {"a": 3}
    assert [one.origin for one in outcomes] == ["run"] + ["twin"] * 7


def die_once(folder: Path, item: str) -> str:
    append(folder / "effects", item)
    if effects(folder)[item] < 2:
        os._exit(3)
    return item


def test_a_worker_that_dies_takes_no_twin_along(tmp_path: Path) -> None:
    config = ParallelConfig(backend="process", max_workers=2, max_kills=2)
    with Runner(config, policies=[Twins()]) as runner:
        outcomes = runner.map(functools.partial(die_once, tmp_path), ["a"] * 4)
    assert [one.unwrap() for one in outcomes] == ["a"] * 4
    assert effects(tmp_path) == {"a": 2}


def test_a_batch_that_is_left_does_not_hold_up_the_next(tmp_path: Path) -> None:
    twins = Twins()
    with Runner(ParallelConfig(backend="thread", max_workers=2), policies=[twins]) as runner:
        stream: Iterator[Outcome[str]] = iter(
            runner.stream(functools.partial(work, tmp_path), ["a", "b", "a"] * 50)
        )
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        gc.collect()
        assert twins.in_flight() == 0
        assert [one.unwrap() for one in runner.map(functools.partial(work, tmp_path), ["a", "b"])] == [
            "A",
            "B",
        ]
