"""Trying again: how often, how much later, and when no more.

A wait is a number that goes back to the batch, so no worker sleeps through it. Three bounds hold at once: a
count for each item, a deadline for each item, and a budget for all of them together.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from video.errors import CircuitOpen, ConfigError, ItemCancelled, Quarantined
from video.outcome import Outcome
from video.policies._checks import INFINITE, number
from video.policies.base import Job, Verdict
from video.policies.faults import Fault, Matches, classify, matcher, retry_after

_NEVER = (CircuitOpen, ItemCancelled, Quarantined)
"""To try these again would undo what somebody decided, whatever `retry_on` says."""


class RetryBudget:
    """How many retries a whole batch may make, so that an outage does not multiply the load.

    A token bucket after Finagle's RetryBudget (finagle.github.io/blog/2016/02/08/retry-budgets, with its
    defaults) and gRPC's retry throttling (gRFC A6): a retry takes a token, a success gives back a part of
    one, and some come with time. Where those two drop a retry that finds the bucket empty, it is put off here
    until its token is due, if that is soon enough: what fails now and then keeps its retries, and a burst of
    failures is spread. It may be shared by several policies.

    :param reserve: tokens at the start, and the most there ever are; above 0, and may be infinite.
    :param per_success: tokens that an item that ended well gives back; at least 0.
    :param per_second: tokens that come with time; at least 0.
    """

    def __init__(self, reserve: float = 100.0, *, per_success: float = 0.2, per_second: float = 10.0) -> None:
        if reserve != INFINITE:
            number("reserve", reserve, above=0)
        number("per_success", per_success)
        number("per_second", per_second)
        self.reserve = reserve
        self.per_success = per_success
        self.per_second = per_second
        self._lock = threading.RLock()
        self._tokens = float(reserve)  # below 0: so many retries are put off
        self._at: float | None = None

    def tokens(self, now: float) -> float:
        """What there is; below 0, so many retries wait for theirs."""
        with self._lock:
            return self._fill(now)

    def earned(self, successes: int, now: float) -> None:
        with self._lock:
            self._tokens = min(self.reserve, self._fill(now) + successes * self.per_success)

    def take(self, now: float, longest: float) -> float | None:
        """Take a token, and say in how many seconds it is due; None: that would be more than `longest`, and
        nothing is taken."""
        with self._lock:
            lack = 1.0 - self._fill(now)
            if lack <= 0:
                wait = 0.0
            elif not self.per_second or lack / self.per_second > longest:
                return None
            else:
                wait = lack / self.per_second
            self._tokens -= 1.0
            return wait

    def _fill(self, now: float) -> float:
        if self._at is not None and now > self._at:
            self._tokens = min(self.reserve, self._tokens + (now - self._at) * self.per_second)
        self._at = now if self._at is None else max(now, self._at)
        return self._tokens


class Retry:
    """Has items run again that failed for a reason that may pass.

    The n-th retry (from 0) comes after `uniform(0, min(cap, delay * 2**n))` seconds: "full jitter" of the
    AWS architecture blog ("Exponential Backoff And Jitter", 2015), which found that it costs the least work
    and time. Where the error says how long to wait (Retry-After), that is added, so that items that were told
    the same do not all come back at the same instant.

    Retries are counted for themselves: a worker that died under an item, and was replaced, is none.

    :param max_retries: retries of one item, at least 0.
    :param delay: seconds; upper bound of the first wait.
    :param exponential: double that bound with each retry; False keeps it.
    :param cap: seconds; the bound grows no further. Also the longest that a retry waits for the budget.
    :param deadline: seconds from the start of an item's first attempt in which its last one must start; None
        for no such limit. An item whose time is up ends with the error that it had.
    :param retry_on: which errors to try again, in place of those classed TRANSIENT or LIMITED: types, or a
        function of the error. A rejection by a circuit breaker, a cancelled and a quarantined item are never
        tried again.
    :param budget: for all items together; None: one with its defaults. `RetryBudget(float("inf"))` sets no
        limit.
    :param longest_retry_after: seconds; a server that asks for more is not waited for.
    :param seed: of the jitter; None: another one each time.
    :param wall: the clock that dates in Retry-After are compared with, in seconds since the epoch.
    :raises ConfigError: naming the argument.
    """

    name = "retry"
    answers = False

    def __init__(
        self,
        max_retries: int = 3,
        delay: float = 1.0,
        *,
        exponential: bool = True,
        cap: float = 60.0,
        deadline: float | None = None,
        retry_on: Matches | None = None,
        budget: RetryBudget | None = None,
        longest_retry_after: float = 3600.0,
        seed: int | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        number("max_retries", max_retries, whole=True)
        number("delay", delay)
        number("cap", cap)
        number("longest_retry_after", longest_retry_after)
        if deadline is not None:
            number("deadline", deadline, above=0)
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigError(
                f"budget is {budget!r}", cure="It takes a RetryBudget, or None for its defaults."
            )
        self.max_retries = max_retries
        self.delay = delay
        self.exponential = exponential
        self.cap = cap
        self.deadline = deadline
        self.longest_retry_after = longest_retry_after
        self.budget = RetryBudget() if budget is None else budget
        self._matches = matcher("retry_on", retry_on)
        self._random = random.Random(seed)  # noqa: S311  # jitter is no secret
        self._wall = wall
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()

    def admit(self, job: Job, now: float) -> Verdict:
        """None, or the last outcome of an item whose deadline has come while it waited."""
        failed = job.notes.get(self.name)
        if failed is None or job.deadline is None or now < job.deadline:
            return None
        self._count("past_deadline")
        del job.notes[self.name]
        outcome: Outcome[Any] = failed[1]
        return outcome

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        if outcome.error is None:
            job.notes.pop(self.name, None)
            if outcome.origin == "run":
                self.budget.earned(1, now)
            return None
        retries, failed = job.notes.get(self.name, (0, None))
        if isinstance(outcome.error, CircuitOpen) and outcome.error.__cause__ is None and failed is not None:
            outcome.error.__cause__ = failed.error  # what it had met before it was turned away
        wait = self._wait(job, outcome, retries, now) if self._worth(outcome.error) else None
        if wait is None:
            job.notes.pop(self.name, None)
        else:
            job.notes[self.name] = retries + 1, outcome
            self._count("retries")
        return wait

    def withdraw(self, job: Job, now: float) -> None:
        """Nothing was taken: a retry has its token from `settle`."""

    def idle(self, now: float) -> bool:
        """It lets every item pass that has not failed yet; one that is to run again must be asked for."""
        return True

    def passed(self, count: int, now: float) -> None:
        self.budget.earned(count, now)

    def counts(self) -> dict[str, int]:
        """So far: `retries`, and failures that were let stand: `exhausted` (of max_retries), `past_deadline`,
        `over_budget`, `told_too_long` (by Retry-After)."""
        with self._lock:
            names = ("retries", "exhausted", "past_deadline", "over_budget", "told_too_long")
            return {name: self._counts[name] for name in names}

    def _worth(self, error: BaseException) -> bool:
        if isinstance(error, _NEVER):
            return False
        if self._matches is not None:
            return self._matches(error)
        return classify(error) in (Fault.TRANSIENT, Fault.LIMITED)

    def _wait(self, job: Job, outcome: Outcome[Any], retries: int, now: float) -> float | None:
        """Seconds until it is run again; None, not any more."""
        assert outcome.error is not None
        if self.deadline is not None and job.deadline is None:
            job.deadline = now - outcome.seconds + self.deadline
        if retries >= self.max_retries:
            return self._stands("exhausted")
        told = retry_after(outcome.error, self._wall()) or 0.0
        if told > self.longest_retry_after:
            return self._stands("told_too_long")
        # Beyond 2**60 every bound is far above its cap, and a float would overflow.
        bound = min(self.cap, self.delay * 2.0 ** min(retries, 60) if self.exponential else self.delay)
        wait = told + self._random.uniform(0.0, bound)
        left = INFINITE if job.deadline is None else job.deadline - now
        if wait >= left:
            return self._stands("past_deadline")
        due = self.budget.take(now, min(max(self.cap, wait), left))
        return self._stands("over_budget") if due is None else max(wait, due)

    def _stands(self, why: str) -> float | None:
        """The failure is let stand."""
        self._count(why)
        return None

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
