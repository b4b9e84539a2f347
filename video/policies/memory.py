"""The memory guard: a batch, its workers and their children keep to a budget.

Three things keep it, each before the next is needed:

1. An item begins only where there is room for what one is predicted to need; else it waits in the batch, and
   holds no worker.
2. Once little is left, garbage is collected here, and a worker process that holds more than its share after
   a call is replaced (`max_worker_memory_mb` of its engine).
3. Where the budget is overrun all the same, the fattest worker process is ended at once. Its item runs again,
   alone; one that overruns the budget alone fails with `WorkerOutOfMemory`.

What runs on threads cannot be ended, and what runs on other machines is not counted.

The need of an item is predicted from those that run: what all hold above what was held before any ran, by
their number; the largest such figure counts, and fades by half in `FADE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from video import scope
from video.errors import MemoryExceeded
from video.outcome import Outcome
from video.policies._checks import number
from video.policies.base import Job, Verdict

LOOK_SECONDS = 0.1
"""From one look at what is held to the next; a look takes a millisecond."""
FADE_SECONDS = 10.0
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
"""How long an item waits where nothing runs and the budget is overrun, before it fails."""
REFRESH_SECONDS = 0.5
"""From one search for child processes to the next."""


class Held(NamedTuple):
    """Bytes that are held."""

    own: float
    """By this process."""
    others: float
    """By its children, and theirs."""


class Meter:
    """Looks at what this process and its children hold.

    Pages that children share, with this process or with each other, do not count for them.
    """

    def __init__(self) -> None:
        import psutil  # only a batch with a limit spends the time

        self._psutil = psutil
        self._self = psutil.Process()
        self._children: list[Any] = []
        self._search_at = -math.inf

    def __call__(self, now: float) -> Held:
        if now >= self._search_at:
            self._search_at = now + REFRESH_SECONDS
            known = {child.pid: child for child in self._children}
            with contextlib.suppress(self._psutil.Error):
                found = self._self.children(recursive=True)
                self._children = [known.get(child.pid, child) for child in found]
        return Held(self._self.memory_info().rss, sum(map(self._held, self._children)))

    def tree(self, pid: int) -> float:
        """Bytes that a child and its own children hold; 0 if there is none."""
        with contextlib.suppress(self._psutil.Error):
            child = self._psutil.Process(pid)
            return self._held(child) + sum(map(self._held, child.children(recursive=True)))
        return 0.0

    def _held(self, process: Any) -> float:
        try:
            info = process.memory_info()
        except self._psutil.Error:  # it has ended
            return 0.0
        return float(info.rss - getattr(info, "shared", 0))


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
        free: Callable[[], float] = scope.free_memory,
    ) -> None:
        number("limit_bytes", limit_bytes, above=0.0)
        self.limit_bytes = limit_bytes
        self._collect = collect
        self._look = look or Meter()
        self._free = free
        self._lock = threading.Lock()
        self._held = Held(0.0, 0.0)
        self._base = math.nan
        """Bytes held before any item ran."""
        self._need = 0.0
        self._budget = limit_bytes
        """`limit_bytes`, or what is held and free together."""
        self._looked = -math.inf
        self._flying = 0
        """Items that were admitted and have not ended."""
        self._new = 0
        """Of them, those that began after the last look."""
        self._seen = False
        """Items have been looked at while they ran."""
        self._waiting: dict[Job, float] = {}
        """Those that were put off, first come first; and since when each waits in vain."""
        self._collect_at = self._spare_until = -math.inf
        self._peak = 0.0
        self._counts = {"put_off": 0, "collected": 0, "ended": 0}

    def admit(self, job: Job, now: float) -> Verdict:
        with self._lock:
            self._refresh(now)
            room = self._room()
            first = itertools.islice(self._waiting, room)
            if len(self._waiting) < room or job in first:
                self._waiting.pop(job, None)
                job.notes["memory"] = True
                self._flying += 1
                self._new += 1
                return None
            if job not in self._waiting:
                self._counts["put_off"] += 1
            since = self._waiting.setdefault(job, now)
            if self._flying or self._used <= self._budget:
                self._waiting[job] = now  # something will end
                return LOOK_SECONDS
            if now - since < PATIENCE_SECONDS:
                return LOOK_SECONDS
            del self._waiting[job]
            words = f"{_gb(self._held.own)} in this process and {_gb(self._held.others)} in its children"
            error = MemoryExceeded(
                f"was not begun: {words} are held while no item runs, and the limit is {_gb(self._budget)}",
                cure="Raise memory_limit_gb, or hold less in this program.",
            )
            return Outcome(job.index, None, error, job.attempts, origin=self.name)

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        self.withdraw(job, now)
        return None

    def withdraw(self, job: Job, now: float) -> None:
        with self._lock:
            self._waiting.pop(job, None)
            if job.notes.pop("memory", False):
                self._flying -= 1

    def idle(self, now: float) -> bool:
        """There is room for many more."""
        with self._lock:
            self._refresh(now)
            roomy = self._used + MANY * self._need < CALM * self._budget
            return roomy and self._seen and not self._waiting

    def passed(self, count: int, now: float) -> None:
        """What needs little is not counted."""

    def watch(self, now: float) -> tuple[float, str]:
        """To be asked while anything runs: when next, and why the fattest worker has to end now, if so."""
        with self._lock:
            self._refresh(now)
            why = ""
            if self._used > self._budget and now >= self._spare_until:
                if self._held.own > self._budget or not self._held.others:
                    pass  # to end workers would not help
                else:
                    self._spare_until = now + SETTLE_SECONDS
                    why = f"{_gb(self._used)} were held together, and the limit is {_gb(self._budget)}"
            return self._looked + LOOK_SECONDS, why

    def ended(self) -> None:
        """A worker was ended, as `watch` said."""
        with self._lock:
            self._counts["ended"] += 1

    def tree(self, pid: int) -> float:
        """Bytes that a child process and its own children hold."""
        return self._look.tree(pid) if isinstance(self._look, Meter) else 0.0

    def counts(self) -> dict[str, int]:
        """`peak_bytes` held so far, `limit_bytes`, and what one item is predicted to need (`need_bytes`); how
        many items were `put_off`, how often garbage was `collected`, how many workers were `ended`."""
        with self._lock:
            return {
                "peak_bytes": round(self._peak),
                "limit_bytes": round(self.limit_bytes),
                "need_bytes": round(self._need),
                **self._counts,
            }

    @property
    def _used(self) -> float:
        return self._held.own + self._held.others

    def _room(self) -> int:
        """Items that may begin now."""
        flying, need = self._flying, self._need
        left = self._budget - max(self._used + need * self._new, self._base + need * flying)
        room = 0 if left <= 0 else int(min(left / need, ANY)) if need > 0 else ANY
        # Alone it may have all there is: whether that is enough is for `watch` to see.
        return room or int(not flying and self._used <= self._budget)

    def _refresh(self, now: float) -> None:
        if now < self._looked + LOOK_SECONDS:
            return
        past = now - self._looked
        self._looked = now
        self._take(self._look(now))
        if self._collect and self._used > FULL * self._budget and now >= self._collect_at:
            self._collect_at = now + COLLECT_SECONDS
            self._counts["collected"] += 1
            gc.collect()
            self._take(self._look(now))
        self._new = 0
        used = self._used
        if not self._flying or math.isnan(self._base):
            self._base = used
        else:
            self._base = min(self._base, used)
            self._seen = True
            need = max(0.0, used - self._base) / self._flying
            self._need = max(need, self._need * 0.5 ** (past / FADE_SECONDS))

    def _take(self, held: Held) -> None:
        self._held = held
        self._peak = max(self._peak, held.own + held.others)
        self._budget = min(self.limit_bytes, self._used + self._free())


def _gb(count: float) -> str:
    return f"{count / 2**30:.2f} GB"
