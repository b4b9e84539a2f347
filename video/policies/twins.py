"""The policy that runs equal items of a batch once: the first leads, the others wait and share its answer.

    first with a key ---> runs ----------> its answer ---> its own outcome
    later, same key  ---> wait ... wait ------+----------> theirs, with the origin "twin"

It keeps only keys that are in flight, so that an endless stream takes no more memory than what is drawn and
not yet handed out. An equal item that comes after the last of them has its answer runs anew: that is what a
cache is for.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from video.errors import ConfigError, ItemTimeout, Quarantined, described
from video.events import logger
from video.outcome import Outcome
from video.policies._content import content_key
from video.policies.base import Job, Verdict
from video.policies.cache import fresh
from video.policies.faults import Fault, classify

POLL_SECONDS = 0.05
"""After which a twin asks again for the first time; each time twice as long, up to `LONGEST_POLL`. For
leaders that go without a word (one that is freed late); usually `waiting` has it woken before."""
LONGEST_POLL = 1.0


class _Flight:
    """A key in flight. Its tickets keep it alive, so it goes with the last item that has one."""

    __slots__ = ("__weakref__", "answer", "key", "leader", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.leader: weakref.ref[_Ticket] | None = None
        self.answer: Outcome[Any] | None = None
        self.waiting: weakref.WeakSet[_Ticket] = weakref.WeakSet()


class _Ticket:
    """Lies in a job's notes. A job that its batch forgets (it was left, dropped, cancelled) takes it along: a
    leader that is gone is followed by another without anybody being told."""

    __slots__ = ("__weakref__", "asked", "flight", "index")

    def __init__(self, flight: _Flight, index: int) -> None:
        self.flight = flight
        self.index = index
        self.asked = 0


class Twins:
    """Runs items of the same key once in a batch, and has them share the answer. One is for one batch, since
    items of another may be meant for another task.

    It stands before all that an attempt takes (retry, breaker, rate), and before or after the cache. The
    leader stays the leader while it waits there for its next attempt.

    What is shared of a failure: one that is the item's own fault, since its twins would meet the same (fix
    the input, fix the account; it ran out of time; it killed its workers). After any other (a dead worker, a
    broken connection, a full disk, an open circuit, a cancelled leader) the next twin runs.

    Each twin has a copy of the value, so that none can change another's; a value that cannot be copied (see
    `copy.deepcopy`) they share itself.

    :param key: what an item is known by; None: `content_key`. An item that has no key is its own only twin.
    :raises ConfigError: if `key` is no function.
    """

    name = "twin"
    answers = True

    def __init__(self, key: Callable[[Any], str] | None = None) -> None:
        if key is not None and not callable(key):
            raise ConfigError(f"key is {key!r}", cure="It takes a function of an item, or None.")
        self._key = key or content_key
        self._lock = threading.RLock()
        """A ticket may die, and call back into a weak set, while it is held."""
        self._flights: weakref.WeakValueDictionary[str, _Flight] = weakref.WeakValueDictionary()
        self._counts: Counter[str] = Counter()
        self._warned = False

    def admit(self, job: Job, now: float) -> Verdict:
        ticket: _Ticket | None = job.notes.get(self.name)
        key = self._key_of(job.item) if ticket is None else ticket.flight.key
        if key is None:
            return None
        with self._lock:
            if ticket is None:
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = _Flight(key)
                ticket = job.notes[self.name] = _Ticket(flight, job.index)
            flight = ticket.flight
            answer = flight.answer
            if answer is None:
                leader = None if flight.leader is None else flight.leader()
                if leader is None or leader is ticket:
                    flight.leader = weakref.ref(ticket)
                    flight.waiting.discard(ticket)
                    return None
                flight.waiting.add(ticket)
                ticket.asked += 1
                return min(LONGEST_POLL, POLL_SECONDS * 2.0 ** min(ticket.asked - 1, 10))
            flight.waiting.discard(ticket)
            del job.notes[self.name]
            self._counts["shared" if answer.error is None else "shared_failures"] += 1
        return Outcome(job.index, _copied(answer.value), answer.error, 0, 0.0, self.name)

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        ticket: _Ticket | None = job.notes.get(self.name)
        if ticket is None:
            return None
        with self._lock:
            flight = ticket.flight
            if flight.leader is None or flight.leader() is not ticket:
                return None
            if not flight.waiting or not (outcome.error is None or _own_fault(outcome.error)):
                flight.leader = None
                return None
        # It leads until the copy is made; without one, its caller could change what the twins are to have.
        answer = Outcome(outcome.index, _copied(outcome.value), outcome.error)
        with self._lock:
            flight.answer, flight.leader = answer, None
        return None

    def withdraw(self, job: Job, now: float) -> None:
        """It takes nothing that could be given back: whoever leads stays the leader for as long as its batch
        knows it."""

    def idle(self, now: float) -> bool:
        return False

    def passed(self, count: int, now: float) -> None:
        """Never called: it is never idle."""

    def waiting(self, job: Job) -> list[int]:
        """Positions of the items that wait for the same as this one. After `settle` of a job they are to be
        admitted at once, rather than when they said that they would ask again: they have their answer, or one
        of them is the next to run, and then it alone is named."""
        ticket: _Ticket | None = job.notes.get(self.name)
        if ticket is None:
            return []
        with self._lock:
            flight = ticket.flight
            others = sorted(one.index for one in flight.waiting)
            if flight.answer is not None:
                return others
            leader = None if flight.leader is None else flight.leader()
            return others[:1] if leader is None else others if leader is ticket else []

    def in_flight(self) -> int:
        """Keys that are kept just now."""
        with self._lock:
            return len(self._flights)

    def counts(self) -> dict[str, int]:
        """So far: items that had a twin's value (`shared`), or its failure (`shared_failures`)."""
        with self._lock:
            return {name: self._counts[name] for name in ("shared", "shared_failures")}

    def _key_of(self, item: Any) -> str | None:
        try:
            key: Any = self._key(item)
            if isinstance(key, str):
                return key
            words = f"its key is {key!r}, which is no string"
        except Exception as error:  # noqa: BLE001  # a user's function raises what it likes
            words = described(error)
        with self._lock:
            told, self._warned = self._warned, True
        if not told:
            logger.warning("a %s is not compared with others, nor are those like it: %s",
                           type(item).__qualname__, words)  # fmt: skip
        return None


def _own_fault(error: BaseException) -> bool:
    return isinstance(error, ItemTimeout | Quarantined) or classify(error) in (Fault.INPUT, Fault.ACCOUNT)


def _copied(value: Any) -> Any:
    try:
        return fresh(value)
    except Exception:  # noqa: BLE001  # whatever an object raises that will not be copied
        return value
