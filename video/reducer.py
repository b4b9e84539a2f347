"""The heart of the runner: what becomes of each item, as a pure reducer. Events go in as method calls,
instructions come out as values; there is no I/O and no clock here, so every race is a test with plain values.

    waiting -> leased -> done | failed | timed out | killed | quarantined | cancelled
       ^_________|  given back: its neighbour's worker died, it was never begun (uncharged),
                    or it may have killed its worker and runs again alone

It works on chunks. A lease is a chunk that the engine has; outcomes are made and ordered a chunk at a time;
an item gets a record of its own only once something happens to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from video import plan
from video.backends.base import ChunkLost, Ran, arrived
from video.errors import (
    BackendUnavailable,
    ItemCancelled,
    ItemTimeout,
    NotPicklable,
    Quarantined,
    RemoteError,
    TaskError,
    WorkerDied,
    WorkerOutOfMemory,
)
from video.gate import Gate
from video.outcome import Outcome, first_runs
from video.plan import ChunkSizes


@dataclass(frozen=True, slots=True)
class Rules:
    """What a batch has to keep to."""

    width: int
    """Items at once."""
    most_leases: int
    lookahead: int | None
    """None: as many as keep the workers busy."""
    timeout: float | None = None
    ordered: bool = True
    fast: bool = False
    """The first failure ends the batch."""
    max_kills: int = 1
    max_memory_kills: int = 2
    by_items: bool = False
    """The items of a lease run side by side: `width` bounds items in flight, not leases."""
    bounded: bool = False
    """`width` holds over all engines together: what an earlier one still runs takes room on the next."""
    gradual: bool = False
    """So it does until the next one has answered, but for one lease: what has just been begun elsewhere will
    have ended by then, if it is like the others."""
    degrades: bool = False
    """Where the engine breaks down, a simpler one is to take over what it had."""
    forgets: bool = False
    """A lease whose item was given up need not be waited for: the engine replaces its worker."""


@dataclass(slots=True)
class Record:
    """What has happened to an item that something has happened to."""

    attempts: int = 0
    kills: int = 0
    memory_kills: int = 0


@dataclass(slots=True)
class Lease:
    """A chunk that the engine has."""

    number: int
    indexes: Sequence[int]
    items: list[Any]
    alone: bool = False
    """Nothing else is with the engine: if this is lost, its item is to blame."""
    unbegun: int = 0
    """Workers that died over this chunk before any of it had begun."""
    settled: set[int] = field(default_factory=set)
    """Positions that are dealt with before the engine has answered for all."""
    due: float = 0.0
    """`time.monotonic()` before which no time limit can be over."""
    killed: bool = False
    """The engine was told to kill its worker, so that the death is nobody's fault."""


@dataclass(slots=True)
class Waiting:
    """Items that came back, or are to run alone."""

    indexes: Sequence[int]
    items: list[Any]
    alone: bool = False
    unbegun: int = 0


class Reducer:
    """The state of one batch.

    :param sizes: how large the next chunk is to be; told what items took.
    :param total: number of items, or None if nobody knows.
    :param gate: where its policies stand.
    :param order: indexes of the items in the order in which they are drawn, all of them; None: 0, 1, 2, ...
    """

    def __init__(
        self,
        rules: Rules,
        sizes: ChunkSizes,
        total: int | None,
        gate: Gate | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        self.rules = rules
        self.drawn = 0
        self.handed = 0
        self.done = 0
        """Items that have an outcome."""
        self.failed: Outcome[Any] | None = None
        """The first failure, where that is to end the batch."""
        self.ended = False
        """Nothing more will be drawn."""
        self._sizes = sizes
        self._total = total
        self._leases: dict[int, Lease] = {}
        self._elsewhere: set[int] = set()
        """Leases that an engine from before the last move has: they take no room on the one that runs now."""
        self.answer: tuple[float, float] | None = None
        """When the engine that runs now answered first, and the seconds of work in that; None: it has not."""
        self._open = 0
        """Items of the leases that are not settled."""
        self._exclusive = False
        """The only lease there is runs alone."""
        self._numbers = 0
        self._back: deque[Waiting] = deque()
        self._alone: deque[Waiting] = deque()
        self._records: dict[int, Record] = {}
        self._ready: dict[int, list[Outcome[Any]]] = {}
        """Outcomes in runs of consecutive items, by the first one's index."""
        self._unordered: list[list[Outcome[Any]]] = []
        self._gate = gate
        self._order = order
        self.broken: BackendUnavailable | None = None
        """The engine has broken down, and another is to be moved to."""
        self._now = 0.0
        """`time.monotonic()` of what happens."""
        self._look_at = float("inf")
        """When one that waits at the gate may go on, if the engine has room for it."""
        self._check_at = float("inf")
        self.news: list[list[Outcome[Any]]] = []
        """Outcomes since the caller looked, whether their turn has come or not, for whoever watches."""
        self.reruns: list[tuple[int, BaseException]] = []
        """(items, reason) of what came back since then."""

    def move(self, rules: Rules, sizes: ChunkSizes, least: float = 0.0) -> None:
        """What comes next goes to another engine; leases keep to the one that has them.

        :param least: see `ChunkSizes.follow`.
        """
        sizes.follow(self._sizes, least)
        self.rules, self._sizes, self.broken = rules, sizes, None
        self._elsewhere, self.answer = set(self._leases), None

    @property
    def work(self) -> float:
        """Seconds that items took in their workers."""
        return self._sizes.seconds

    # What to do next

    @property
    def finished(self) -> bool:
        """Every item has been handed out, or the batch is to end early."""
        return self.failed is not None or (self.ended and self.handed == self.drawn)

    @property
    def leased(self) -> bool:
        """The engine has something that is waited for."""
        return bool(self._leases)

    @property
    def waits(self) -> bool:
        """Some wait at the gate."""
        return self._gate is not None and self._gate.next_at < float("inf")

    def next_lease(self, now: float) -> Lease | int:
        """A chunk for the engine that has come back, or how many items to draw for a new one; 0: neither."""
        rules, self._now, self._look_at = self.rules, now, float("inf")
        # Until a time is known, chunks of one item would only fill the queue: dear where a call is (Dask).
        most = rules.most_leases if self._sizes.known else min(rules.most_leases, rules.width)
        if self._elsewhere:
            room = rules.width - len(self._elsewhere)
            if rules.bounded:
                most = min(most, max(0, room))
            elif rules.gradual and self.answer is None:
                most = min(most, max(1, room))
        if self.failed is not None or len(self._leases) - len(self._elsewhere) >= most:
            return 0
        room = rules.width
        if rules.by_items:
            room = min(room - self._open, self._sizes.limit)
            if room < 1:
                return 0
        if self._gate is not None and not self._exclusive:  # beside what runs alone there is no room
            self._look_again(self._gate, room if rules.by_items else self._sizes.next(None))
            self._look_at = self._gate.next_at
        if self._alone:
            return 0 if self._leases else self._lease(self._alone.popleft(), now)
        if self._exclusive:
            return 0
        if self._back:
            back = self._back.popleft()
            size = room if rules.by_items else self._sizes.next(None)
            if len(back.items) > size:
                rest = Waiting(back.indexes[size:], back.items[size:], unbegun=back.unbegun)
                self._back.appendleft(rest)
                back = Waiting(back.indexes[:size], back.items[:size], unbegun=back.unbegun)
            return self._lease(back, now)
        lookahead = rules.lookahead or plan.usual_lookahead(rules.width, self._sizes.next(None))
        free = lookahead - (self.drawn - self.handed)
        if self._order is not None and rules.ordered:
            # The first one's turn may come last, and all items are there anyway.
            free = max(1, len(self._order))
        if self.ended or free < 1:
            return 0
        left = None if self._total is None else max(1, self._total - self.drawn)
        return min(free, room if rules.by_items else self._sizes.next(left))

    def check_at(self) -> float:
        """`time.monotonic()` at which `overdue` is to be asked, or `next_lease`; infinite: never."""
        return min(self._check_at, self._look_at)

    def leases(self) -> Iterable[Lease]:
        return self._leases.values()

    def holder(self, index: int) -> Lease | None:
        """The lease that has this item."""
        return next((lease for lease in self._leases.values() if index in lease.indexes), None)

    def upcoming(self, count: int) -> Sequence[int]:
        """Indexes of the items that are drawn next."""
        ahead = range(self.drawn, self.drawn + count)
        return ahead if self._order is None else self._order[ahead.start : ahead.stop]

    def drawn_indexes(self) -> Sequence[int]:
        """Indexes of the items that were drawn."""
        return range(self.drawn) if self._order is None else self._order[: self.drawn]

    # What has happened

    def drew(self, items: list[Any], now: float) -> Lease | None:
        """Items were drawn from the input.

        :return: what of them may go to the engine now; None: nothing.
        """
        self._now = now
        indexes = self.upcoming(len(items))
        self.drawn += len(items)
        if self._gate is not None and not self._gate.idle(now):
            self._gate.foresee(indexes, items)
            places = [
                place for place, item in enumerate(items) if self._admit(self._gate, indexes[place], item)
            ]
            if not places:
                return None
            if len(places) < len(items):
                some = Waiting([indexes[place] for place in places], [items[place] for place in places])
                return self._lease(some, now)
        return self._lease(Waiting(indexes, items), now)

    def returned(self, number: int, ran: Ran, *, last: bool = True, now: float = 0.0) -> None:
        """The engine has answered for a lease, or for some of its items.

        :param last: nothing more will come; items without an answer were not begun.
        """
        self._now = now
        lease = self._leases.get(number)
        if lease is None:
            return
        if len(ran.values) > len(lease.items):
            self.lost(number, RemoteError("its engine answered for more items than it was given"), now)
            return
        self._sizes.observe(ran.seconds)
        if self.answer is None and number not in self._elsewhere:
            self.answer = now, sum(ran.seconds)
        self._keep(lease, ran)
        if last and len(ran.values) == len(lease.items):
            self._close(lease)
            return
        self._settle(lease, ran)
        if last:
            self._close(lease)
            self._give_back(lease)

    def lost(self, number: int, error: BaseException, now: float = 0.0) -> None:
        """The engine has lost a lease, or could not take it."""
        self._now = now
        lease = self._leases.get(number)
        if lease is None:
            return
        lost = error if isinstance(error, ChunkLost) else None
        if lost is not None:
            self._keep(lease, lost.finished)
            self._settle(lease, lost.finished)
            error = lost.error
        left_behind = number in self._elsewhere
        self._close(lease)
        if lease.killed or (lost is not None and lost.innocent):
            # For the sake of one item, and perhaps when its worker had gone on to another already.
            if lost is not None and lost.position is not None:
                for position in self._left(lease):
                    if position == lost.position or self.rules.by_items:
                        self._record(lease.indexes[position]).attempts += 1
            self._give_back(lease, lease.unbegun)
        elif isinstance(error, BackendUnavailable) and (left_behind or self.rules.degrades):
            self._break_down(lease, error, left_behind)
        elif lost is None or (lost.position is None and not lost.certain):
            self._suspect(lease, error)
        elif lost.position is None or lost.position >= len(lease.items):
            self._unbegun(lease, len(lost.finished.values), error)
        else:
            if lost.position not in lease.settled:
                lease.settled.add(lost.position)
                self._blame(lease, lost.position, error, certain=lost.certain or lease.alone)
            self._give_back(lease)

    def recalled(self, number: int) -> None:
        """The engine has given a lease back, and has begun none of it."""
        lease = self._leases.get(number)
        if lease is not None:
            self._close(lease)
            self._give_back(lease, lease.unbegun)

    def overdue(self, now: float, running: dict[int, tuple[int, float] | None]) -> list[int]:
        """Time may be up for some.

        :param running: of each lease, the position and the start of the item that runs; None: none does.
        :return: the leases to kill.
        """
        timeout, self._now = self.rules.timeout, now
        kills: list[int] = []
        self._check_at = float("inf")
        if timeout is None:
            return kills
        for lease in list(self._leases.values()):
            if lease.due <= now:
                # What has not begun cannot begin before now.
                position, start = running.get(lease.number) or (0, now)
                if now - start < timeout:
                    # A start that is put off (it still loads) is no promise: it may begin at any time.
                    lease.due = min(start, now) + timeout
                else:
                    # One that was cancelled before it began is to be stopped all the same, and so is a
                    # worker that has ended its last item and cannot get rid of the results.
                    if position < len(lease.items) and position not in lease.settled:
                        reason = ItemTimeout(
                            f"ran longer than its limit of {timeout:g} s",
                            cure="Raise `timeout`, or look at this input.",
                        )
                        self._give_up(lease, position, reason, now - start)
                    kills.append(self._kill(lease))
            self._check_at = min(self._check_at, lease.due)
        return kills

    def cancel(self, index: int, running: tuple[int, float] | None, now: float) -> tuple[bool, int | None]:
        """An item is not wanted any more.

        :param running: as in `overdue`, of the lease that holds it.
        :return: whether it will have been cancelled, and the lease to kill, if any.
        """
        reason, self._now = ItemCancelled("it was cancelled"), now
        for queue in (self._back, self._alone):
            for place, waiting in enumerate(queue):
                if index in waiting.indexes:
                    at = waiting.indexes.index(index)
                    indexes = [*waiting.indexes[:at], *waiting.indexes[at + 1 :]]
                    items = [*waiting.items[:at], *waiting.items[at + 1 :]]
                    del queue[place]
                    if items:
                        queue.insert(place, Waiting(indexes, items, waiting.alone, waiting.unbegun))
                    self._fail(index, waiting.items[at], reason, ran=False)
                    return True, None
        if self._gate is not None and self._gate.drop(index, now):
            record = self._records.pop(index, None) or Record()
            self._finish([Outcome(index, None, reason, record.attempts)])
            return True, None
        lease = self.holder(index)
        if lease is None:
            return False, None
        position = lease.indexes.index(index)
        runs = running is not None and running[0] == position and running[1] <= now
        if position in lease.settled or (running is not None and running[0] > position):
            return False, None
        self._give_up(lease, position, reason, now - running[1] if runs and running else 0.0, ran=runs)
        return True, self._kill(lease) if runs else None

    # How it is kept

    def due(self) -> list[list[Outcome[Any]]]:
        """Runs of outcomes that are to be handed out now."""
        if not self.rules.ordered:
            runs, self._unordered = self._unordered, []
            self.handed += sum(map(len, runs))
            return runs
        runs = []
        while (run := self._ready.pop(self.handed, None)) is not None:
            runs.append(run)
            self.handed += len(run)
        return runs

    def unhanded(self) -> list[Outcome[Any]]:
        """Outcomes that wait for their turn, by index."""
        runs = (
            self._unordered if not self.rules.ordered else [self._ready[key] for key in sorted(self._ready)]
        )
        return [outcome for run in runs for outcome in run]

    def waiting(self) -> list[int]:
        """Items that are drawn and with no engine."""
        back = [index for queue in (self._back, self._alone) for one in queue for index in one.indexes]
        return sorted(back if self._gate is None else back + self._gate.waiting())

    def _lease(self, waiting: Waiting, now: float) -> Lease:
        self._numbers += 1
        lease = Lease(self._numbers, waiting.indexes, waiting.items, waiting.alone, waiting.unbegun)
        self._open += len(lease.items)
        self._exclusive = waiting.alone
        if self.rules.timeout is not None:
            lease.due = now + self.rules.timeout  # it cannot have begun before now
            self._check_at = min(self._check_at, lease.due)
        self._leases[lease.number] = lease
        return lease

    def _close(self, lease: Lease) -> None:
        """The engine has nothing of it any more."""
        del self._leases[lease.number]
        self._elsewhere.discard(lease.number)
        self._open -= len(lease.items) - len(lease.settled)
        self._exclusive = False

    def _settle(self, lease: Lease, ran: Ran) -> None:
        """Some of its items need nothing more, and others do."""
        before = len(lease.settled)
        lease.settled.update(range(len(ran.values)) if ran.positions is None else ran.positions)
        self._open -= len(lease.settled) - before

    def _keep(self, lease: Lease, ran: Ran) -> None:
        """Results become outcomes, but for those of items that have one."""
        count, indexes = len(ran.values), lease.indexes
        positions = range(count) if ran.positions is None else ran.positions
        if ran.errors or self._records or (lease.settled and not lease.settled.isdisjoint(positions)):
            self._keep_one_by_one(lease, ran, positions)
            return
        if ran.positions is not None:
            first = positions[0] if positions else 0
            if list(positions) == list(range(first, first + count)):
                indexes = indexes[first : first + count]
            else:
                indexes = [indexes[position] for position in positions]
        outcomes = first_runs(indexes, ran.values, ran.seconds)
        if self._gate is not None:
            if self._gate.saw_any:
                for position, outcome in zip(positions, outcomes, strict=True):
                    self._end(lease.items[position], outcome)
                return
            self._gate.passed(count, self._now)
        for run in [outcomes] if type(indexes) is range else [[outcome] for outcome in outcomes]:
            self._finish(run)

    def _keep_one_by_one(self, lease: Lease, ran: Ran, positions: Sequence[int]) -> None:
        """The same where some items are not like the others."""
        errors = {place: arrived(error, text) for place, error, text in ran.errors}
        for place, (position, value, seconds) in enumerate(
            zip(positions, ran.values, ran.seconds, strict=True)
        ):
            if position in lease.settled:
                continue
            index = lease.indexes[position]
            record = self._records.pop(index, None)
            attempts = 1 if record is None else record.attempts + 1
            outcome = Outcome(index, value, errors.get(place), attempts, seconds)
            self._end(lease.items[position], outcome, alone=lease.alone)

    # At the gate

    def _admit(self, gate: Gate, index: int, item: Any, *, alone: bool = False) -> bool:
        """Whether an item may go to the engine now; else it waits there, or has its answer."""
        record = self._records.get(index)
        verdict = gate.admit(index, item, 0 if record is None else record.attempts, self._now, alone=alone)
        if isinstance(verdict, Outcome):
            self._records.pop(index, None)
            self._finish([verdict])
        return verdict is None

    def _look_again(self, gate: Gate, most: int) -> None:
        """Let on what has waited long enough."""
        indexes, items = [], []
        for index, item, alone in gate.due(self._now, most):
            if not self._admit(gate, index, item, alone=alone):
                continue
            if alone:
                self._alone.append(Waiting([index], [item], alone=True))
            else:
                indexes.append(index)
                items.append(item)
        if items:
            self._back.append(Waiting(indexes, items))

    def _end(self, item: Any, outcome: Outcome[Any], *, alone: bool = False) -> None:
        """An attempt has come to something: that is its outcome, or the item waits for the next one."""
        gate, index = self._gate, outcome.index
        if gate is None:
            self._finish([outcome])
        elif outcome.error is None and not gate.saw(index):
            gate.passed(1, self._now)
            self._finish([outcome])
        else:
            verdict = gate.settle(item, outcome, self._now, alone=alone)
            if isinstance(verdict, Outcome):
                self._finish([verdict])
            else:
                self._record(index).attempts = outcome.attempts
                self.reruns.append((1, outcome.error or TaskError("its result was refused by a policy")))

    def _again_alone(self, index: int, item: Any) -> None:
        """It ran, and may have killed its worker: it runs again with nothing else on the engine."""
        if self._gate is not None:
            self._gate.again(index, item, self._now)
        else:
            self._alone.append(Waiting([index], [item], alone=True))

    def _finish(self, outcomes: list[Outcome[Any]]) -> None:
        if not outcomes:
            return
        self.done += len(outcomes)
        self.news.append(outcomes)
        if self.rules.ordered:
            self._ready[outcomes[0].index] = outcomes
        else:
            self._unordered.append(outcomes)
        if self.rules.fast and self.failed is None:
            # What the caller cancelled has not failed.
            bad = (
                one for one in outcomes if one.error is not None and not isinstance(one.error, ItemCancelled)
            )
            self.failed = next(bad, None)

    def _record(self, index: int) -> Record:
        return self._records.setdefault(index, Record())

    def _fail(self, index: int, item: Any, error: BaseException, seconds: float = 0.0, *, ran: bool) -> None:
        record = self._records.pop(index, None) or Record()
        self._end(item, Outcome(index, None, error, record.attempts + ran, seconds))

    def _give_up(
        self, lease: Lease, position: int, error: BaseException, seconds: float, *, ran: bool = True
    ) -> None:
        """An item gets its outcome while the engine still has it."""
        lease.settled.add(position)
        self._open -= 1
        self._fail(lease.indexes[position], lease.items[position], error, seconds, ran=ran)

    def _kill(self, lease: Lease) -> int:
        """The engine is told to give up what it runs of a lease."""
        lease.killed, lease.due = True, float("inf")
        if self.rules.forgets and len(lease.settled) == len(lease.items):
            self._close(lease)
        return lease.number

    def _left(self, lease: Lease) -> list[int]:
        """Positions that are not dealt with."""
        return [position for position in range(len(lease.items)) if position not in lease.settled]

    def _give_back(self, lease: Lease, unbegun: int = 0) -> None:
        """What is left was not begun: it goes first, and is not charged."""
        left = self._left(lease)
        if not left:
            return
        if left[-1] - left[0] < len(left):
            indexes = lease.indexes[left[0] : left[-1] + 1]
        else:
            indexes = [lease.indexes[position] for position in left]
        items = [lease.items[position] for position in left]
        (self._alone if lease.alone else self._back).append(Waiting(indexes, items, lease.alone, unbegun))

    def _unbegun(self, lease: Lease, done: int, error: BaseException) -> None:
        """A worker died between two items, or before the first: nobody is to blame, unless it happens to the
        same ones once more than `max_kills` allows where they ran."""
        times = lease.unbegun + 1 if done == 0 else 0
        if times <= self.rules.max_kills:
            self._give_back(lease, times)
        elif len(lease.items) > 1:
            self._one_by_one(lease, error)
        elif 0 not in lease.settled:
            self._fail(lease.indexes[0], lease.items[0], error, ran=False)

    def _blame(self, lease: Lease, position: int, error: BaseException, *, certain: bool) -> None:
        """An item's worker died while it ran."""
        index = lease.indexes[position]
        record = self._record(index)
        record.attempts += 1
        if certain:
            if isinstance(error, WorkerOutOfMemory):
                record.memory_kills += 1
            else:
                record.kills += 1
        kills = record.kills + record.memory_kills
        if record.kills >= self.rules.max_kills or record.memory_kills >= self.rules.max_memory_kills:
            if kills > 1:
                exitcode = error.exitcode if isinstance(error, WorkerDied) else None
                quarantined = Quarantined(
                    f"has killed {kills} workers and is not run again; the last time: {error}",
                    kills=kills,
                    exitcode=exitcode,
                )
                quarantined.__cause__ = error
                error = quarantined
            self._fail(index, lease.items[position], error, ran=False)  # it did, and that is counted above
            return
        # Alone, so that a second death can have no other cause, and leaves all memory to it.
        self._again_alone(index, lease.items[position])
        self.reruns.append((1, error))

    def _break_down(self, lease: Lease, error: BackendUnavailable, left_behind: bool) -> None:
        """Its engine has broken down, or an earlier one has, for which nothing more needs to be done."""
        if not left_behind:
            self.broken = error
        if not error.begun:
            self._give_back(lease, lease.unbegun)
        elif len(lease.items) > 1:
            self._one_by_one(lease, error)
        elif left := self._left(lease):
            self._fail(lease.indexes[left[0]], lease.items[left[0]], error, ran=True)

    def _suspect(self, lease: Lease, error: BaseException) -> None:
        """A lease failed as a whole, and the engine cannot say why."""
        left = self._left(lease)
        if isinstance(error, BackendUnavailable | ItemCancelled):
            for position in left:  # to run them again would end no better
                self._fail(lease.indexes[position], lease.items[position], error, ran=False)
        elif isinstance(error, NotPicklable):
            if len(lease.items) > 1:
                self._one_by_one(lease, error)
            elif left:
                self._fail(lease.indexes[0], lease.items[0], error, ran=False)
        elif not lease.alone:
            self._one_by_one(lease, error, alone=True)
        elif isinstance(error, WorkerDied) and left:
            self._blame(lease, 0, error, certain=True)
        elif left:
            self._fail(lease.indexes[0], lease.items[0], error, ran=True)

    def _one_by_one(self, lease: Lease, error: BaseException, *, alone: bool = False) -> None:
        """Find the item that is to blame by running each by itself.

        :param alone: with nothing else on the engine, since its end may be another's fault.
        """
        left = self._left(lease)
        for position in left:
            index, item = lease.indexes[position], lease.items[position]
            if alone:
                self._record(index).attempts += 1
                self._again_alone(index, item)
            else:
                self._back.append(Waiting([index], [item], unbegun=lease.unbegun))
        if left:
            self.reruns.append((len(left), error))
