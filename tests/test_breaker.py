"""Circuit breakers: one as a state machine, one for each key, one for several processes, and with retries."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from video.errors import (
    CircuitOpen,
    ConfigError,
    DownloadFailed,
    InvalidMedia,
    ItemCancelled,
    ItemTimeout,
    RateLimited,
    StoreError,
    WorkerDied,
)
from video.outcome import Outcome
from video.policies._breaker_store import SqliteBreakerStore
from video.policies.base import Job
from video.policies.breaker import LONGEST_WAIT, BreakerPolicy, BreakerRules, CircuitBreaker, State
from video.policies.retry import Retry

CLOSED, OPEN, HALF_OPEN = State.CLOSED, State.OPEN, State.HALF_OPEN
DOWN = DownloadFailed("failed", status=503)


def failed(error: BaseException = DOWN, seconds: float = 0.0, origin: str = "run") -> Outcome[Any]:
    return Outcome(0, None, error, seconds=seconds, origin=origin)


GOOD: Outcome[Any] = Outcome(0, 1, None)


def job(key: str = "host") -> Job:
    return Job(0, 0, key=key)


def run(policy: BreakerPolicy, outcome: Outcome[Any], now: float, key: str = "host") -> bool:
    """Run an item; whether it was admitted."""
    one = job(key)
    if policy.admit(one, now) is not None:
        return False
    assert policy.settle(one, outcome, now) is None
    assert policy.name not in one.notes
    return True


def opened(now: float = 0.0, key: str = "host", **arguments: Any) -> BreakerPolicy:
    policy = BreakerPolicy(BreakerRules(recovery_timeout_seconds=10.0), **arguments)
    assert [run(policy, failed(), now, key) for _ in range(6)] == [True] * 5 + [False]
    return policy


# The state machine of one breaker

ALLOWED = {
    (CLOSED, OPEN),
    (OPEN, HALF_OPEN),
    (HALF_OPEN, CLOSED),
    (HALF_OPEN, OPEN),
    (OPEN, CLOSED),  # by `learn` and by `force` only
    *((one, State.FORCED_OPEN) for one in State),
    *((one, State.DISABLED) for one in State),
    *((one, CLOSED) for one in (State.FORCED_OPEN, State.DISABLED)),
}


class AnyCalls(RuleBasedStateMachine):
    """Calls begin, end and are given up in any order, beside a model that is as plain as can be."""

    @initialize(
        threshold=st.sampled_from([None, 1, 2, 3]),
        rate=st.sampled_from([None, 0.5, 1.0]),
        slow=st.sampled_from([None, 2.0]),
        slow_rate=st.sampled_from([0.5, 1.0]),
        minimum=st.integers(1, 4),
        probes=st.integers(1, 3),
    )
    def begin(
        self,
        threshold: int | None,
        rate: float | None,
        slow: float | None,
        slow_rate: float,
        minimum: int,
        probes: int,
    ) -> None:
        if threshold is None and rate is None and slow is None:
            threshold = 1
        self.rules = BreakerRules(
            failure_threshold=threshold,
            failure_rate=rate,
            slow_call_seconds=slow,
            slow_call_rate=slow_rate,
            window_calls=4,
            minimum_calls=minimum,
            half_open_probes=probes,
            recovery_timeout_seconds=10.0,
        )
        self.changes: list[tuple[State, State]] = []
        self.breaker = CircuitBreaker(self.rules, lambda old, new, why: self.changed(old, new, why))
        self.now = 0.0
        self.out: list[tuple[int, int]] = []  # permit, and the period of the model that it is of
        self.period = 0
        self.model(CLOSED)
        self.until = 0.0

    def changed(self, old: State, new: State, why: str) -> None:
        assert why
        self.changes.append((old, new))

    def model(self, state: State) -> None:
        self.state = state
        self.calls: list[tuple[bool, bool]] = []  # failed, slow: since the last change of state
        self.period += 1

    def probes_out(self) -> int:
        return sum(period == self.period for _, period in self.out) if self.state is HALF_OPEN else 0

    @rule(seconds=st.sampled_from([0.1, 5.0, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        if self.state is OPEN and self.now >= self.until:
            self.model(HALF_OPEN)
        free = self.probes_out() + len(self.calls) < self.rules.half_open_probes
        granted = self.state in (CLOSED, State.DISABLED) or (self.state is HALF_OPEN and free)
        permit = self.breaker.acquire(self.now)
        assert (permit is not None) == granted
        if permit is not None:
            self.out.append((permit, self.period))

    def any_call(self, data: st.DataObject) -> tuple[int, int]:
        return self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.breaker.release(self.any_call(data)[0], self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), fails=st.booleans(), seconds=st.sampled_from([0.0, 2.0]))
    def end(self, data: st.DataObject, fails: bool, seconds: float) -> None:
        permit, period = self.any_call(data)
        ends = self.breaker.failure if fails else self.breaker.success
        ends(permit, seconds, self.now)
        if period != self.period or self.state not in (CLOSED, HALF_OPEN):
            return
        rules = self.rules
        self.calls.append((fails, rules.slow_call_seconds is not None and seconds >= 2.0))
        if self.too_bad() if self.state is CLOSED else fails:
            self.open()
        elif self.state is HALF_OPEN and len(self.calls) == rules.half_open_probes:
            slow = sum(slow for _, slow in self.calls)
            if slow and slow / len(self.calls) >= rules.slow_call_rate:
                self.open()
            else:
                self.model(CLOSED)

    def too_bad(self) -> bool:
        rules, threshold, window = self.rules, self.rules.failure_threshold, self.calls[-4:]
        if threshold is not None and [fails for fails, _ in self.calls[-threshold:]] == [True] * threshold:
            return True
        if len(window) < rules.minimum_calls:
            return False
        failures, slow = (sum(one[position] for one in window) / len(window) for position in (0, 1))
        by_rate = rules.failure_rate is not None and failures >= rules.failure_rate
        return by_rate or (slow > 0 and slow >= rules.slow_call_rate)

    def open(self) -> None:
        self.model(OPEN)
        self.until = self.now + 10.0

    @rule(state=st.sampled_from([CLOSED, State.FORCED_OPEN, State.DISABLED]))
    def force(self, state: State) -> None:
        self.breaker.force(state, self.now)
        self.model(state)

    @rule(state=st.sampled_from([OPEN, HALF_OPEN, "no such state"]))
    def no_other_state_is_forced(self, state: Any) -> None:
        with pytest.raises(ConfigError):
            self.breaker.force(state, self.now)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.in_flight == len(self.out)
        assert self.probes_out() <= self.rules.half_open_probes
        assert set(self.changes) <= ALLOWED
        if self.changes:
            assert self.changes[-1][1] is self.state
        for before, after in itertools.pairwise(self.changes):
            assert before[1] is after[0]
        if self.state is OPEN:
            assert self.breaker.due == self.until
            assert self.breaker.since is not None
        if self.state in (CLOSED, State.DISABLED):
            assert self.breaker.since is None

    def teardown(self) -> None:
        """Whatever has happened: once all calls are over and time has passed, it closes again."""
        if not hasattr(self, "breaker"):
            return
        for permit, _ in self.out:
            self.breaker.release(permit, self.now)
        assert self.breaker.in_flight == 0
        if self.state is State.FORCED_OPEN:
            return
        for _ in range(10):  # slow calls of before may open it once more
            if self.breaker.state is OPEN:
                self.now += 10.0
            permit = self.breaker.acquire(self.now)
            assert permit is not None, "a permit has leaked"
            self.breaker.success(permit, 0.0, self.now)
        assert self.breaker.state in (CLOSED, State.DISABLED)


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0]), st.booleans()), max_size=60),
    st.sampled_from([1.0, 10.0]),
)
def test_a_window_of_time_holds_the_last_ten_tenths(steps: list[tuple[float, bool]], window: float) -> None:
    rules = BreakerRules(failure_threshold=None, failure_rate=0.5, window_seconds=window, minimum_calls=4)
    breaker, now, calls = CircuitBreaker(rules), 0.0, []
    for seconds, fails in steps:
        now += seconds
        permit = breaker.acquire(now)
        assert permit is not None
        (breaker.failure if fails else breaker.success)(permit, 0.0, now)
        calls.append((int(now / (window / 10)), fails))
        held = [fails for tenth, fails in calls if tenth > calls[-1][0] - 10]
        if len(held) >= 4 and sum(held) / len(held) >= 0.5:
            assert breaker.state is OPEN
            return
        assert breaker.state is CLOSED


def test_calls_of_before_a_change_of_state_say_nothing_about_what_holds_now() -> None:
    breaker = CircuitBreaker(BreakerRules(failure_threshold=1, recovery_timeout_seconds=10.0))
    late, later, bad = breaker.acquire(0.0), breaker.acquire(0.0), breaker.acquire(0.0)
    assert late is not None and later is not None and bad is not None  # noqa: PT018
    breaker.failure(bad, 0.0, 0.0)
    probe = breaker.acquire(10.0)
    assert probe is not None
    breaker.success(late, 0.0, 11.0)
    assert breaker.state is HALF_OPEN
    assert breaker.acquire(11.0) is None  # nor does it take the probe's place
    breaker.success(probe, 0.0, 12.0)
    assert breaker.state is CLOSED
    breaker.failure(later, 0.0, 13.0)
    assert breaker.state is CLOSED
    assert breaker.in_flight == 0


# A breaker for each key


def test_one_dead_host_does_not_stop_the_others() -> None:
    policy = opened(key="dead")
    assert all(run(policy, GOOD, 1.0, "alive") for _ in range(100))
    assert not run(policy, GOOD, 1.0, "dead")
    assert policy.states() == {"dead": OPEN, "alive": CLOSED}


def test_items_without_a_key_pass() -> None:
    policy = opened(key="dead")
    assert all(run(policy, failed(), 1.0, "") for _ in range(100))
    assert "" not in policy.states()


@pytest.mark.parametrize(
    ("outcome", "means"),
    [
        (GOOD, "well"),
        (failed(), "failure"),
        (failed(ItemTimeout("")), "failure"),
        (failed(ConnectionResetError("cut")), "failure"),
        (failed(DownloadFailed("", status=404)), "well"),
        (failed(DownloadFailed("", status=401)), "well"),
        (failed(DownloadFailed("", status=429)), "nothing"),
        (failed(RateLimited("", retry_after=3.0)), "nothing"),
        (failed(ItemCancelled("")), "nothing"),
        (failed(WorkerDied("")), "nothing"),
        (failed(InvalidMedia("")), "nothing"),
        (failed(OSError(28, "disk full")), "nothing"),
        (failed(origin="rate"), "nothing"),
        (Outcome(0, 1, None, origin="cache"), "nothing"),
    ],
)
def test_what_an_outcome_says_about_a_host(outcome: Outcome[Any], means: str) -> None:
    policy = BreakerPolicy(BreakerRules(failure_threshold=2, recovery_timeout_seconds=10.0))
    run(policy, failed(), 0.0)
    run(policy, outcome, 0.0)
    run(policy, failed(), 0.0)
    assert policy.states()["host"] is (CLOSED if means == "well" else OPEN)
    policy = opened()
    assert run(policy, outcome, 10.0)
    assert policy.states()["host"] is {"well": CLOSED, "failure": OPEN, "nothing": HALF_OPEN}[means]
    assert run(policy, GOOD, 10.0) == (means != "failure")


def test_which_errors_are_failures_may_be_said() -> None:
    policy = BreakerPolicy(BreakerRules(failure_threshold=1), failure_on=KeyError)
    run(policy, failed(), 0.0)
    assert policy.states()["host"] is CLOSED
    run(policy, failed(KeyError("x")), 0.0)
    assert policy.states()["host"] is OPEN


def test_slow_calls_open_it_though_they_go_well() -> None:
    policy = BreakerPolicy(BreakerRules(slow_call_seconds=2.0, slow_call_rate=0.5, minimum_calls=4))
    for seconds in (0.1, 2.0, 0.1):
        run(policy, Outcome(0, 1, None, seconds=seconds), 0.0)
    assert policy.states()["host"] is CLOSED
    run(policy, Outcome(0, 1, None, seconds=3.0), 0.0)
    assert policy.states()["host"] is OPEN


@pytest.mark.parametrize("how", ["cancelled", "withdrawn"])
def test_a_probe_that_does_not_take_place_gives_its_permit_back(how: str) -> None:
    policy, probe = opened(), job()
    assert policy.admit(probe, 10.0) is None
    assert isinstance(policy.admit(job(), 10.0), float)
    if how == "cancelled":
        policy.settle(probe, failed(ItemCancelled("")), 11.0)
    else:
        policy.withdraw(probe, 11.0)
        policy.withdraw(probe, 11.0)  # once is enough
    assert policy.admit(job(), 11.0) is None
    assert isinstance(policy.admit(job(), 11.0), float)


def test_fifty_threads_get_one_probe() -> None:
    policy, barrier, verdicts = opened(), threading.Barrier(50), []

    def ask() -> None:
        barrier.wait(30)
        verdicts.append(policy.admit(job(), 10.0))

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert verdicts.count(None) == 1
    assert len(verdicts) == 50
    assert policy.counts()["probes"] == 1


class AnyJobs(RuleBasedStateMachine):
    """Items of several keys through one policy, each settled, withdrawn or put off, in any order."""

    @initialize(on_open=st.sampled_from(["wait", "reject"]), patience=st.sampled_from([0.0, 25.0, None]))
    def begin(self, on_open: str, patience: float | None) -> None:
        rules = BreakerRules(failure_threshold=2, recovery_timeout_seconds=10.0, half_open_probes=2)
        self.told: list[tuple[str, State, State, str]] = []
        self.policy = BreakerPolicy(
            rules,
            on_open=on_open,
            patience_seconds=patience,
            max_keys=3,
            listeners=[lambda *change: self.told.append(change)],
        )
        self.now = 0.0
        self.running: list[Job] = []
        self.most_in_use = 0

    @rule(key=st.sampled_from(["a", "b", "c", "d", "e", ""]))
    def admit(self, key: str) -> None:
        one = job(key)
        verdict = self.policy.admit(one, self.now)
        assert (verdict is None and key != "") == ("breaker" in one.notes)
        if verdict is None:
            self.running.append(one)
        elif isinstance(verdict, Outcome):
            assert isinstance(verdict.error, CircuitOpen)
            assert verdict.attempts == 0
        else:
            assert 0 < verdict <= LONGEST_WAIT
            assert self.policy.on_open == "wait"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["well", "badly", "limited", "withdrawn"]))
    def end(self, data: st.DataObject, how: str) -> None:
        one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if how == "withdrawn":
            self.policy.withdraw(one, self.now)
        else:
            outcome = {"well": GOOD, "badly": failed(), "limited": failed(RateLimited(""))}[how]
            assert self.policy.settle(one, outcome, self.now) is None
        assert "breaker" not in one.notes

    @rule(key=st.sampled_from("abcde"))
    def fail_unseen(self, key: str) -> None:
        """Of a chunk that passed it by."""
        if self.policy.idle(self.now):
            self.policy.passed(3, self.now)
            self.policy.settle(job(key), failed(), self.now)
            assert not self.policy.idle(self.now)

    @rule(seconds=st.sampled_from([1.0, 10.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def laws(self) -> None:
        out = Counter(one.key for one in self.running if one.key)
        breakers = self.policy._breakers
        assert {key: one.in_flight for key, one in breakers.items() if one.in_flight} == dict(out)
        self.most_in_use = max(self.most_in_use, len(out))
        assert len(breakers) <= max(self.policy.max_keys, self.most_in_use + 1)
        if self.policy.idle(self.now):
            assert set(self.policy.states().values()) <= {CLOSED}
        state = dict.fromkeys("abcde", CLOSED)
        for key, old, new, why in self.told:
            assert why
            assert old is state[key]
            state[key] = new
        assert {key: one for key, one in state.items() if one is not CLOSED} == {
            key: one for key, one in self.policy.states().items() if one is not CLOSED
        }

    def teardown(self) -> None:
        if not hasattr(self, "policy"):
            return
        for one in self.running:
            self.policy.withdraw(one, self.now)
        self.now += 10.0
        for key in "abcde":
            assert [run(self.policy, GOOD, self.now, key) for _ in range(3)] == [True] * 3
            assert self.policy.states()[key] is CLOSED
        assert self.policy.idle(self.now)


TestAnyJobs = AnyJobs.TestCase
TestAnyJobs.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# What becomes of an item while a circuit is open


def test_items_wait_until_the_recovery_time_is_over() -> None:
    policy = opened()
    assert policy.admit(job(), 0.0) == LONGEST_WAIT
    assert policy.admit(job(), 7.0) == 3.0
    assert run(policy, GOOD, 10.0)
    assert run(policy, GOOD, 10.0)


def test_waiting_ends_with_patience_and_probes_go_on() -> None:
    policy, now, probes, rejected = opened(patience_seconds=35.0), 0.0, 0, []
    while now < 60.0:
        one = job()
        verdict = policy.admit(one, now)
        if isinstance(verdict, Outcome):
            rejected.append(now)
            assert verdict.origin == "breaker"
            assert verdict.attempts == 0
            assert isinstance(verdict.error, CircuitOpen)
            assert verdict.error.retry_after is not None
            assert 0 < verdict.error.retry_after <= 10.0
        elif verdict is None:
            probes += 1
            policy.settle(one, failed(), now)
        now += 0.5
    assert probes == 5  # at 10, 20, 30, 40, 50
    assert rejected[0] == 40.5  # the first probe that fails after 35 s does so at 40
    assert len(rejected) == 39 - 1


def test_an_item_that_has_run_lets_others_probe_first() -> None:
    policy, tried = opened(), job()
    tried.attempts = 2
    assert policy.admit(tried, 10.0) == 1.0
    assert policy.admit(job(), 10.0) is None
    alone = opened()
    assert [alone.admit(tried, now) for now in (10.0, 11.0, 12.0)] == [1.0, 1.0, None]
    unasked = job()
    unasked.attempts = 2
    assert opened(on_open="reject").admit(unasked, 10.0) is None  # nobody waits there


def test_nobody_is_turned_away_while_a_probe_is_out() -> None:
    policy, probe = opened(patience_seconds=15.0), job()
    assert policy.admit(probe, 10.0) is None
    assert isinstance(policy.admit(job(), 1000.0), float)
    policy.settle(probe, failed(), 1000.0)
    assert isinstance(policy.admit(job(), 1000.0), Outcome)


def test_reject_ends_an_item_at_once_and_says_when_to_come_again() -> None:
    one = job()
    one.attempts = 2
    verdict = opened(on_open="reject").admit(one, 4.0)
    assert isinstance(verdict, Outcome)
    assert verdict.attempts == 2
    assert isinstance(verdict.error, CircuitOpen)
    assert verdict.error.retry_after == 6.0
    assert str(verdict.error).startswith("host: was not tried, since")
    assert str(verdict.error).endswith("It may be tried again in 6 s.")


def test_a_circuit_is_held_open_and_let_go_by_hand() -> None:
    policy = BreakerPolicy(on_open="reject")
    policy.force("host", State.FORCED_OPEN, 0.0)
    verdict = policy.admit(job(), 1e6)
    assert isinstance(verdict, Outcome)
    assert isinstance(verdict.error, CircuitOpen)
    assert verdict.error.retry_after is None
    assert not policy.idle(1e7)
    policy.force("host", CLOSED, 1e7)
    assert run(policy, GOOD, 1e7)


def test_items_wait_for_a_circuit_that_is_held_open_until_patience_ends() -> None:
    policy = BreakerPolicy(patience_seconds=7.0)
    policy.force("host", State.FORCED_OPEN, 100.0)
    assert policy.admit(job(), 100.0) == LONGEST_WAIT
    assert policy.admit(job(), 106.0) == LONGEST_WAIT
    assert isinstance(policy.admit(job(), 107.0), Outcome)


def test_a_breaker_that_is_switched_off_lets_everything_through() -> None:
    policy = opened()
    policy.force("host", State.DISABLED, 1.0)
    assert all(run(policy, failed(), 1.0) for _ in range(100))
    assert policy.idle(1.0)


# Idle


def test_it_is_idle_until_something_fails_and_again_once_that_is_made_up_for() -> None:
    policy = BreakerPolicy()
    assert policy.idle(0.0)
    run(policy, GOOD, 0.0)
    assert policy.idle(0.0)
    run(policy, failed(), 0.0)
    assert not policy.idle(0.0)
    run(policy, GOOD, 0.0)
    assert policy.idle(0.0)


def test_failures_whose_neighbours_went_by_unseen_open_nothing_by_themselves() -> None:
    """A chunk of an idle policy: 90 items went well, 10 failed, all of one host."""
    policy = BreakerPolicy()
    policy.passed(90, 0.0)
    for _ in range(10):
        policy.settle(job(), failed(), 0.0)
    assert policy.states()["host"] is CLOSED
    assert not policy.idle(0.0)
    assert [run(policy, failed(), 0.0) for _ in range(5)] == [True] * 4 + [False]


def test_it_is_never_idle_where_shares_count() -> None:
    assert not BreakerPolicy(BreakerRules(failure_rate=0.5)).idle(0.0)


def test_trouble_with_a_host_that_nobody_uses_any_more_is_forgotten() -> None:
    told: list[Any] = []
    policy = opened(listeners=[lambda *change: told.append(change[:3])])
    assert not policy.idle(99.0)
    assert policy.idle(100.0)
    assert told[-1] == ("host", OPEN, CLOSED)
    running = job()
    policy.admit(running, 100.0)
    run(policy, failed(), 100.0)
    assert not policy.idle(1000.0)  # it is in use


def test_a_million_hosts_take_the_room_of_a_few() -> None:
    policy = BreakerPolicy(max_keys=100)
    bad = [f"bad{n}" for n in range(20)]
    for key in bad:
        for _ in range(5):
            run(policy, failed(), 0.0, key)
    for n in range(10_000):
        run(policy, GOOD, 0.0, f"host{n}")
        assert len(policy.states()) <= 100
    assert all(policy.states()[key] is OPEN for key in bad)  # healthy ones go first
    for n in range(10_000):
        run(policy, failed(), 0.0, f"worse{n}")
    assert len(policy.states()) <= 100


# Listeners


def test_listeners_hear_every_change_with_its_reason_and_cannot_break_anything() -> None:
    heard: list[str] = []

    def bad(*change: object) -> None:
        raise RuntimeError("listener")

    def curious(key: str, old: State, new: State, why: str) -> None:
        assert policy.states()[key] is new  # it may ask back
        heard.append(f"{key}: {old} -> {new}: {why}")

    policy = BreakerPolicy(BreakerRules(recovery_timeout_seconds=10.0))
    policy.listeners += [bad, curious]
    for _ in range(5):
        run(policy, failed(), 0.0)
    run(policy, failed(), 10.0)
    run(policy, GOOD, 20.0)
    assert heard[0] == "host: closed -> open: 5 calls in a row failed"
    assert len(heard) == 3 or "half_open" in heard[1]


def test_changes_are_told_once_and_in_order_by_many_threads() -> None:
    told: list[tuple[State, State]] = []
    rules = BreakerRules(failure_threshold=1, recovery_timeout_seconds=1e-6)
    policy = BreakerPolicy(rules, listeners=[lambda key, old, new, why: told.append((old, new))])

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for n in range(500):
            run(policy, rng.choice([GOOD, failed()]), float(n))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    policy.admit(job(""), 0.0)
    policy._tell()
    assert len(told) > 100
    assert told[0][0] is CLOSED
    assert all(before[1] is after[0] for before, after in itertools.pairwise(told))
    assert told[-1][1] is policy.states()["host"]


# Several processes


class Wall:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def sharing(path: Path, wall: Callable[[], float], count: int = 2) -> list[BreakerPolicy]:
    rules = BreakerRules(recovery_timeout_seconds=10.0)
    return [BreakerPolicy(rules, store=SqliteBreakerStore(path, wall=wall)) for _ in range(count)]


def test_what_one_finds_out_all_know_and_one_probes_for_all(tmp_path: Path) -> None:
    wall = Wall()
    one, two = sharing(tmp_path / "breakers.db", wall)
    for _ in range(5):
        run(one, failed(), 0.0)
    # Their own clocks need not agree.
    assert not two.idle(500.0)
    assert isinstance(two.admit(job(), 500.0), float)
    wall.now += 10.0
    probe = job()
    assert two.admit(probe, 510.0) is None
    assert isinstance(one.admit(job(), 10.0), float)
    two.settle(probe, GOOD, 511.0)
    wall.now += 2.0
    assert run(one, GOOD, 12.0)
    assert two.idle(512.0)
    assert one.idle(12.0)


def test_a_probe_that_fails_holds_off_all(tmp_path: Path) -> None:
    wall = Wall()
    one, two = sharing(tmp_path / "breakers.db", wall)
    for _ in range(5):
        run(one, failed(), 0.0)
    wall.now += 10.0
    assert run(two, failed(), 10.0)
    wall.now += 9.0
    assert not run(one, GOOD, 19.0)
    wall.now += 1.0
    assert run(one, GOOD, 21.0)


def test_the_probe_of_a_process_that_died_is_taken_up_by_another(tmp_path: Path) -> None:
    wall = Wall()
    one, two = sharing(tmp_path / "breakers.db", wall)
    for _ in range(5):
        run(one, failed(), 0.0)
    wall.now += 10.0
    assert one.admit(job(), 10.0) is None  # and is never heard of again
    assert not run(two, GOOD, 10.0)
    wall.now += 10.0
    assert run(two, GOOD, 21.0)


def test_nobody_is_turned_away_while_another_process_probes(tmp_path: Path) -> None:
    wall = Wall()
    one, two = sharing(tmp_path / "breakers.db", wall)
    for _ in range(5):
        run(one, failed(), 0.0)
    for now in (11.0, 22.0, 33.0, 44.0):
        wall.now += 11.0
        assert run(one, failed(), now)
    wall.now += 11.0
    probe = job()
    assert one.admit(probe, 55.0) is None
    assert isinstance(two.admit(job(), 55.0), float)
    one.settle(probe, failed(), 56.0)
    wall.now += 2.0
    assert isinstance(two.admit(job(), 57.0), Outcome)


def test_closing_by_hand_closes_for_all(tmp_path: Path) -> None:
    one, two = sharing(tmp_path / "breakers.db", Wall())
    for _ in range(5):
        run(one, failed(), 0.0)
    assert not run(two, GOOD, 0.0)
    two.force("host", CLOSED, 0.0)
    assert run(one, GOOD, 2.0)


CHILD = """
import os, signal, sys, time
from video.outcome import Outcome
from video.policies._breaker_store import SqliteBreakerStore
from video.policies.base import Job
from video.policies.breaker import BreakerPolicy, BreakerRules
rules = BreakerRules(failure_threshold=1, recovery_timeout_seconds=float(sys.argv[3]))
policy = BreakerPolicy(rules, store=SqliteBreakerStore(sys.argv[1]))
job = Job(0, 0, key="host")
if sys.argv[2] == "fail":
    policy.admit(job, time.monotonic())
    policy.settle(job, Outcome(0, None, ConnectionError("cut")), time.monotonic())
    os.kill(os.getpid(), signal.SIGKILL)
print(policy.admit(job, time.monotonic()) is None)
"""


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answers(children: Iterable[subprocess.Popen[str]]) -> list[str]:
    return [one.communicate(timeout=60)[0].strip() for one in children]


def test_what_a_process_found_out_outlives_its_kill(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "breakers.db"
    killed = child(path, "fail", 600)
    assert killed.wait(60) == -signal.SIGKILL
    assert killed.stdout is not None
    killed.stdout.close()
    assert answers([child(path, "ask", 600)]) == ["False"]


def test_of_several_processes_one_gets_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "breakers.db"
    SqliteBreakerStore(path).open("host", 0.0, 5.0)
    assert sorted(answers([child(path, "ask", 600) for _ in range(4)])) == ["False"] * 3 + ["True"]


def test_a_probe_is_claimed_once_and_not_before_its_time(tmp_path: Path) -> None:
    wall = Wall()
    one, two = (SqliteBreakerStore(tmp_path / "breakers.db", wall=wall) for _ in range(2))
    one.open("host", 10.0, 0.0)
    assert not two.claim("host", 10.0)
    wall.now += 10.0
    assert two.claim("host", 10.0)
    assert not one.claim("host", 10.0)
    wall.now += 10.0
    assert one.claim("host", 10.0)
    assert not one.claim("another", 10.0)


def test_files_of_a_store_are_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "breakers.db"
    old = os.umask(0)
    try:
        SqliteBreakerStore(path).open("host", 1.0, 0.0)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    assert modes["breakers.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_a_file_that_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, and long enough to be seen as none" * 10)
    with pytest.raises(StoreError, match=r"notes\.txt: .*store cannot be used"):
        SqliteBreakerStore(tmp_path / "notes.txt")


def test_foreign_rows_in_a_store_are_passed_over(tmp_path: Path) -> None:
    store = SqliteBreakerStore(tmp_path / "breakers.db")
    with sqlite3.connect(store.path) as file:
        file.execute("INSERT INTO circuits VALUES (?, ?, ?, ?)", ("odd", "soon", b"x", 1))
    file.close()
    store.open("host", 3.0, 0.0)
    assert set(store.read()) == {"host"}


def test_a_clock_that_was_put_back_bars_nobody_for_ever(tmp_path: Path) -> None:
    wall = Wall()
    one, two = sharing(tmp_path / "breakers.db", wall)
    for _ in range(5):
        run(one, failed(), 0.0)
    wall.now -= 3600.0
    probe = job()
    assert two.admit(probe, 0.0) is None
    assert isinstance(one.admit(job(), 1.0), float)
    two.settle(probe, GOOD, 1.0)
    assert run(one, GOOD, 3.0)


def test_a_store_that_breaks_down_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self) -> None:
            self.asked = 0

        def fail(self, *_: object) -> Any:
            self.asked += 1
            raise RuntimeError("gone")

        read = open = claim = close = fail

    store = Broken()
    policy = opened(store=store)
    assert run(policy, GOOD, 10.0)
    assert policy.idle(10.0)
    assert store.asked == 1  # it is left alone for a while
    policy.idle(100.0)
    assert store.asked == 2
    assert "go on without it" in caplog.text


# Together with retries


class Server:
    """Answers in virtual time. It is down for a while, and cuts and stalls now and then."""

    def __init__(self, down: tuple[float, float], seed: int) -> None:
        self.down = down
        self.rng = random.Random(seed)
        self.asked: Counter[str] = Counter()

    def answer(self, one: Job, now: float) -> Outcome[Any]:
        self.asked[one.key] += 1
        error: BaseException | None = None
        chance = self.rng.random()
        if one.key == "dead" or self.down[0] <= now < self.down[1]:
            error = DownloadFailed("failed", status=503)
        elif chance < 0.01:
            error = ConnectionResetError("cut")
        elif chance < 0.02:
            error = ItemTimeout("stalled")
        elif chance < 0.03:
            error = RateLimited("", retry_after=3.0)
        elif chance < 0.04:
            error = DownloadFailed("", status=429)
        seconds = 5.0 if isinstance(error, ItemTimeout) else 0.1
        return Outcome(one.index, None if error else one.index, error, one.attempts, seconds)


def batch(row: list[Any], jobs: list[Job], server: Server, width: int) -> dict[int, Outcome[Any]]:
    """What a runner does with a row of policies, in virtual time."""
    outcomes: dict[int, Outcome[Any]] = {}
    waiting = [(0.0, one.index) for one in jobs]
    running: list[tuple[float, int, Outcome[Any]]] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < width and waiting[0][0] <= now:
            one = jobs[heapq.heappop(waiting)[1]]
            verdict, passed = None, []
            for policy in row:
                verdict = policy.admit(one, now)
                if verdict is not None:
                    break
                passed.append(policy)
            if verdict is None:
                one.attempts += 1
                outcome = server.answer(one, now)
                heapq.heappush(running, (now + outcome.seconds, one.index, outcome))
            elif isinstance(verdict, Outcome):
                close(passed, one, verdict, now, waiting, outcomes)
            else:
                for policy in passed:
                    policy.withdraw(one, now)
                heapq.heappush(waiting, (now + verdict, one.index))
        due = [queue[0][0] for queue in (waiting[: len(running) < width], running[:1]) if queue]
        now = max(now, min(due)) if due else now
        while running and running[0][0] <= now:
            _, index, outcome = heapq.heappop(running)
            close(row, jobs[index], outcome, now, waiting, outcomes)
    return outcomes


def close(
    row: list[Any],
    one: Job,
    outcome: Outcome[Any],
    now: float,
    waiting: list[tuple[float, int]],
    outcomes: dict[int, Outcome[Any]],
) -> None:
    again = None
    for policy in reversed(row):
        verdict = policy.settle(one, outcome, now)
        again = verdict if isinstance(verdict, float) else again
    if again is not None:
        heapq.heappush(waiting, (now + again, one.index))
    else:
        assert one.index not in outcomes
        outcomes[one.index] = outcome


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_comes_through_an_outage_with_a_tenth_more_requests_at_most(seed: int) -> None:
    server = Server((4.0, 40.0), seed)
    row = [Retry(seed=seed), BreakerPolicy(BreakerRules(recovery_timeout_seconds=10.0))]
    jobs = [Job(index, index, key="host") for index in range(1000)]
    outcomes = batch(row, jobs, server, width=8)
    assert len(outcomes) == 1000
    assert all(outcome.ok for outcome in outcomes.values())
    assert server.asked["host"] <= 1100


def test_a_batch_with_a_dead_host_ends_and_the_other_hosts_lose_nothing() -> None:
    server = Server((0.0, 0.0), 1)
    row = [Retry(seed=1), BreakerPolicy(BreakerRules(recovery_timeout_seconds=10.0))]
    jobs = [Job(index, index, key="dead" if index % 4 == 0 else "host") for index in range(1000)]
    outcomes = batch(row, jobs, server, width=8)
    assert all(outcomes[index].ok for index in range(1000) if index % 4)
    errors = [outcomes[index].error for index in range(0, 1000, 4)]
    assert sum(isinstance(error, CircuitOpen) for error in errors) > 240
    assert all(error is not None for error in errors)
    assert server.asked["dead"] <= 8 + 6  # those that ran at first, and a probe each 10 s for 60 s
    assert all(outcomes[index].attempts <= 4 for index in range(1000))


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failure_threshold", 0),
        ("failure_threshold", 2.5),
        ("recovery_timeout_seconds", 0),
        ("recovery_timeout_seconds", float("inf")),
        ("half_open_probes", 0),
        ("failure_rate", 0),
        ("failure_rate", 1.1),
        ("slow_call_seconds", -1),
        ("slow_call_rate", 2),
        ("window_calls", True),
        ("window_seconds", "10"),
        ("minimum_calls", 101),
    ],
)
def test_a_wrong_rule_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        BreakerRules(**{name: value})


def test_rules_that_can_open_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="failure_threshold, failure_rate and slow_call_seconds are None"):
        BreakerRules(failure_threshold=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on_open", "explode"),
        ("patience_seconds", -1),
        ("max_keys", 0),
        ("failure_on", "x"),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*It takes"):
        BreakerPolicy(**{name: value})
