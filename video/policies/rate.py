"""A service's rate limit, kept by all who share it: threads, processes, or machines.

`DistributedRateLimiter` is for code that makes requests; `RatePolicy` has a batch keep to one. How the rate
is kept, and why no minute ever holds more than the limit, stands in `_rate_gcra`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from video.errors import CircuitOpen, ConfigError, StoreError, described
from video.outcome import Outcome
from video.policies._checks import number
from video.policies._rate_gcra import Ticket
from video.policies._rate_limiter import DistributedRateLimiter, RateState
from video.policies._rate_stores import Clock
from video.policies.base import Job, Verdict
from video.policies.faults import Fault, classify, retry_after, status

__all__ = ["DistributedRateLimiter", "RatePolicy", "RateState"]

logger = logging.getLogger("video")

AHEAD_SECONDS = 2.0
"""A job reserves its place no earlier than this before its turn: one that is never asked for again, since its
batch was left, costs the others no more."""
ASK_SECONDS = 5.0
"""A job is asked for again at least this often, so that it hears of changes."""
PATIENCE_SECONDS = 30.0
"""How long a job waits for a store that does not work before it fails."""


class RatePolicy:
    """Has the items of a batch keep to rate limits.

    An item whose turn has not come waits in the batch and holds no worker. One that a service refuses (429,
    503, `RateLimited`) has the limiter pause for as long as the error says, or halve its rate if it does not
    say; to run the item again is the retry policy's business.

    :param limiter: for all items, which it is told apart by `Job.key` where its mode is "independent"; or a
        function of that key, called once for each, that gives a limiter, or None for no limit; or None.
    :param longest_penalty: seconds; a server that asks for more is left alone for so long.
    :param wall: the clock that dates in Retry-After are compared with, in seconds since the epoch.
    :param listeners: told a key, and in words what has become of its rate, when a service refuses; in
        whichever thread that comes to light.
    :raises ConfigError: naming the argument.
    """

    name = "rate"
    answers = False

    def __init__(
        self,
        limiter: DistributedRateLimiter | Callable[[str], DistributedRateLimiter | None] | None,
        *,
        longest_penalty: float = 3600.0,
        wall: Clock = time.time,
        listeners: Iterable[Callable[[str, str], None]] = (),
    ) -> None:
        number("longest_penalty", longest_penalty)
        if not (limiter is None or isinstance(limiter, DistributedRateLimiter) or callable(limiter)):
            raise ConfigError(
                f"limiter is {limiter!r}",
                cure="It takes a DistributedRateLimiter, a function of a key that gives one, or None.",
            )
        self.longest_penalty = longest_penalty
        self._unlimited = limiter is None
        self._one = limiter if isinstance(limiter, DistributedRateLimiter) else None
        self._make = None if isinstance(limiter, DistributedRateLimiter) else limiter
        self._wall = wall
        self._listeners = tuple(listeners)
        self._refusals: dict[str, int] = {}
        """By key."""
        self._lock = threading.RLock()
        self._limiters: dict[str, DistributedRateLimiter | None] = {}

    def admit(self, job: Job, now: float) -> Verdict:
        """None, or seconds; an outcome where the store has not worked for half a minute."""
        limiter = self._one or self._limiter(job.key)
        if limiter is None:
            return None
        note = job.notes.get("rate")
        try:
            if not isinstance(note, Ticket):
                job.notes["rate"] = ticket = limiter.ticket(job.key, now)
            else:
                ticket = note
            wait = limiter.ask(ticket, AHEAD_SECONDS, now)
        except StoreError as error:
            return self._broken(job, error, now)
        job.notes.pop("rate store", None)
        if wait <= 0:
            return None
        if ticket.slot != ticket.slot and wait > AHEAD_SECONDS:
            wait -= AHEAD_SECONDS / 2
        return wait if wait < ASK_SECONDS else ASK_SECONDS

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        ticket = job.notes.pop("rate", None)
        limiter = self._one or self._limiter(job.key)
        if limiter is None or not isinstance(ticket, Ticket):
            return None
        error = outcome.error
        if error is None and ticket.factor == 1.0 and not limiter.counts_flights:
            return None  # there is nothing to tell
        penalty, refused = None, False
        if outcome.origin == "run" and isinstance(error, Exception) and not isinstance(error, CircuitOpen):
            code = status(error)
            if classify(error) is Fault.LIMITED or code == 503:
                said = retry_after(error, self._wall())
                penalty = None if said is None else min(said, self.longest_penalty)
                refused = penalty is None
        with self._failing("told of an outcome"):
            well = error is None and ticket.factor < 1.0
            limiter.end(ticket, now, penalty=penalty, refused=refused, went_well=well)
        if error is not None and (penalty is not None or refused):
            with self._lock:
                self._refusals[job.key] = self._refusals.get(job.key, 0) + 1
            words = "half the rate" if penalty is None else f"nothing for {penalty:.3g} s"
            for tell in self._listeners:
                tell(job.key, f"the service refuses ({described(error)}): {words}")
        return None

    def withdraw(self, job: Job, now: float) -> None:
        ticket = job.notes.pop("rate", None)
        limiter = self._one or self._limiter(job.key)
        if limiter is not None and isinstance(ticket, Ticket):
            with self._failing("given a permit back"):
                limiter.undo(ticket, now)

    def idle(self, now: float) -> bool:
        """Only without any limit: each permit counts."""
        return self._unlimited

    def passed(self, count: int, now: float) -> None:
        """There was no limit."""

    def counts(self) -> dict[str, dict[str, Any]]:
        """By key: how its budget stands (`RateState`), and how often the service refused; "": for all keys
        together. A store that does not work has no states."""
        with self._lock:
            limiters, refusals = dict(self._limiters), dict(self._refusals)
        found: dict[str, dict[str, Any]] = {}
        with self._failing("asked how it stands"):
            if self._one is not None:
                found = {key: state._asdict() for key, state in self._one.states().items()}
            for key, limiter in limiters.items():
                if limiter is not None:
                    found[key] = limiter.state(key)._asdict()
        for key, state in found.items():
            state["refusals"] = refusals.get(key, 0) if key else sum(refusals.values())
        return found

    def _limiter(self, key: str) -> DistributedRateLimiter | None:
        if self._make is None:
            return None
        with self._lock:
            if key not in self._limiters:
                self._limiters[key] = self._make(key)
            return self._limiters[key]

    def _broken(self, job: Job, error: StoreError, now: float) -> Verdict:
        """A store that fails may work again; meanwhile nothing is let through, since it is not known what
        others do."""
        since = job.notes.setdefault("rate store", now)
        job.notes.pop("rate", None)
        if now - since < PATIENCE_SECONDS:
            logger.warning("the rate limiter waits for its store: %s", error)
            return 1.0
        del job.notes["rate store"]
        return Outcome(job.index, None, error, attempts=job.attempts, origin=self.name)

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:  # the item is done; its outcome stands
            logger.warning("a rate limiter could not be %s: %s", what, error)
