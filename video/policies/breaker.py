"""Circuit breakers: what fails too often of late is left alone for a while, each host or service for itself.

An item says by its key what it uses. Whether an attempt tells anything about that is read from its outcome.
An error classed TRANSIENT is a failure. One with an HTTP status that speaks of the request (404, 401) is a
success, since the service has answered. A 429 is neither (it is the limiter's affair), and neither is what
has nothing to do with the service: a cancelled item, a dead worker, a full disk, an item that is no video.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from video.errors import CircuitOpen, ConfigError
from video.outcome import Outcome
from video.policies._breaker_store import SLACK, BreakerStore
from video.policies._checks import INFINITE, number
from video.policies._circuit import BreakerRules, CircuitBreaker, State
from video.policies.base import Job, Verdict
from video.policies.faults import Fault, Matches, classify, matcher, status

__all__ = ["BreakerPolicy", "BreakerRules", "BreakerStore", "CircuitBreaker", "Listener", "State"]

logger = logging.getLogger("video")

Listener = Callable[[str, State, State, str], None]
"""Told a key, its old and its new state, and why; in whichever thread brought the change about."""

LONGEST_WAIT = 5.0
"""Seconds after which an item that waits asks again in any case: somebody may have closed the circuit."""
PROBE_WAIT = 1.0
"""Seconds after which it asks again while a probe is out."""
REFRESH = 1.0
"""Seconds from one look into the shared store to the next."""
STORE_REST = 30.0
"""Seconds that a store is left alone that has failed."""
UNUSED = 10
"""Recovery times after which a breaker that nobody has asked is forgotten."""


class BreakerPolicy:
    """A breaker for each key; items without a key pass.

    While a circuit is open its items wait, and lose nothing by it: an attempt that did not take place is not
    counted. That is bounded: when a probe fails and the circuit has been open for `patience_seconds` by then
    (a probe does not begin this anew), its items end with CircuitOpen, all but one for each recovery time,
    which is the next probe.

    :param rules: for every key alike.
    :param on_open: "wait", or "reject": end with CircuitOpen at once.
    :param patience_seconds: of "wait"; may be infinite. None: five recovery times.
    :param failure_on: which errors are failures of what an item uses, in place of those classed TRANSIENT:
        types, or a function of the error.
    :param max_keys: breakers that are held. Beyond that those are dropped that have not been used for the
        longest time, healthy ones first, and none that is in use or was forced.
    :param store: shared by processes, so that one of them probes and all of them know. What is forced is not
        shared.
    :param listeners: told every change of state; they may come and go at any time. One that raises is logged.
    :param name: with two of them in one row (a host's, a service's), each needs its own.
    :raises ConfigError: naming the argument.
    """

    answers = False

    def __init__(
        self,
        rules: BreakerRules | None = None,
        *,
        on_open: str = "wait",
        patience_seconds: float | None = None,
        failure_on: Matches | None = None,
        max_keys: int = 1000,
        store: BreakerStore | None = None,
        listeners: Iterable[Listener] = (),
        name: str = "breaker",
    ) -> None:
        if on_open not in ("wait", "reject"):
            raise ConfigError(f"on_open is {on_open!r}", cure='It takes "wait" or "reject".')
        if patience_seconds not in (None, INFINITE):
            number("patience_seconds", patience_seconds)
        number("max_keys", max_keys, above=0, whole=True)
        self.name = name
        self.rules = BreakerRules() if rules is None else rules
        self.on_open = on_open
        recovery = self.rules.recovery_timeout_seconds
        self.patience_seconds = 5 * recovery if patience_seconds is None else patience_seconds
        self.max_keys = max_keys
        self.listeners = list(listeners)
        self._fails = matcher("failure_on", failure_on)
        self._lock = threading.RLock()
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()
        self._troubled: set[str] = set()  # keys of those that are not healthy
        self._counts: Counter[str] = Counter()
        self._changes: deque[tuple[str, State, State, str]] = deque()
        self._telling = threading.Lock()
        self._store = store
        self._shared: set[str] = set()  # keys that the store had when it was last read
        self._read_at = self._rests_until = -INFINITE

    def admit(self, job: Job, now: float) -> Verdict:
        if not job.key or self.name in job.notes:
            return None
        with self._lock:
            verdict = self._admit(job, now)
        self._tell()
        return verdict

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        if not job.key:
            return None
        failed = self._failed(outcome)
        with self._lock:
            breaker, permit = job.notes.pop(self.name, None) or (None, 0)
            if breaker is None:
                # It passed by while all was well. Its neighbours did too, and nobody can say which of those
                # that went well were of its key: so it counts as a sign, and from now on each is counted.
                if failed:
                    breaker = self._breaker(job.key, now)
                    before = breaker.state
                    breaker.suspect(now)
                    self._after(job.key, breaker, before, now)
            else:
                before = breaker.state
                if failed is None:
                    breaker.release(permit, now)
                elif failed:
                    breaker.failure(permit, outcome.seconds, now)
                else:
                    breaker.success(permit, outcome.seconds, now)
                self._after(job.key, breaker, before, now)
        self._tell()
        return None

    def withdraw(self, job: Job, now: float) -> None:
        with self._lock:
            if note := job.notes.pop(self.name, None):
                note[0].release(note[1], now)

    def idle(self, now: float) -> bool:
        """While no circuit is open and none has failed of late. Never where shares of calls are looked at,
        since then the good ones count too."""
        if self.rules.by_share:
            return False
        if not self._troubled and self._store is None:
            return True
        with self._lock:
            self._sync(now)
            for key in list(self._troubled):
                breaker = self._breakers[key]
                unused = now - breaker.used >= UNUSED * self.rules.recovery_timeout_seconds
                waits = breaker.state is State.OPEN and now < breaker.until
                if unused and not waits and _droppable(breaker):
                    self._drop(key, "nobody has used it for long", now)
            idle = not self._troubled
        self._tell()
        return idle

    def passed(self, count: int, now: float) -> None:
        """Changes nothing: it was idle, so no key had a failure that a success could make up for."""

    def force(self, key: str, state: State, now: float) -> None:
        """Hold a circuit open (`State.FORCED_OPEN`), switch its breaker off (`State.DISABLED`), or have it
        start afresh (`State.CLOSED`; also for processes that share the store).

        :raises ConfigError: for any other state.
        """
        with self._lock:
            breaker = self._breaker(key, now)
            breaker.force(state, now)
            self._mark(key, breaker)
            if state is State.CLOSED:
                self._close_for_all(key, now)
        self._tell()

    def states(self) -> dict[str, State]:
        """Of the keys that were used lately."""
        with self._lock:
            return {key: breaker.state for key, breaker in self._breakers.items()}

    def counts(self) -> dict[str, int]:
        """So far: times that a circuit `opened`, `probes` that were let through, items that were `rejected`,
        and times that one was `put_off`."""
        with self._lock:
            return {name: self._counts[name] for name in ("opened", "probes", "rejected", "put_off")}

    def _admit(self, job: Job, now: float) -> Verdict:
        if self._store is not None:
            self._sync(now)
        breaker = self._breaker(job.key, now)
        due = breaker.state is State.OPEN and now >= breaker.until
        permit = None
        if not (due and self._lets_others_probe(job, breaker, now)):
            if due and job.key in self._shared:
                recovery = self.rules.recovery_timeout_seconds
                if self._ask(lambda store: store.claim(job.key, recovery), now) is False:
                    breaker.until = now + REFRESH  # another process probes
            permit = breaker.acquire(now)
        if permit is None:
            return self._turn_away(job, breaker, now)
        job.notes[self.name] = breaker, permit
        if breaker.state is State.HALF_OPEN:
            self._counts["probes"] += 1
        return None

    def _lets_others_probe(self, job: Job, breaker: CircuitBreaker, now: float) -> bool:
        """Whether it has run already, so that others go first: else one item would lose all its retries to an
        outage in which the others lose none."""
        head_start = min(job.attempts * PROBE_WAIT, LONGEST_WAIT)
        return self.on_open == "wait" and now < breaker.until + head_start

    def _turn_away(self, job: Job, breaker: CircuitBreaker, now: float) -> Verdict:
        since = now if breaker.since is None else breaker.since
        if breaker.state is State.FORCED_OPEN:
            left, hopeless = INFINITE, now >= since + self.patience_seconds
        elif breaker.state is State.OPEN and now < breaker.until:
            left = breaker.until - now
            # As of the last probe: what the next one will find is worth waiting for.
            hopeless = breaker.opened >= since + self.patience_seconds
        else:  # soon, or it would meet one probe after the other and never hear how one has ended
            left, hopeless = min(PROBE_WAIT, self.rules.recovery_timeout_seconds / 4), False
        if self.on_open == "wait" and not hopeless:
            self._counts["put_off"] += 1
            return min(left, LONGEST_WAIT)
        self._counts["rejected"] += 1
        when = "when it is closed again by hand" if left == INFINITE else f"in {left:.3g} s"
        error = CircuitOpen(
            "was not tried, since what it uses has failed too often of late",
            subject=job.key,
            cure=f"It may be tried again {when}.",
            retry_after=None if left == INFINITE else left,
        )
        return Outcome(job.index, None, error, attempts=job.attempts, origin=self.name)

    def _failed(self, outcome: Outcome[Any]) -> bool | None:
        """Whether what the item uses has failed it; None: the outcome does not tell."""
        error = outcome.error
        if outcome.origin != "run":
            return None
        if error is None:
            return False
        fault = classify(error)
        if self._fails(error) if self._fails is not None else fault is Fault.TRANSIENT:
            return True
        answered = fault in (Fault.INPUT, Fault.ACCOUNT) and status(error) is not None
        return False if answered else None

    def _breaker(self, key: str, now: float) -> CircuitBreaker:
        breaker = self._breakers.get(key)
        if breaker is None:
            self._make_room(now)
            breaker = self._breakers[key] = CircuitBreaker(self.rules, partial(self._changed, key))
            breaker.used = now
        else:
            self._breakers.move_to_end(key)
        return breaker

    def _make_room(self, now: float) -> None:
        if len(self._breakers) < self.max_keys:
            return
        old = [key for key, breaker in self._breakers.items() if _droppable(breaker)]
        old.sort(key=lambda key: key in self._troubled)  # stable: within each kind the oldest stay first
        # A tenth at once, so that not each new key has all of them looked through.
        for key in old[: len(self._breakers) - self.max_keys + 1 + self.max_keys // 10]:
            self._drop(key, "there are too many", now)

    def _drop(self, key: str, why: str, now: float) -> None:
        breaker = self._breakers.pop(key)
        self._troubled.discard(key)
        if breaker.state is not State.CLOSED:
            self._changed(key, breaker.state, State.CLOSED, why)
            self._close_for_all(key, now)

    def _after(self, key: str, breaker: CircuitBreaker, before: State, now: float) -> None:
        """Keep account of what an attempt has brought about, and let other processes know."""
        self._mark(key, breaker)
        if breaker.state is before:
            return
        if breaker.state is State.OPEN:
            ago = 0.0 if breaker.since is None else now - breaker.since
            self._shared.add(key)
            self._ask(lambda store: store.open(key, self.rules.recovery_timeout_seconds, ago), now)
        elif breaker.state is State.CLOSED:
            self._close_for_all(key, now)

    def _close_for_all(self, key: str, now: float) -> None:
        self._ask(lambda store: store.close(key), now)

    def _mark(self, key: str, breaker: CircuitBreaker) -> None:
        if breaker.healthy:
            self._troubled.discard(key)
        else:
            self._troubled.add(key)

    def _sync(self, now: float) -> None:
        """Take over what other processes have found out."""
        if now < self._read_at + REFRESH:
            return
        self._read_at = now
        rows = self._ask(lambda store: store.read(), now)
        if rows is None:
            return
        longest = self.rules.recovery_timeout_seconds + SLACK
        for key, (left, opened, since) in rows.items():
            breaker = self._breaker(key, now)
            if breaker.state in (State.CLOSED, State.OPEN):
                breaker.learn(
                    State.OPEN,
                    "another process found it so",
                    until=now + (left if left <= longest else 0.0),  # else the clock was put back: it is due
                    opened=now - opened,
                    since=now - since,
                )
                self._mark(key, breaker)
        for key in self._shared - rows.keys():
            if (known := self._breakers.get(key)) is not None and known.state is State.OPEN:
                known.learn(State.CLOSED, "another process found it well")
                self._mark(key, known)
        self._shared = set(rows)

    def _ask(self, call: Callable[[BreakerStore], Any], now: float) -> Any:
        """What the store answers; None too where there is none that works."""
        if self._store is None or now < self._rests_until:
            return None
        try:
            return call(self._store)
        except Exception:
            # A store that is out of order must not stop a batch.
            logger.exception("the breakers' store failed; for %g s they go on without it", STORE_REST)
            self._rests_until = now + STORE_REST
            self._shared.clear()
            return None

    def _changed(self, key: str, old: State, new: State, why: str) -> None:
        if new is State.OPEN:
            self._counts["opened"] += 1
        self._changes.append((key, old, new, why))

    def _tell(self) -> None:
        """Tell the listeners, without the lock, each change once and in order, one thread at a time."""
        while self._changes and self._telling.acquire(blocking=False):
            try:
                while self._changes:
                    change = self._changes.popleft()
                    for listener in tuple(self.listeners):
                        try:
                            listener(*change)
                        except Exception:  # a listener must never break a batch
                            logger.exception("listener %r failed on %s", listener, change[2])
            finally:
                self._telling.release()


def _droppable(breaker: CircuitBreaker) -> bool:
    forced = breaker.state in (State.FORCED_OPEN, State.DISABLED)
    return not breaker.in_flight and not forced
