"""How errors are classed, and which of them have an item run again, how much later and how often."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import threading
from collections.abc import Mapping
from datetime import timedelta
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video import errors
from video.errors import CircuitOpen, ConfigError, DownloadFailed, ItemCancelled, RateLimited
from video.outcome import Outcome
from video.policies.base import Job
from video.policies.faults import Fault, classify, retry_after, status
from video.policies.retry import Retry, RetryBudget

NOW = 1_800_000_000.0
unhurried = settings(deadline=None)


class Foreign(Exception):
    """An error of another package, with whatever attributes it has."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("foreign")
        self.__dict__.update(attributes)


class Response:
    def __init__(self, status_code: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status_code
        self.headers = headers


class Nasty(Exception):
    """It raises wherever it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def failed(error: BaseException, seconds: float = 0.0) -> Outcome[Any]:
    return Outcome(0, None, error, seconds=seconds)


GOOD: Outcome[Any] = Outcome(0, 1, None)
CUT = ConnectionResetError(errno.ECONNRESET, "cut")


def always(fraction: float, policy: Retry) -> Retry:
    """With a jitter that always falls on this fraction of its range."""
    policy._random.uniform = lambda low, high: low + fraction * (high - low)  # type: ignore[method-assign]
    return policy


# Classes

CLASSED = [
    (DownloadFailed("broke off"), Fault.TRANSIENT),
    (DownloadFailed("", status=503), Fault.TRANSIENT),
    (DownloadFailed("", status=404), Fault.INPUT),
    (DownloadFailed("", status=410), Fault.INPUT),
    (DownloadFailed("", status=401), Fault.ACCOUNT),
    (DownloadFailed("", status=402), Fault.ACCOUNT),
    (DownloadFailed("", status=429), Fault.LIMITED),
    (errors.SourceError("is being downloaded by another job"), Fault.TRANSIENT),
    (errors.SourceNotFound(""), Fault.INPUT),
    (errors.InvalidMedia(""), Fault.INPUT),
    (errors.UnsupportedMedia(""), Fault.INPUT),
    (errors.NotPicklable(""), Fault.INPUT),
    (errors.ItemTimeout(""), Fault.TRANSIENT),
    (errors.ItemCancelled(""), Fault.STOP),
    (errors.WorkerDied("", exitcode=-9), Fault.STOP),
    (errors.WorkerOutOfMemory(""), Fault.STOP),
    (errors.Quarantined("", kills=2), Fault.STOP),
    (errors.ConfigError(""), Fault.STOP),
    (errors.MissingDependency(""), Fault.STOP),
    (errors.BackendUnavailable(""), Fault.STOP),
    (errors.OutputError("the disk is full"), Fault.STOP),
    (errors.StoreError(""), Fault.STOP),
    (errors.CircuitOpen("", retry_after=3.0), Fault.STOP),
    (errors.RateLimited(""), Fault.LIMITED),
    (errors.RemoteError("", kind="KeyError"), Fault.INPUT),
    (errors.RemoteError("", kind="ConnectTimeout"), Fault.TRANSIENT),
    (errors.RemoteError("", kind="print"), Fault.TRANSIENT),
    (OSError(errno.ENOSPC, "full"), Fault.STOP),
    (OSError(errno.EDQUOT, "quota"), Fault.STOP),
    (PermissionError(errno.EACCES, "no"), Fault.ACCOUNT),
    (FileNotFoundError(errno.ENOENT, "no"), Fault.INPUT),
    (OSError(errno.EMFILE, "too many files"), Fault.TRANSIENT),
    (CUT, Fault.TRANSIENT),
    (OSError("without a number"), Fault.TRANSIENT),
    (PermissionError("without a number"), Fault.ACCOUNT),
    (FileNotFoundError("without a number"), Fault.INPUT),
    (IsADirectoryError("without a number"), Fault.INPUT),
    (ConnectionError("without a number"), Fault.TRANSIENT),
    (errors.SourceError("may not be read", fault="account"), Fault.ACCOUNT),
    (errors.SourceError("is a folder", fault="input"), Fault.INPUT),
    (TimeoutError(), Fault.TRANSIENT),
    (socket.gaierror(socket.EAI_AGAIN, "later"), Fault.TRANSIENT),
    (ssl.SSLError(1, "its numbers are its own: 1 is EPERM elsewhere"), Fault.TRANSIENT),
    (ssl.SSLCertVerificationError(1, "bad certificate"), Fault.INPUT),
    (MemoryError(), Fault.STOP),
    (ValueError(), Fault.INPUT),
    (KeyError(), Fault.INPUT),
    (TypeError(), Fault.INPUT),
    (RuntimeError("who knows"), Fault.TRANSIENT),
    (EOFError(), Fault.TRANSIENT),
    (KeyboardInterrupt(), Fault.STOP),
    (SystemExit(1), Fault.STOP),
    (asyncio.CancelledError(), Fault.STOP),
    (Foreign(status_code=500), Fault.TRANSIENT),
    (Foreign(status=HTTPStatus.TOO_MANY_REQUESTS), Fault.LIMITED),
    (Foreign(status="502"), Fault.TRANSIENT),
    (Foreign(status=501), Fault.INPUT),
    (Foreign(status=408), Fault.TRANSIENT),
    (Foreign(response=Response(403)), Fault.ACCOUNT),
    (Foreign(response=Response(403, {"Retry-After": "60"})), Fault.LIMITED),
    (Foreign(response=Response(522)), Fault.TRANSIENT),
    (Foreign(status=200), Fault.TRANSIENT),
    (Foreign(status="exit status 3"), Fault.TRANSIENT),
]


@pytest.mark.parametrize(("error", "fault"), CLASSED, ids=lambda one: str(getattr(one, "args", one))[:40])
def test_an_error_is_classed_by_who_can_put_it_right(error: BaseException, fault: Fault) -> None:
    assert classify(error) is fault


def test_an_error_that_raises_when_it_is_looked_at_is_of_an_unknown_kind() -> None:
    assert classify(Nasty()) is Fault.TRANSIENT
    assert retry_after(Nasty(), NOW) is None


def test_what_an_error_says_of_itself_counts_first() -> None:
    error = DownloadFailed("is a web page, not media", status=503)
    error.fault = "input"  # type: ignore[attr-defined]
    assert classify(error) is Fault.INPUT
    error.fault = "no such word"  # type: ignore[attr-defined]
    assert classify(error) is Fault.TRANSIENT


@unhurried
@given(
    st.dictionaries(
        st.sampled_from(["status", "status_code", "response", "headers", "retry_after", "fault"]),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())),
    ),
    st.one_of(st.text(), st.integers(), st.floats()),
)
def test_no_attribute_of_a_foreign_error_can_do_harm(attributes: dict[str, Any], header: Any) -> None:
    for error in (Foreign(**attributes), Foreign(response=Response(503, {"Retry-After": header}))):
        assert classify(error) in Fault
        assert status(error) is None or 300 <= status(error) <= 599  # type: ignore[operator]
        told = retry_after(error, NOW)
        assert told is None or 0 <= told < float("inf")


# Retry-After


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RateLimited("", retry_after=2.5), 2.5),
        (RateLimited(""), None),
        (Foreign(retry_after=timedelta(minutes=1)), 60.0),
        (Foreign(retry_after="7"), 7.0),
        (Foreign(retry_after=-3), 0.0),
        (Foreign(retry_after=float("nan")), None),
        (Foreign(retry_after=10**400), None),
        (Foreign(retry_after=True), None),
        (Foreign(headers={"retry-after": "4"}), 4.0),
        (Foreign(response=Response(429, {"Retry-After": "120"})), 120.0),
        (Foreign(response=Response(503, {"Retry-After": formatdate(NOW + 90, usegmt=True)})), 90.0),
        (Foreign(response=Response(503, {"Retry-After": formatdate(NOW - 90, usegmt=True)})), 0.0),
        (Foreign(response=Response(503, {"Retry-After": "soon"})), None),
        (Foreign(response=Response(503)), None),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_a_date(error: BaseException, told: float | None) -> None:
    assert retry_after(error, NOW) == told


def test_retry_after_is_never_undercut_and_jitter_is_added_to_it() -> None:
    policy = always(1.0, Retry(delay=2.0))
    assert policy.settle(Job(0, 0), failed(RateLimited("", retry_after=30.0)), 0.0) == 32.0
    policy = always(0.0, Retry(delay=2.0))
    assert policy.settle(Job(0, 0), failed(RateLimited("", retry_after=30.0)), 0.0) == 30.0


def test_a_date_is_compared_with_the_clock_on_the_wall() -> None:
    policy = always(0.0, Retry(wall=lambda: NOW))
    late = Foreign(response=Response(503, {"Retry-After": formatdate(NOW + 90, usegmt=True)}))
    assert policy.settle(Job(0, 0), failed(late), 5.0) == 90.0


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    policy = Retry(longest_retry_after=100.0)
    assert policy.settle(Job(0, 0), failed(RateLimited("", retry_after=101.0)), 0.0) is None
    assert policy.counts()["told_too_long"] == 1


# Waits


@unhurried
@given(st.integers(0, 8), st.floats(0, 100), st.floats(0, 100), st.booleans(), st.integers(0, 1000))
def test_waits_lie_within_full_jitter(
    retries: int, delay: float, cap: float, exponential: bool, seed: int
) -> None:
    policy = Retry(retries, delay, cap=cap, exponential=exponential, seed=seed)
    job = Job(0, 0)
    for n in range(retries):
        wait = policy.settle(job, failed(CUT), 0.0)
        assert isinstance(wait, float)
        assert 0 <= wait <= min(cap, delay * 2**n if exponential else delay)
    assert policy.settle(job, failed(CUT), 0.0) is None
    assert not job.notes


def test_a_thousand_retries_do_not_overflow() -> None:
    policy = always(1.0, Retry(2000, cap=60.0, budget=RetryBudget(float("inf"))))
    job = Job(0, 0)
    assert [policy.settle(job, failed(CUT), 0.0) for _ in range(2000)][-1] == 60.0


def test_the_same_seed_gives_the_same_waits() -> None:
    def waits(seed: int | None) -> list[Any]:
        policy, job = Retry(5, seed=seed), Job(0, 0)
        return [policy.settle(job, failed(CUT), 0.0) for _ in range(5)]

    assert waits(3) == waits(3)
    assert waits(3) != waits(4)
    assert waits(None) != waits(None)


# What is tried again


@pytest.mark.parametrize(("error", "fault"), CLASSED, ids=lambda one: str(getattr(one, "args", one))[:40])
def test_only_what_may_pass_is_tried_again(error: BaseException, fault: Fault) -> None:
    verdict = Retry().settle(Job(0, 0), failed(error), 0.0)
    assert (verdict is not None) == (fault in (Fault.TRANSIENT, Fault.LIMITED))


def test_types_take_the_place_of_the_classes() -> None:
    policy = Retry(retry_on=(KeyError, errors.WorkerDied))
    assert policy.settle(Job(0, 0), failed(KeyError("x")), 0.0) is not None
    assert policy.settle(Job(0, 0), failed(errors.WorkerDied("")), 0.0) is not None
    assert policy.settle(Job(0, 0), failed(CUT), 0.0) is None
    assert Retry(retry_on=OSError).settle(Job(0, 0), failed(CUT), 0.0) is not None


def test_a_function_takes_the_place_of_the_classes_and_cannot_break_a_batch() -> None:
    policy = Retry(retry_on=lambda error: error.args[0] == "again")
    assert policy.settle(Job(0, 0), failed(ValueError("again")), 0.0) is not None
    assert policy.settle(Job(0, 0), failed(ValueError("no")), 0.0) is None
    assert policy.settle(Job(0, 0), failed(ValueError()), 0.0) is None  # it raised IndexError


@pytest.mark.parametrize("error", [CircuitOpen(""), ItemCancelled(""), errors.Quarantined("")])
def test_what_somebody_decided_is_never_tried_again(error: Exception) -> None:
    assert Retry(retry_on=Exception).settle(Job(0, 0), failed(error), 0.0) is None


def test_a_rejection_names_the_error_that_came_before_it() -> None:
    policy, job = Retry(), Job(0, 0)
    assert policy.settle(job, failed(CUT), 0.0) is not None
    rejection = CircuitOpen("was not tried")
    assert policy.settle(job, Outcome(0, None, rejection, origin="breaker"), 1.0) is None
    assert rejection.__cause__ is CUT


def test_retries_are_counted_apart_from_runs_that_a_dead_worker_cost() -> None:
    policy, job = Retry(1), Job(0, 0)
    job.attempts = 3
    assert policy.settle(job, failed(CUT), 0.0) is not None
    assert policy.settle(job, failed(CUT), 0.0) is None
    never_ran = Job(1, 0)  # attempts stay 0, and it must end all the same
    assert policy.settle(never_ran, failed(RateLimited("")), 0.0) is not None
    assert policy.settle(never_ran, failed(RateLimited("")), 0.0) is None
    assert policy.counts() == {
        "retries": 2,
        "exhausted": 2,
        "past_deadline": 0,
        "over_budget": 0,
        "told_too_long": 0,
    }


def test_an_item_that_ends_well_leaves_nothing_behind() -> None:
    policy, job = Retry(), Job(0, 0)
    policy.settle(job, failed(CUT), 0.0)
    assert policy.settle(job, GOOD, 1.0) is None
    assert not job.notes


def test_fresh_items_always_pass() -> None:
    policy = Retry(deadline=1.0)
    job = Job(0, 0)
    job.deadline = 5.0  # somebody else's: it bars another try, not the first
    assert policy.idle(0.0)
    assert policy.admit(job, 9.0) is None


# The deadline


def test_the_deadline_counts_from_the_start_of_the_first_attempt() -> None:
    policy, job = always(0.5, Retry(9, 10.0, exponential=False, deadline=30.0)), Job(0, 0)
    assert policy.settle(job, failed(CUT, seconds=20.0), 100.0) == 5.0
    assert job.deadline == 110.0
    assert policy.settle(job, failed(CUT), 105.0) is None
    assert policy.counts()["past_deadline"] == 1


def test_an_item_whose_time_is_up_while_it_waits_ends_with_its_own_error() -> None:
    policy, job = always(0.5, Retry(delay=10.0, deadline=30.0)), Job(0, 0)
    first = failed(CUT)
    assert policy.settle(job, first, 0.0) == 5.0
    assert policy.admit(job, 5.0) is None
    assert policy.admit(job, 30.0) is first  # a breaker or a limiter had put it off
    assert not job.notes


@unhurried
@given(
    st.floats(0.1, 100),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), max_size=20),
    st.integers(0, 99),
)
def test_no_attempt_begins_after_the_deadline(
    deadline: float, steps: list[tuple[float, float]], seed: int
) -> None:
    """:param steps: how long each attempt runs, and how long others then put the item off."""
    policy, job, now = Retry(99, 5.0, deadline=deadline, seed=seed), Job(0, 0), 0.0
    for runs, put_off in steps:
        verdict = policy.admit(job, now)
        if isinstance(verdict, Outcome):
            assert now >= deadline
            return
        assert now < deadline
        now += runs
        wait = policy.settle(job, failed(CUT, seconds=runs), now)
        if wait is None:
            return
        assert isinstance(wait, float)
        now += wait + put_off


# The budget


def test_isolated_failures_keep_their_retries() -> None:
    """One in five items fails once, twenty items a second, for an hour."""
    policy = Retry(seed=1)
    for n in range(72_000):
        now = n / 20
        if n % 5 == 0:
            assert policy.settle(Job(n, 0), failed(CUT), now) is not None
        policy.passed(1, now)


def test_an_outage_does_not_multiply_the_load() -> None:
    """2000 items a second fail for ten seconds: retries go on at the pace of the budget, no faster."""
    budget = RetryBudget(100, per_second=10.0)
    policy = Retry(3, 0.0, cap=5.0, budget=budget)
    due = []
    for n in range(20_000):
        now = n / 2000
        wait = policy.settle(Job(n, 0), failed(CUT), now)
        if isinstance(wait, float):
            due.append(now + wait)
    for start in range(15):
        assert sum(start <= at < start + 1 for at in due) <= 10 + (100 if start == 0 else 1)
    assert policy.counts()["over_budget"] == 20_000 - len(due)


def test_a_burst_of_failures_is_spread_and_loses_nothing() -> None:
    policy = Retry(delay=0.0, cap=60.0)
    waits = [policy.settle(Job(n, 0), failed(CUT), 0.0) for n in range(500)]
    assert all(isinstance(wait, float) for wait in waits)
    assert waits[:100] == [0.0] * 100
    assert waits[-1] == pytest.approx(40.0)


def test_successes_fill_the_budget_up_to_its_reserve() -> None:
    budget = RetryBudget(10, per_success=0.5, per_second=0.0)
    policy = Retry(delay=0.0, cap=0.0, budget=budget)
    assert [policy.settle(Job(n, 0), failed(CUT), 0.0) for n in range(11)] == [0.0] * 10 + [None]
    policy.passed(3, 0.0)
    policy.settle(Job(0, 0), GOOD, 0.0)
    assert budget.tokens(0.0) == 2.0
    policy.settle(Job(0, 0), Outcome(0, 1, None, origin="cache"), 0.0)  # nothing was asked of anybody
    assert budget.tokens(0.0) == 2.0
    policy.passed(1000, 0.0)
    assert budget.tokens(0.0) == 10.0


@unhurried
@given(
    st.floats(1, 50),
    st.floats(0, 1),
    st.floats(0, 10),
    st.lists(st.tuples(st.floats(0, 5), st.integers(-5, 5))),
)
def test_tokens_taken_are_never_more_than_tokens_given(
    reserve: float, per_success: float, per_second: float, steps: list[tuple[float, int]]
) -> None:
    """:param steps: seconds that pass, and then so many successes or, below 0, retries."""
    budget = RetryBudget(reserve, per_success=per_success, per_second=per_second)
    now, successes, due = 0.0, 0, []
    for seconds, count in steps:
        now += seconds
        if count > 0:
            budget.earned(count, now)
            successes += count
        for _ in range(-count):
            wait = budget.take(now, 10.0)
            if wait is not None:
                assert 0 <= wait <= 10.0
                due.append(now + wait)
        assert budget.tokens(now) <= reserve
    for at in due:
        assert sum(one <= at for one in due) <= reserve + successes * per_success + at * per_second + 1e-6


def test_a_clock_that_goes_back_gives_no_tokens() -> None:
    budget = RetryBudget(5, per_second=1.0)
    for _ in range(5):
        budget.take(10.0, 0.0)
    assert budget.tokens(0.0) == 0.0
    assert budget.tokens(10.0) == 0.0
    assert budget.tokens(12.0) == 2.0


def test_a_budget_may_be_shared_by_batches_in_threads() -> None:
    budget = RetryBudget(1000, per_second=0.0)
    given_: list[int] = []

    def batch() -> None:
        policy = Retry(delay=0.0, budget=budget)
        waits = [policy.settle(Job(n, 0), failed(CUT), 0.0) for n in range(500)]
        given_.append(sum(wait is not None for wait in waits))

    threads = [threading.Thread(target=batch) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert sum(given_) == 1000


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_retries", -1),
        ("max_retries", 1.5),
        ("max_retries", True),
        ("delay", -1),
        ("delay", float("nan")),
        ("cap", "1"),
        ("deadline", 0),
        ("longest_retry_after", float("inf")),
        ("retry_on", 3),
        ("retry_on", (KeyError, "x")),
        ("retry_on", int),
        ("budget", 0.1),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*It takes"):
        Retry(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("reserve", 0), ("per_success", -1), ("per_second", None)])
def test_a_wrong_argument_of_the_budget_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*It takes"):
        RetryBudget(**{name: value})
