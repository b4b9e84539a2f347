"""What items take while they run for real: their results count, so nothing runs twice.

wall    seconds, less those that the thread waited for a CPU (Linux: /proc/self/task/TID/schedstat, field 2);
        else a busy neighbour would look like I/O
CPU     of the whole process and, once they have ended, its children (ffmpeg!), less the ticker's own
lock    a thread naps for a quarter of a millisecond at a time; what it wakes too late, beyond its own wait
        for a CPU, somebody held the interpreter's lock (the idea of py-spy's and gilknocker's monitors)
bytes   the first item and its result, pickled as for a worker process
memory  by how much the process grew
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from video.backends import _pickling
from video.backends.base import Ran, run_chunk
from video.errors import NotPicklable
from video.selector import Measured

if sys.platform != "win32":
    import resource

COARSE = sys.platform != "linux"
"""Timers are, and nobody says for how long a thread waits for a CPU."""
NAP_SECONDS = 0.0005 if COARSE else 0.00025
LATE_SECONDS = 0.001 if COARSE else 0.0005
"""A nap may last this much too long for no reason but the timer's."""
STRETCH_SECONDS = 1.1 * (2 * NAP_SECONDS + LATE_SECONDS)
"""What runs in one go for less than this may not be heard to hold the lock, which is free before and after
it: the nap that goes on when it begins, and one more, may end less than `LATE_SECONDS` too late."""
LONG_SECONDS = 0.001
"""An item for which more clocks can be afforded."""
UNHEARD = 0.5
"""The share of its CPU time for which an item is taken to hold the lock where nothing could be heard: in
between, so that two at once are to settle it."""
_SMALL = frozenset((int, float, bool, type(None)))
"""Types that cross at next to no cost: to try would be most of what the probe of a tiny item takes."""
LOADED = 3.0
"""A first item that took this many times longer than the next ones was loading something."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What some items took together."""

    items: int
    wall: float
    cpu: float
    """Of what runs on, its share lately, where that tells more."""
    late: float
    """Seconds for which the lock was held, of those that were listened to."""
    heard: float
    memory: float = 0.0
    failed: bool = False
    """Some of them failed, which is no measure of the others."""
    running: bool = False
    """They have not ended: it is what they took until now."""


def summary(
    readings: Sequence[Reading], carried: Carried | None, *, has_gil: bool = True, listened: bool = False
) -> Measured | None:
    """One item's share of it all; None if there is nothing to go by.

    What still runs counts once one of its items is past the others, and then for twice as long as that has
    taken: half of all that is met on its way has as much before it as behind it (J. R. Gott, Implications of
    the Copernican principle for our future prospects, Nature 363, 1993).

    :param listened: to the lock, though perhaps in none of what ran.
    """
    ended = [one for one in readings if one.items and not one.running]
    under_way = [one for one in readings if one.running]
    sound = [one for one in ended if not one.failed] or ([] if under_way else ended)
    if not sound and not under_way:
        return None
    memory = max(one.memory for one in (*sound, *under_way))
    load = 0.0
    if len(sound) > 1 and sound[0].items == 1:
        others = sum(one.wall for one in sound[1:]) / sum(one.items for one in sound[1:])
        if sound[0].wall > LOADED * others:
            load = sound[0].wall - others
            sound = sound[1:]
    late = sum(one.late for one in (*sound, *under_way))
    heard = sum(one.heard for one in (*sound, *under_way))
    items, wall = sum(one.items for one in sound), sum(one.wall for one in sound)
    cpu = sum(one.cpu for one in sound)
    each = wall / items if items else 0.0
    for one in under_way:
        longest = one.wall - each * (one.items - 1)
        if longest > each:
            items += 1
            wall += 2 * longest
            cpu += 2 * longest * one.cpu / one.wall
    if not items:  # it has only just begun
        return None
    gil = 0.0
    if has_gil and heard > 0:
        gil = min(1.0, late / heard)
    elif has_gil and listened:
        gil = UNHEARD * min(1.0, cpu / max(wall, 1e-9))
    carried = carried or Carried()
    return Measured(
        wall=wall / items,
        cpu=cpu / items,
        gil=gil,
        bytes=carried.bytes,
        carry=carried.seconds,
        pickles=carried.refused,
        memory=memory,
        load=load,
        items=sum(one.items for one in sound if not one.failed),
    )


@dataclass(slots=True)
class Carried:
    """What it takes to carry an item and its result across a process border."""

    bytes: float = 0.0
    seconds: float = 0.0
    refused: str = ""

    def add(self, value: Any) -> None:
        if type(value) in _SMALL:
            self.bytes += sys.getsizeof(value)
            return
        began = time.perf_counter()
        try:
            packed = _pickling.pack([value])
        except NotPicklable as error:
            self.refused = self.refused or str(error).splitlines()[0]
        else:
            self.bytes += len(packed.body) + sum(buffer.nbytes for buffer in packed.buffers)
            self.seconds += time.perf_counter() - began


class Probe:
    """Runs chunks as `run_chunk` does, and measures them. One at a time, or two as the referee."""

    def __init__(self) -> None:
        self.heard = 0.0
        """Seconds of the work that was `measured` last in which the lock was listened to."""
        self.began: float | None = None
        """`time.monotonic()` when the first item began; None: none has."""
        self._ticker: _Ticker | None = None
        self.peak = _peak()
        """Resident bytes of this process at most, until now."""
        self.driver = threading.get_native_id()
        """The thread that drives the batch, whose CPU time is not the items'; unless it runs them."""
        self._lock = threading.Lock()
        self._readings: list[Reading] = []
        self._spans: list[tuple[float, float]] = []
        self._paired_from = 0
        self._over = False
        """Nothing more is to begin here."""
        self._open: dict[int, _Gauge] = {}
        self._carried: Carried | None = None

    def run(self, task: Callable[[Any], Any], items: Sequence[Any], threads: int) -> Ran:
        with self._lock:
            first, self._carried = self._carried is None, self._carried or Carried()
        carried = self._carried
        if first:
            # The first one stands for all. Before the task sees it, since it may change or close it.
            carried.add(items[0])
        gauge = _Gauge(self, list(items))
        self.began = self.began or time.monotonic()
        with self._lock:
            self._open[id(gauge)] = gauge
            if self._over:
                gauge.left.clear()
        began = time.monotonic()
        try:
            ran = run_chunk(task, gauge.left, threads)
        finally:
            with self._lock:
                del self._open[id(gauge)]
        reading = gauge.read(len(ran.values), failed=bool(ran.errors))
        with self._lock:
            self._readings.append(reading)
            self._spans.append((began, time.monotonic()))
        if first and ran.values and not ran.errors:
            carried.add(ran.values[0])
        return ran

    def look(self) -> None:
        """From now on what runs is watched more closely, and so is the lock. Not from the start: most short
        batches end before that matters."""
        if self._ticker is None:
            self._ticker = _Ticker()
        with self._lock:
            for gauge in self._open.values():
                gauge.look()

    def state(self, thread: int, *, closely: bool) -> _State:
        """Where the clocks stand for the work of one thread.

        :param closely: all of them; else only those that the shortest items can afford.
        """
        ticker, driver = self._ticker, self.driver
        # Files first: to read one lets go of the lock, and a thread that holds it long may come in between.
        # The clocks after them are read in one go, or they would tell of different moments.
        waited = memory = peak = children = 0.0
        if closely:
            _bring_clocks_up_to_date()
            waited, memory, peak = _schedule(thread)[1], _memory(), _peak()
            times = os.times()
            children = times.children_user + times.children_system
        ours, unheard, until = 0.0, 0.0, None
        if driver != thread:
            # Of the thread that asks, the system's own figure is behind by up to a tick.
            ours = time.thread_time() if threading.get_native_id() == driver else _schedule(driver)[0]
        if ticker is not None:
            ran, unheard = _schedule(ticker.native_id)
            ours += ran
            until = ticker.until()
        cpu = time.process_time() - ours
        now = time.monotonic()
        late, heard = (0.0, 0.0) if ticker is None else ticker.heard(now if until is None else until, unheard)
        return _State(now, cpu, children, waited, late, heard, memory, peak)

    @property
    def looks(self) -> bool:
        """Somebody has looked."""
        return self._ticker is not None

    @property
    def running(self) -> bool:
        """Some have not ended."""
        return bool(self._open)

    @property
    def items(self) -> int:
        """Items that have ended."""
        return sum(one.items for one in self._readings)

    @property
    def seconds(self) -> float:
        """What they took together, and those that run, since somebody looked at them."""
        now = time.monotonic()
        with self._lock:
            running = sum(now - one.looked for one in self._open.values() if one.looked is not None)
            return sum(one.wall for one in self._readings) + running

    def measured(self) -> Measured | None:
        """What an item takes, as far as is known by now."""
        with self._lock:
            readings = [*self._readings, *(gauge.read() for gauge in self._open.values())]
        self.heard = sum(one.heard for one in readings)
        return summary(readings, self._carried, has_gil=_has_gil(), listened=self.looks)

    def ended(self) -> Measured | None:
        """The same of those that have ended, and did not fail; None if none did."""
        with self._lock:
            readings = [one for one in self._readings if not one.failed]
        return summary(readings, self._carried, has_gil=_has_gil())

    def pair(self) -> None:
        """From now on two run at once."""
        with self._lock:
            self._paired_from = len(self._readings)

    def speedup(self, wall: float) -> float | None:
        """Of the first two chunks that ran at once, over one after the other; None: they have not ended.

        :param wall: seconds of an item that runs alone.
        """
        with self._lock:
            spans = self._spans[self._paired_from :][:2]
            items = sum(one.items for one in self._readings[self._paired_from :][:2])
        if len(spans) < 2:
            return None
        return items * wall / max(1e-9, max(end for _, end in spans) - min(start for start, _ in spans))

    def close(self) -> None:
        """Listen no more; what still runs is measured without."""
        if self._ticker is not None:
            self._ticker.stopped = True
            self._ticker = None

    def give_back(self) -> None:
        """What has not begun of what runs. Its chunks were sized by brief items, and may hold long ones."""
        with self._lock:
            self._over = True
            for gauge in self._open.values():
                gauge.left.clear()


class Listening:
    """For how much of the time somebody holds the interpreter's lock, from now on."""

    def __init__(self) -> None:
        self._ticker = _Ticker()

    def locked(self, now: float) -> float:
        """The share by now, 0 to 1; 0 where next to nothing was heard. Ends the listening."""
        self._ticker.stopped = True
        unheard, until = _schedule(self._ticker.native_id)[1], self._ticker.until()
        late, heard = self._ticker.heard(now if until is None else until, unheard)
        if heard < STRETCH_SECONDS or not _has_gil():
            return 0.0
        return min(1.0, max(0.0, late / heard))


class _State(NamedTuple):
    now: float
    cpu: float
    """CPU seconds of this process, but for what is ours."""
    children: float
    """CPU seconds of the children that it has waited for."""
    waited: float
    """Seconds for which the thread was ready, and had no CPU."""
    late: float
    """Seconds for which the lock was held, as far as it was listened to."""
    heard: float
    """Seconds that were listened to."""
    memory: float
    peak: float


class _Gauge:
    """Watches the thread that makes it. All but two clocks count from the first look on only, which short
    items do not live to see: to read them would take longer than they do."""

    def __init__(self, probe: Probe, items: list[Any]) -> None:
        self._probe = probe
        self._items = len(items)
        self.left = items
        """What runs comes from this list: once it is emptied, what has begun is the last."""
        self._thread = threading.get_native_id()
        looks = probe.looks  # once: to read the clocks, it may let go of the lock
        self._began = probe.state(self._thread, closely=looks)
        self._looked = self._began if looks else None

    @property
    def looked(self) -> float | None:
        """`time.monotonic()` of the first look."""
        return None if self._looked is None else self._looked.now

    def look(self) -> None:
        if self._looked is None:
            self._looked = self._probe.state(self._thread, closely=True)

    def read(self, ended: int | None = None, *, failed: bool = False) -> Reading:
        """From any thread.

        :param ended: items that did; None: it still runs.
        """
        began, looked = self._began, self._looked
        state = self._probe.state(self._thread, closely=looked is not None)
        wall, cpu, late, heard, grown = state.now - began.now, state.cpu - began.cpu, 0.0, 0.0, 0.0
        if looked is not None:
            wall -= state.waited - looked.waited
            cpu += state.children - looked.children
            lately = state.now - looked.now - (state.waited - looked.waited)
            if ended is None and lately >= STRETCH_SECONDS and not _others_run():
                # It may have computed and asked, and now wait for the answer; or for a child that computes.
                cpu = wall * (state.cpu - looked.cpu + state.children - looked.children) / lately
            late, heard = state.late - looked.late, min(wall, state.heard - looked.heard)
            if heard < STRETCH_SECONDS:
                late = heard = 0.0
            # The peak of a process never falls: only where it has risen does it tell of these items.
            grown = (state.peak if state.peak > looked.peak else state.memory) - looked.memory
        elif wall > LONG_SECONDS:  # it holds the lock, so that nobody could look
            grown = _peak() - self._probe.peak
        return Reading(
            self._items if ended is None else ended,
            max(0.0, wall),
            max(0.0, cpu),
            max(0.0, late),
            max(0.0, heard),
            max(0.0, grown),
            failed,
            running=ended is None,
        )


class _Ticker(threading.Thread):
    """Says for how long somebody held the lock."""

    def __init__(self) -> None:
        super().__init__(name="video-ticker", daemon=True)
        self.stopped = False
        self.began = self._lap = time.monotonic()
        self._sum = 0.0
        with contextlib.suppress(RuntimeError):  # no thread is to be had: then all seems to hold the lock
            self.start()

    def run(self) -> None:
        # The first lap began before this thread did, which has to wait for the lock as well.
        clock, nap = time.monotonic, time.sleep
        while not self.stopped:
            nap(NAP_SECONDS)
            # Nothing here may let go of the lock, or this loop would see itself.
            now = clock()
            late = now - self._lap - NAP_SECONDS
            if late > LATE_SECONDS:
                self._sum += late
            self._lap = now

    def until(self) -> float | None:
        """The time until which it has heard something: that of its last lap if it is awake and has no CPU;
        None: now."""
        lap = self._lap
        if time.monotonic() - lap - NAP_SECONDS < LATE_SECONDS or not _ready(self.native_id):
            return None
        return lap if lap == self._lap else None  # to look has let it go on

    def heard(self, until: float, unheard: float) -> tuple[float, float]:
        """Seconds by which somebody made it wake too late, the open lap included, and that it has listened.

        :param unheard: seconds that it waited for a CPU: it heard nothing then, and was late for that.
        """
        late = until - self._lap - NAP_SECONDS
        late = self._sum + (late if late > LATE_SECONDS else 0.0)
        return late - unheard, until - self.began - unheard


def _bring_clocks_up_to_date() -> None:
    """What a thread on another CPU has run since its last tick, up to 4 ms, the clock of the process leaves
    out, so that an item which computes would seem to wait; unless that thread's own clock is asked for."""
    if sys.platform == "linux":
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has ended
                # What pthread_getcpuclockid(3) makes of a living thread; it must not be asked for a dead one.
                time.clock_gettime(~int(thread) << 3 | 6)


def _schedule(thread: int | None) -> tuple[float, float]:
    """Seconds for which a thread of this process had a CPU, and for which it was ready and had none; 0 where
    the system does not say."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            ran, waited, _ = file.read().split()
        return int(ran) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0


def _ready(thread: int | None) -> bool:
    """A thread of this process runs, or would if it had a CPU: it waits for no lock."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False


def _others_run() -> bool:
    """Whether somebody on this machine computes just now, perhaps a child that works for an item; True where
    the system does not say."""
    for _ in range(2):  # the ticker may have been awake
        try:
            with open("/proc/loadavg", "rb", buffering=0) as file:
                if int(file.read().split()[3].partition(b"/")[0]) <= 1:  # that is us
                    return False
        except (OSError, ValueError, IndexError):
            break
    return True


def _memory() -> float:
    """Resident bytes of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        return 0.0


def _peak() -> float:
    """Resident bytes of this process at most so far; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())
