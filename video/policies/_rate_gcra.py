"""How a rate is kept: the generic cell rate algorithm with reservations, as steps over plain numbers.

A budget is a `State`. Each step takes it and what is asked, and leaves the state that follows; a store
applies one step at a time, after it has had the budget `observe` the time. Nothing here reads a clock or
waits.

**The law: no window of 60 s, both ends included, holds more than the limit.** Permits are spaced by T =
60 s / (limit x headroom), and one may come up to `tolerance` before its turn, so that what was late can
catch up. A window of W seconds then holds at most floor((W + tolerance) / T) + 1 of them (ITU-T I.371,
annex A: GCRA(T, tolerance)). With n = limit x headroom, that is no more than the limit as long as

    n + tolerance / T < limit

so it is the headroom that pays for any burst. One unit and the burst are kept back from the tolerance where
the headroom has at least two permits: they pay for one jump of the clock forward, of any length.

Two moments are kept. `tat`, the theoretical arrival time, follows the permits that were really had, at the
times when they were had, and is what the law rests on: a caller that wakes up late, or a whole process that
was stopped, can break nothing. `tail` is the end of the queue: who cannot go at once reserves the next place,
sleeps until its time comes, and is then asked for again, so that waiting is one sleep and first come is first
served. A place that nobody comes for, since its process was killed, costs the queue one interval.

A clock that was put back: no time has passed. A clock that was put forward: between two looks at it no more
is credited than the burst and one interval. Both leave the law whole, and nobody waits for the clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

INFINITE = math.inf
NAN = math.nan
WINDOW = 60.0
"""Seconds; what "rpm" counts in."""
SPARE = 0.005
"""Of the limit, kept back where `headroom` leaves less: without any, a permit that is late by a
microsecond is lost. The rate used stays above 99 %."""
EARLY = 1e-6
"""Seconds; who comes this much too early is not sent to sleep again for the rounding of its clock."""
BURST = 5
"""Permits at once after a pause, unless the user says otherwise or the headroom does not pay for it ..."""
BURST_SECONDS = 0.005
"""... or, at high rates, what comes in this time."""
BACK = 1.0
"""Seconds; readings of one clock by several threads may cross. More than that, and it was put back."""
BUSY = 0.02
"""Seconds after which a place among those in flight is asked for again."""
CUT = 0.5
"""What is left of the rate after a service pushed back (RFC 5681 halves as well)."""
LEAST = 0.01
"""Of the rate: it is cut no further."""
RECOVERY = 0.25
"""Of the rate, that a minute of successes adds."""
DAY = 86400.0

Holder = tuple[int, int]
"""A process: its id and when it started, in ticks since the boot."""


class Figures(NamedTuple):
    """What a budget allows."""

    interval: float
    """Seconds between two permits."""
    tolerance: float
    """Seconds that a permit may come before its turn."""
    burst: float
    """Seconds of the tolerance that are open to new callers: how many go at once after a pause."""
    per_day: float
    """Permits a day; infinite, any number."""
    most: float
    """Permits in flight; infinite, any number."""


def figures(
    limit: float, headroom: float, burst: int | None, per_day: int | None, most: int | None
) -> Figures:
    """Figures that keep the law; `burst` is cut down to what the headroom pays for."""
    whole = float(math.floor(limit)) if limit >= 1 else limit
    steady = min(limit * headroom, whole * (1 - SPARE))
    interval = WINDOW / steady
    slack = whole - steady
    wanted = max(BURST, BURST_SECONDS / interval) if burst is None else burst
    if slack >= 2:
        more = min(wanted - 1, (slack - 1) / 2)
        tolerance = slack - 1 - more
    else:
        more = min(wanted - 1, slack)
        tolerance = slack
    early = max(0.0, tolerance * interval - 2 * EARLY)
    return Figures(
        interval,
        early,
        min(more * interval, early),
        INFINITE if per_day is None else float(per_day),
        INFINITE if most is None else float(most),
    )


NUMBERS = (
    *Figures._fields,
    *("tat", "tail", "last", "until", "factor", "cut", "generation", "day", "used", "wall", "boot"),
)


class State:
    """A budget. Times are by its store's clock."""

    __slots__ = (*NUMBERS, "holders")

    def __init__(self, now: float, figures: Figures) -> None:
        self.interval, self.tolerance, self.burst, self.per_day, self.most = figures
        self.tat = now
        """When the next permit would come if all came evenly."""
        self.tail = now
        """The same with all that are reserved."""
        self.last = now
        """The last look at the clock."""
        self.until = -INFINITE
        """No permit before: a penalty."""
        self.factor = 1.0
        """Of the rate, that is used since a service pushed back."""
        self.cut = -INFINITE
        """When it last did."""
        self.generation = 0.0
        """Reservations of an older one no longer hold."""
        self.day = -INFINITE
        self.used = 0.0
        """Permits on that day; counted where there is a quota."""
        self.wall = 0.0
        """The time in seconds since the epoch: days are counted by it."""
        self.boot = 0.0
        """After which start of the machine it was last written."""
        self.holders: dict[Holder, int] = {}
        """Permits in flight of each process."""

    def figures(self) -> Figures:
        return Figures(self.interval, self.tolerance, self.burst, self.per_day, self.most)


class Ticket:
    """What one caller has: a place in the queue, or a permit."""

    # Defaults of the class, since most tickets are filled once and at once: half the cost of making one.
    slot = NAN
    """When it may go; NaN: no place is reserved."""
    generation = 0.0
    granted = False
    at = 0.0
    """When it was granted, by the store's clock."""
    factor = 1.0
    """What was used of the rate then."""
    moved = (0.0, 0.0, 0.0, 0.0)
    """`tat` and `tail` before, and after: where nothing has come since, it can be given back."""
    lease = 0.0
    """Which of the permits in flight it is, where a store counts them one by one."""

    def __init__(self, key: str = "") -> None:
        self.key = key


def observe(s: State, now: float) -> None:
    """Look at the clock: `s.last` is the time that the next step goes by."""
    gap = now - s.last
    if gap < 0:
        if gap >= -BACK:
            return
        _shift(s, gap)
    else:
        ready = s.tat - s.tolerance
        # Up to `ready`, and from one permit to the next, somebody may have waited for a turn.
        over = (now - ready if ready > s.last else gap - s.interval / s.factor) - s.burst
        if over > 0:
            s.tat += over
    s.last = now


def started(s: State, now: float, wall: float, boot: float) -> None:
    """The machine was started anew: its clock began again, and those who held permits are gone. How long it
    was off is known only by the clock on the wall; one that has gone back says nothing."""
    if boot != s.boot:
        _shift(s, now - max(0.0, wall - s.wall) - s.last)
        s.boot = boot
        s.holders.clear()


def claim(s: State, now: float, ticket: Ticket, longest: float, holder: Holder = (0, 0)) -> float:
    """Observe the time, and take a permit: 0, and the ticket holds it; else the seconds until it is worth
    asking again.

    :param longest: seconds; a place that comes up later than that is not reserved.
    """
    # This is `observe`, written out: it is most of what a permit costs.
    gap = now - s.last
    factor = s.factor
    step = s.interval if factor == 1.0 else s.interval / factor
    if gap < 0:
        observe(s, now)
        now = s.last
    else:
        ready = s.tat - s.tolerance
        over = (now - ready if ready > s.last else gap - step) - s.burst
        if over > 0:
            s.tat += over
        s.last = now

    tat, tail = s.tat, s.tail
    slot = ticket.slot
    new = slot != slot or ticket.generation != s.generation  # NaN is not itself
    if new:
        slot = tail - s.burst
        if slot < now:
            slot = now
    start = tat - s.tolerance
    if start < slot:
        start = slot
    if start < s.until:
        start = s.until
    if s.per_day != INFINITE:
        _turn(s)
        if s.used >= s.per_day:
            return max(start - now, (s.day + 1) * DAY - s.wall, BUSY)

    wait = start - now
    if wait <= EARLY:
        if s.most == INFINITE or sum(s.holders.values()) < s.most:
            s.tat = then = (tat if tat > now else now) + step
            end = tail
            if new:
                s.tail = end = (tail if tail > start else start) + step
            if s.most != INFINITE:
                s.holders[holder] = s.holders.get(holder, 0) + 1
            if s.per_day != INFINITE:
                s.used += 1.0
            ticket.slot = slot
            ticket.generation = s.generation
            ticket.granted = True
            ticket.at = now
            ticket.factor = factor
            ticket.moved = tat, tail, then, end
            return 0.0
        wait = BUSY
    if new and wait <= longest:
        s.tail = (tail if tail > start else start) + step
        ticket.slot = start
        ticket.generation = s.generation
        ticket.moved = tat, tail, tat, s.tail
    return wait


def undo(s: State, ticket: Ticket, holder: Holder = (0, 0)) -> None:
    """Give back what a ticket has and nobody has used; its place, only where nobody has come after it."""
    if ticket.granted:
        release(s, holder)
        s.used = max(0.0, s.used - 1.0)
        if (s.tat, s.tail) == ticket.moved[2:]:
            s.tat, s.tail = ticket.moved[:2]
    elif ticket.generation == s.generation and s.tail == ticket.moved[3]:
        s.tail = ticket.moved[1]


def release(s: State, holder: Holder = (0, 0)) -> None:
    """What had a permit has ended."""
    left = s.holders.get(holder, 0) - 1
    if left > 0:
        s.holders[holder] = left
    else:
        s.holders.pop(holder, None)


def penalize(s: State, seconds: float) -> None:
    """No permit for so many seconds; those who wait queue up anew, and come evenly after it."""
    if s.last + seconds > s.until:
        s.until = s.last + seconds
        _requeue(s, s.until)


def push_back(s: State, since: float) -> None:
    """The service refused a request that was permitted at `since`: half the rate from now on. What was under
    way when the rate was last cut does not cut it again."""
    if since >= s.cut:
        s.factor = max(LEAST, s.factor * CUT)
        s.cut = s.last
        _requeue(s, s.last)


def succeed(s: State) -> float:
    """The service answered: a little more of the rate, so much that a minute of it adds `RECOVERY`. Says
    what is used of the rate."""
    if s.factor < 1.0:
        s.factor = min(1.0, s.factor + RECOVERY * s.interval / (WINDOW * s.factor))
    return s.factor


def configure(s: State, new: Figures) -> None:
    """Other figures from now on. As many permits are counted as before, so a window that holds the change
    holds no more than the larger of the two limits."""
    if s.figures() == new:
        return
    if s.tat > s.last:
        s.tat = s.last + (s.tat - s.last) * new.interval / s.interval
    if new.interval != s.interval:
        s.interval, s.tolerance, s.burst = new[:3]
        _requeue(s, s.last)
    s.interval, s.tolerance, s.burst, s.per_day, s.most = new


def look(s: State) -> tuple[float, float, float, float, float]:
    """Permits a minute, the part of the rate that is used, seconds of penalty left, permits of today,
    permits in flight."""
    if s.per_day != INFINITE:
        _turn(s)
    rate = WINDOW / s.interval * s.factor
    return rate, s.factor, max(0.0, s.until - s.last), s.used, float(sum(s.holders.values()))


def _shift(s: State, by: float) -> None:
    s.tat += by
    s.tail += by
    s.last += by
    s.until += by
    s.cut += by
    _requeue(s, s.last)


def _requeue(s: State, at: float) -> None:
    """Reservations no longer hold: who has one asks anew when its time comes, and is served from `at` on."""
    s.tail = max(at + s.burst, min(s.tail, s.tat))
    s.generation += 1.0


def _turn(s: State) -> None:
    """Days begin at midnight, UTC. A clock put back into yesterday gives nothing anew; a day far ahead was
    written by a clock that was wrong."""
    day = float(s.wall // DAY)
    if day > s.day:
        s.day, s.used = day, 0.0
    elif s.day > day + 1:
        s.day = day
