"""The rate limiter that code asks which makes requests."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from video.errors import ConfigError, NotPicklable
from video.policies import _rate_gcra as gcra
from video.policies._checks import INFINITE, number
from video.policies._rate_gcra import Figures, Ticket
from video.policies._rate_stores import Clock, Store, open_store

LOOK_SECONDS = 1.0
"""Who waits looks up this often whether the rate has been changed or a penalty has come."""


class RateState(NamedTuple):
    """How a budget stands."""

    permits_per_minute: float
    """What comes evenly, with all cuts."""
    factor: float
    """Above 0 and up to 1; below 1 since a service pushed back."""
    penalty_seconds: float
    """Nothing is permitted for so long."""
    used_today: int
    """Where there is a quota; days begin at midnight, UTC."""
    in_flight: int
    """Where that is limited."""


class DistributedRateLimiter:
    """Permits for requests, `rate_limit_rpm` in any minute at most.

    No window of 60 s holds more, whichever threads and processes ask, and whatever becomes of them. The rate
    that is used is `headroom` of the limit, at most 99.5 %; the rest pays for what comes in bursts or late.
    First come is first served, so all get the same share who ask as often.

    :param rate_limit_rpm: permits a minute, above 0. Below 1, they are 60 s / rate_limit_rpm apart.
    :param headroom: above 0, up to 1.
    :param mode: "shared": all workers draw on one budget; "independent": each `worker_id` has one of its own,
        with the whole rate.
    :param store: None: in this process; a path: for the processes of this machine; redis://...: for whoever
        uses that server (the extra `redis`); or a store. A budget that is there already takes over the
        figures of the limiter that opens it last.
    :param name: tells this limiter's budgets from others in the same store.
    :param per_day: permits a day, UTC; None: any number.
    :param max_in_flight: permits that may be out at once, each until `release`; None: any number, and there
        is nothing to release. What a process holds that dies is given back; on Redis after ten minutes.
    :param burst: permits at once after a pause, at least 1; None: 5, or what comes in 5 ms. It is cut down to
        what the headroom pays for.
    :param clock: seconds that never go back; of a path too. Not of Redis, which has its own.
    :param sleep: waits so many seconds.
    :raises ConfigError: naming the argument.
    :raises MissingDependency: for a Redis URL without the package.
    """

    def __init__(
        self,
        rate_limit_rpm: float = 300,
        headroom: float = 0.95,
        mode: str = "shared",
        store: str | os.PathLike[str] | Store | None = None,
        *,
        name: str = "",
        per_day: int | None = None,
        max_in_flight: int | None = None,
        burst: int | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for what, value in (("per_day", per_day), ("max_in_flight", max_in_flight), ("burst", burst)):
            if value is not None:
                number(what, value, above=0, whole=True)
        if mode not in ("shared", "independent"):
            raise ConfigError(f"mode is {mode!r}", cure='It takes "shared" or "independent".')
        self.mode = mode
        self.name = name
        self._more = (burst, per_day, max_in_flight)
        self._figures = self._checked(rate_limit_rpm, headroom)
        self._where = store
        self._store = open_store(store, clock)
        self._clock = clock or time.monotonic
        self._sleep = sleep
        self._held: dict[str, list[Ticket]] | None = None if max_in_flight is None else {}
        self._lock = threading.RLock()
        self._keys: dict[str, str] = {}

    @property
    def rate_limit_rpm(self) -> float:
        return self._limit

    @property
    def headroom(self) -> float:
        return self._headroom

    @property
    def counts_flights(self) -> bool:
        """Each permit is to be given back."""
        return self._held is not None

    def acquire_permission(self, worker_id: object = "") -> bool:
        """Take a permit if there is one now.

        :raises StoreError: if the store does not work.
        """
        ticket = Ticket(self._key(worker_id))
        if self.ask(ticket, longest=0.0) > 0:
            return False
        self._hold(ticket)
        return True

    def wait_for_availability(self, worker_id: object = "", timeout: float | None = None) -> bool:
        """Wait for a permit and take it: True; False: none came up within `timeout` seconds (None: whenever).

        A place further off than that is left to others, and a last try is made at the end.

        :raises StoreError: if the store does not work.
        """
        if timeout is not None:
            number("timeout", timeout)
        ticket = Ticket(self._key(worker_id))
        end = INFINITE if timeout is None else self._clock() + timeout
        try:
            while True:
                left = end - self._clock() if timeout is not None else INFINITE
                wait = self.ask(ticket, longest=max(left, 0.0))
                if ticket.granted:
                    self._hold(ticket)
                    return True
                if left <= 0:
                    return False
                self._sleep(min(wait, left, LOOK_SECONDS))
        finally:
            if not ticket.granted and ticket.slot == ticket.slot:
                self.undo(ticket)

    def release(self, worker_id: object = "") -> None:
        """What a permit was for has ended. Only `max_in_flight` asks for this."""
        key = self._key(worker_id)
        with self._lock:
            held = self._held.get(key) if self._held else None
            ticket = held.pop() if held else None
            if not held and self._held:
                self._held.pop(key, None)
        if ticket is not None:
            self.end(ticket)

    @contextlib.contextmanager
    def permit(self, worker_id: object = "") -> Iterator[None]:
        """`wait_for_availability` and, in the end, `release`."""
        self.wait_for_availability(worker_id)
        try:
            yield
        finally:
            self.release(worker_id)

    def penalize(self, seconds: float, worker_id: object = "") -> None:
        """The service asks to be left alone for so long (Retry-After): no permits until then, for all."""
        number("seconds", seconds)
        self._apply(worker_id, "penalize", float(seconds))

    def push_back(self, worker_id: object = "") -> None:
        """The service refused a request and did not say for how long: half the rate from now on; each success
        that is told of gives some back."""
        self._apply(worker_id, "push_back", INFINITE)

    def succeed(self, worker_id: object = "") -> None:
        """A request went well: after a push-back, a minute of these gives a quarter of the rate back."""
        self._apply(worker_id, "succeed")

    def set_rate(self, rate_limit_rpm: float, headroom: float | None = None) -> None:
        """Another rate from now on, for all who share the store; who waits is told within a second.

        A window of 60 s that holds the change holds no more than the larger of the two limits.
        """
        new = self._checked(rate_limit_rpm, self._headroom if headroom is None else headroom)
        with self._lock:
            self._figures = new
            keys = list(self._keys.values()) or [self._key_of("")] * (self.mode == "shared")
        for key in keys:
            self._store.apply(key, new, self._clock(), "configure", new)

    def state(self, worker_id: object = "") -> RateState:
        rate, factor, penalty, used, flying = self._apply(worker_id, "look")
        return RateState(rate, factor, penalty, int(used), int(flying))

    def states(self) -> dict[str, RateState]:
        """The budgets that this limiter has used, by `worker_id`; "": where all share one."""
        with self._lock:
            workers = list(self._keys)
        return {worker: self.state(worker) for worker in workers}

    def close(self) -> None:
        """Let go of the store's files or connections."""
        self._store.close()

    def ticket(self, worker_id: object = "", now: float | None = None) -> Ticket:
        """For `ask`: one for each request."""
        return Ticket(self._key(worker_id, now))

    def ask(self, ticket: Ticket, longest: float, now: float | None = None) -> float:
        """Take a permit for a ticket: 0; else seconds until it is to be asked for again. What comes up within
        `longest` seconds is reserved for it. `now` stands for the clock of a store that has none."""
        at = self._clock() if now is None else now
        return self._store.claim(ticket.key, self._figures, at, ticket, longest)

    def undo(self, ticket: Ticket, now: float | None = None) -> None:
        """Give back what a ticket has and has not used. Its place is nobody's if others came after."""
        self._store.undo(ticket.key, self._figures, self._clock() if now is None else now, ticket)

    def end(
        self,
        ticket: Ticket,
        now: float | None = None,
        *,
        penalty: float | None = None,
        refused: bool = False,
        went_well: bool = False,
    ) -> None:
        """What a ticket was for has ended: give it back, and have the budget learn from it."""
        at = self._clock() if now is None else now
        if self._held is not None:
            self._store.apply(ticket.key, self._figures, at, "release", ticket.lease)
        if penalty is not None:
            self._store.apply(ticket.key, self._figures, at, "penalize", penalty)
        elif refused:
            self._store.apply(ticket.key, self._figures, at, "push_back", ticket.at)
        elif went_well:
            self._store.apply(ticket.key, self._figures, at, "succeed")

    def __reduce__(self) -> tuple[Any, ...]:
        """So that a worker process has a limiter of the same store."""
        if not isinstance(self._where, str | os.PathLike):
            raise NotPicklable(
                "its budget is in this process only",
                subject="a rate limiter",
                cure="Give it a store: a path, or redis://host:port/0.",
            )
        burst, per_day, most = self._more
        more = {"name": self.name, "per_day": per_day, "max_in_flight": most, "burst": burst}
        return _remade, ((self._limit, self._headroom, self.mode, self._where), more)

    def _checked(self, limit: float, headroom: float) -> Figures:
        number("rate_limit_rpm", limit, above=0)
        number("headroom", headroom, above=0, most=1)
        figures = gcra.figures(limit, headroom, *self._more)
        self._limit, self._headroom = limit, headroom
        return figures

    def _key_of(self, worker: str) -> str:
        return f"{self.name}/{worker}" if self.mode == "independent" else self.name

    def _key(self, worker_id: object, now: float | None = None) -> str:
        """The name of a worker's budget; the first time, the figures of this limiter are made its own."""
        worker = str(worker_id) if self.mode == "independent" else ""
        key = self._keys.get(worker)
        if key is None:
            key = self._key_of(worker)
            at = self._clock() if now is None else now
            self._store.apply(key, self._figures, at, "configure", self._figures)
            with self._lock:
                self._keys[worker] = key
        return key

    def _hold(self, ticket: Ticket) -> None:
        if self._held is not None:
            with self._lock:
                self._held.setdefault(ticket.key, []).append(ticket)

    def _apply(self, worker_id: object, step: str, *values: float) -> Any:
        return self._store.apply(self._key(worker_id), self._figures, self._clock(), step, *values)


def _remade(settings: tuple[Any, ...], more: dict[str, Any]) -> DistributedRateLimiter:
    return DistributedRateLimiter(*settings, **more)
