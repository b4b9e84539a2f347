"""The memory guard: a batch, its workers and their children keep to a budget.

Three things keep it, each before the next is needed:

1. An item begins only where there is room for what one is predicted to need; else it waits in the batch, and
   holds no worker.
2. Once little is left, garbage is collected here. A worker process that holds more than its share after a
   call is replaced in any case (`max_worker_memory_mb` of its engine).
3. Where the budget is overrun all the same, the fattest worker process is ended at once. Its item runs again,
   alone; one that overruns the budget alone fails with `WorkerOutOfMemory`.

What runs on threads cannot be ended, and what runs on other machines is not counted.

The need of an item is predicted from those that run: what all hold above what was held before any ran, by
their number; the largest such figure counts, and fades by half in `FADE_SECONDS`, or while `FADE_ITEMS` end.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from video import resources
from video.errors import MemoryExceeded
from video.events import logger
from video.outcome import Outcome
from video.policies._checks import number
from video.policies._meter import Held, Meter
from video.policies.base import Job, Verdict

LOOK_SECONDS = 0.1
"""From one look at what is held to the next; a look takes a millisecond."""
FADE_SECONDS = 10.0
FADE_ITEMS = 16
CALM = 0.5
"""Below this share of the budget, and with room for many more items, whole chunks pass unseen."""
MANY = 64
ANY = 1_000_000
FULL = 0.9
"""Above this share of the budget garbage is collected."""
COLLECT_SECONDS = 2.0
"""From one collection to the next: each takes a tenth of a second where there are a million objects."""
SETTLE_SECONDS = 0.5
"""How long an ended worker's memory may take to be free again."""
PATIENCE_SECONDS = 10.0
"""How long items wait where nothing runs and the budget is overrun, before they fail."""
HEARD_SECONDS = 1.0
"""A batch that has not been heard of for so long is not being read: its items may have ended long ago."""
UNHEARD_PATIENCE_SECONDS = 60.0
"""The same as `PATIENCE_SECONDS` where items of such a batch may run."""
POLLED = 64
"""Of those that wait, so many are looked at each time; the next as many half as often, and so on."""


class MemoryPolicy:
    """Keeps all items together below a budget.

    :param limit_bytes: that this process and all its children may hold. What the machine, or the control
        group, has left counts where that is less.
    :param collect: collect garbage where little is left.
    :param look: what is held, and `free` what is left beside that; by default the system is asked.
    :raises ConfigError: naming the argument.
    """

    name = "memory"
    answers = False

    def __init__(
        self,
        limit_bytes: float,
        *,
        collect: bool = True,
        look: Callable[[float], Held] | None = None,
        free: Callable[[], float] = resources.free_memory,
    ) -> None:
        number("limit_bytes", limit_bytes, above=0.0)
        self.limit_bytes = limit_bytes
        self._collect = collect
        self._asked_look = look
        self._free = free
        self._base = math.nan
        """Bytes held before any item ran."""
        self._need = 0.0
        self._budget = limit_bytes
        """`limit_bytes`, or what is held and free together."""
        self._held = Held(0.0, 0.0)
        self._collect_at = self._spare_until = self._looked = -math.inf
        self._peak = 0.0
        self._counts = {"put_off": 0, "collected": 0, "ended": 0}
        self._blind = False
        """It was said that nothing can be seen."""
        self._start()

    def _start(self) -> None:
        """In this process nothing runs so far."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._look = self._asked_look or Meter()
        self._flying: dict[int, int] = {}
        """Of each batch, items that were admitted and have not ended."""
        self._heard: dict[int, float] = {}
        """When each batch last said anything."""
        self._looks = 0
        self._new = 0
        """Items that began after the last look, and have not ended."""
        self._gone = 0
        """Items that have ended since then."""
        self._passing = False
        """Some of them passed unseen, and others of their chunks may run."""
        self._seen = False
        """Items have been looked at while they ran, or have ended before that could be."""
        self._waiting: dict[Job, int] = {}
        """Those that were put off, first come first, each with its number."""
        self._numbers = 0
        self._vain_since: float | None = None
        """Since when the budget is overrun and nothing runs that could end."""

    def _mine(self) -> contextlib.AbstractContextManager[object]:
        """The lock. A forked child has its parent's, which may be held, and counts that are not its own."""
        if self._pid != os.getpid():
            self._start()
        return self._lock

    def admit(self, job: Job, now: float) -> Verdict:
        with self._mine():
            self._heard[job.batch] = now
            self._refresh(now)
            flying = self._running(now)
            room = self._room(flying)
            if len(self._waiting) < room or job in itertools.islice(self._in_turn(now), room):
                self._waiting.pop(job, None)
                job.notes["memory"] = self._looks
                self._flying[job.batch] = self._flying.get(job.batch, 0) + 1
                self._new += 1
                return None
            place = self._put_off(job)
            if flying or self._used <= self._budget:
                self._vain_since = None  # something will end
            elif self._vain_since is None:
                self._vain_since = now
            patience = UNHEARD_PATIENCE_SECONDS if self._flying else PATIENCE_SECONDS
            if self._vain_since is None or now - self._vain_since < patience:
                return LOOK_SECONDS * (1 + place // POLLED)
            del self._waiting[job]
            words = f"{_gb(self._held.own)} in this process and {_gb(self._held.others)} in its children"
            error = MemoryExceeded(
                f"was not begun: {words} are held while no item runs, and the limit is {_gb(self._budget)}",
                cure="Raise memory_limit_gb, or hold less in this program.",
            )
            return Outcome(job.index, None, error, job.attempts, origin=self.name)

    def _put_off(self, job: Job) -> int:
        """How many wait before it, at most."""
        first = next(iter(self._waiting.values()), self._numbers)
        if job in self._waiting:
            return self._waiting[job] - first
        self._counts["put_off"] += 1
        if job.attempts:  # it had its turn once
            self._waiting = {job: first - 1, **self._waiting}
            return 0
        self._waiting[job] = self._numbers
        self._numbers += 1
        return self._waiting[job] - first

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        self.withdraw(job, now)
        return None

    def withdraw(self, job: Job, now: float) -> None:
        with self._mine():
            self._heard[job.batch] = now
            self._waiting.pop(job, None)
            began = job.notes.pop("memory", None)
            if began is None or job.batch not in self._flying:
                return
            self._gone += 1
            self._new -= began == self._looks
            self._flying[job.batch] -= 1
            if not self._flying[job.batch]:
                del self._flying[job.batch]

    def idle(self, now: float) -> bool:
        """There is room for many more."""
        with self._mine():
            self._refresh(now)
            roomy = self._used + MANY * self._need < CALM * self._budget
            return roomy and self._seen and not self._waiting

    def passed(self, count: int, now: float) -> None:
        with self._mine():
            self._gone += count
            self._passing = True

    def watch(self, now: float, batch: int) -> tuple[float, str]:
        """To be asked while anything runs: when next, and why the fattest worker has to end now, if so."""
        with self._mine():
            self._heard[batch] = now
            self._refresh(now)
            why = ""
            helps = bool(self._held.others) and self._held.own <= self._budget
            if helps and self._used > self._budget and now >= self._spare_until:
                self._spare_until = now + SETTLE_SECONDS
                why = f"{_gb(self._used)} were held together, and the limit is {_gb(self._budget)}"
            return self._looked + LOOK_SECONDS, why

    def ended(self) -> None:
        """A worker was ended, as `watch` said."""
        with self._mine():
            self._counts["ended"] += 1

    def tree(self, pid: int) -> float:
        """Bytes that a child process and its own children hold."""
        return self._look.tree(pid) if isinstance(self._look, Meter) else 0.0

    def counts(self) -> dict[str, int]:
        """`peak_bytes` held so far, `limit_bytes`, and what one item is predicted to need (`need_bytes`); how
        many items were `put_off`, how often garbage was `collected`, how many workers were `ended`."""
        with self._mine():
            return {
                "peak_bytes": round(self._peak),
                "limit_bytes": round(self.limit_bytes),
                "need_bytes": round(self._need),
                **self._counts,
            }

    @property
    def _used(self) -> float:
        return self._held.own + self._held.others

    def _running(self, now: float) -> int:
        """Items that were admitted and have not ended, of batches that somebody reads."""
        return sum(count for batch, count in list(self._flying.items()) if self._is_read(batch, now))

    def _in_turn(self, now: float) -> Iterator[Job]:
        """Those that wait, of batches that somebody reads."""
        for job in list(self._waiting):
            if self._is_read(job.batch, now):
                yield job

    def _is_read(self, batch: int, now: float) -> bool:
        return now - self._heard.get(batch, -math.inf) < HEARD_SECONDS

    def _room(self, flying: int) -> int:
        """Items that may begin now, beside so many that run."""
        need = self._need
        left = self._budget - max(self._used + need * self._new, self._base + need * flying)
        room = 0 if left <= 0 else int(min(left / need, ANY)) if need > 0 else ANY
        # Alone it may have all there is: whether that is enough is for `watch` to see.
        return room or int(not flying and self._used <= self._budget)

    def _refresh(self, now: float) -> None:
        if now < self._looked + LOOK_SECONDS:
            return
        past = now - self._looked
        self._looked = now
        try:
            self._take(self._look(now))
            if self._collect and self._used > FULL * self._budget and now >= self._collect_at:
                self._collect_at = now + COLLECT_SECONDS
                self._counts["collected"] += 1
                gc.collect()
                self._take(self._look(now))
        except Exception as error:  # noqa: BLE001  # no descriptor to be had: what was seen last still counts
            if not self._blind:
                logger.warning("what memory is held cannot be seen (%s)", error)
            self._blind = True
            return
        ended, self._gone, self._new = self._gone, 0, 0
        passing, self._passing = self._passing, False
        self._looks += 1
        self._heard = {batch: at for batch, at in list(self._heard.items()) if self._is_read(batch, now)}
        self._need *= 0.5 ** (past / FADE_SECONDS + ended / FADE_ITEMS)
        used, flying = self._used, self._running(now)
        self._seen = self._seen or ended > 0
        if math.isnan(self._base) or not (flying or passing):
            self._base = used
        elif flying:
            self._base = min(self._base, used)
            self._seen = True
            self._need = max(self._need, (used - self._base) / flying)

    def _take(self, held: Held) -> None:
        self._held = held
        self._peak = max(self._peak, held.own + held.others)
        self._budget = min(self.limit_bytes, self._used + self._free())


def _gb(count: float) -> str:
    return f"{count / 2**30:.2f} GB"
