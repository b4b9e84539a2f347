"""Which engine suits a batch: predicted from what its items take, as pure functions over plain values.

    rules -> (probe: `measure`) -> predict each engine -> decide -> (watch: revise, decide again)

With, for each item, w seconds of wall time, c of CPU, g the share of w in which it holds the interpreter's
lock, b bytes that would cross a process border; P CPUs, k workers, n items left; d an engine's seconds for an
item on top of its work:

    serial               n (w + d)
    thread, async        start + n (max(w / k, g w, c / P) + d)
    process and others   start + n (max(w / k, c / P) + d + b seconds_per_byte + 2 x seconds to pickle)

A start counts only where no worker is warm. The simplest engine within `MARGIN` of the cheapest is taken:
what an engine adds in processes, copies and ways to fail must pay for itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from video import plan
from video.backends.base import Traits
from video.errors import ConfigError

MARGIN = 0.15
"""An engine that is more complex must promise to be faster by this share."""
COMPLEXITY = {"serial": 0, "async": 1, "thread": 1, "process": 2, "joblib": 3, "dask": 4}
ALONE = 0.7
"""Items that hold the interpreter's lock for more of their time have one thread: a second would only fight
for the lock (benchmarks/bench_regret.py: ten items of pure Python took 1.6 times as long on two)."""
WIDE = 1.1
"""Items that mostly wait err to the wide side, where a thread too many costs less than one too few."""
WAITING_WIDTH = 32
"""Threads at most for items that wait: more would open too many connections at whoever answers them."""
HORIZON_SECONDS = 10.0
"""Work that an input of unknown length is taken to hold still."""
MEMORY_SHARE = 0.8
"""Of the free memory that the items of a batch may fill together."""
GUARDED_SECONDS = 0.05
"""Serial work above this goes to a thread instead: nothing can look after an item in the caller's own."""
CLOSE = 0.25
"""Threads and processes this near to each other are told apart by a paired run (`referee`)."""
SLOW = 0.7
"""Below this share of the predicted rate, the rest of the batch is planned anew."""
DRIFT = 3.0
"""So is it when items take this many times longer, or shorter, than those that were measured."""
CALL_SECONDS = 5e-6
"""For so long at least an item holds the lock: to be called, and to let go of it and get it back."""
WAITS = 0.2
"""An item that uses less CPU than this share of its time waits for something else."""
LOCKED = 0.5
"""Threads that find the interpreter's lock held for more than this share of the time take turns."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an engine costs on this machine (`video.calibrate`)."""

    start: float
    """Seconds until cold workers answer."""
    call: float
    """Seconds of overhead for a call of one item."""
    item: float = 1e-6
    """Seconds of overhead for an item in a large chunk."""
    byte: float = 0.0
    """Seconds for each byte that crosses, in either direction."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that could be taken."""

    name: str
    traits: Traits
    cost: Cost
    warm: frozenset[int] = frozenset()
    """Numbers of workers that are there already."""
    missing: str = ""
    """Why it is not there at all; empty: it is."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the batch may use."""

    cpus: int
    memory: float = math.inf
    """Free bytes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an item takes."""

    wall: float
    """Seconds, without the time that it waited for a CPU."""
    cpu: float
    """CPU seconds: of its thread, of others that worked for it, and of child processes."""
    gil: float
    """Share of `wall` in which it held the interpreter's lock, 0 to 1."""
    bytes: float = 0.0
    """Pickled size of the item and of its result."""
    carry: float = 0.0
    """Seconds to pickle both."""
    pickles: str = ""
    """Why it cannot cross a process border; empty: it can."""
    memory: float = 0.0
    """Bytes that one running item adds to its process."""
    load: float = 0.0
    """Seconds that the first item took beyond the others (imports, models), as each new worker will."""
    items: int = 0
    """Items that were measured to their end, and did not fail."""
    source: str = "probe"
    """"probe", "declared", "remembered" (from an earlier batch), "watched" (while the batch ran)."""

    def scaled(self, ratio: float) -> Measured:
        """Items that are like these, but so many times longer."""
        return dataclasses.replace(self, wall=self.wall * ratio, cpu=self.cpu * ratio, source="watched")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the settings of the batch ask of an engine."""

    workers: int | None = None
    chunk: int = plan.LARGEST_CHUNK
    kills: str = ""
    """Why a running item must be stoppable; empty: it need not."""
    isolated: str = ""
    """Why an item must not share the caller's process; empty: it may."""
    left: int | None = None
    """Items still to run; None: nobody knows."""
    memory: float = math.inf
    """Bytes that they may hold together."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one engine would take for the rest of the batch, or why it is out of the question."""

    backend: str
    workers: int
    seconds: float
    """Infinite where it is refused."""
    refusal: str = ""
    start: float = 0.0
    """Of them, until the first item begins."""


KINDS = {"python": (1.0, 1.0), "native": (1.0, 0.0), "io": (0.0, 0.0)}
"""CPU seconds for a second of wall time, and the lock's share, of a declared kind of work."""


def declared(kind: str | None, cost: float | None) -> Measured | None:
    """What the caller says that an item takes; None unless he says both.

    :raises ConfigError: for an unknown kind, or a cost that is no time.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}", cure=f"It takes one of {', '.join(KINDS)}.")
    if cost is not None and not (
        isinstance(cost, int | float) and not isinstance(cost, bool) and 0 < cost < math.inf
    ):
        raise ConfigError(f"cost is {cost!r}", cure="It takes seconds above 0.")
    if kind is None or cost is None:
        return None
    cpu, gil = KINDS[kind]
    return Measured(cost, cpu * cost, gil, source="declared")


def refusal(engine: Engine, measured: Measured, asked: Asked) -> str:
    """Why the engine must not be taken; empty: it may."""
    traits = engine.traits
    if engine.missing:
        return engine.missing
    if asked.kills and not traits.kills:
        return f"cannot stop a running item, which {asked.kills} asks for"
    if asked.isolated and not traits.pickles:
        return f"runs items in the caller's own process, and {asked.isolated}"
    if traits.pickles and measured.pickles:
        return f"items do not cross a process border ({measured.pickles})"
    if traits.inline and _left(measured, asked) * measured.wall > GUARDED_SECONDS:
        return "what is left is too long to run where nothing can look after it, in the caller's own thread"
    return ""


def fitting(measured: Measured, machine: Machine) -> float:
    """Items at once that memory has room for."""
    return MEMORY_SHARE * machine.memory / measured.memory if measured.memory > 0 else math.inf


def width(engine: Engine, measured: Measured, asked: Asked, machine: Machine) -> int:
    """Workers that the engine would have. Where the user does not say, a few widths stand for all: an engine
    of each may be kept warm."""
    if engine.traits.inline:
        return 1
    if engine.traits.own_gil:
        most = asked.workers or machine.cpus
    else:
        busy = max(measured.cpu / measured.wall if measured.wall > 0 else 1.0, measured.gil, 1e-9)
        if busy < WAITS and not measured.items and measured.source == "probe":
            busy = 1e-9  # it computed and asked, and waits since: nobody knows for how long yet
        # As many as keep the CPUs busy: work that waits leaves them to others.
        most_doublings = math.floor(math.log2(max(1.0, WAITING_WIDTH / machine.cpus)))
        doublings = min(WIDE * math.log2(1 / busy), most_doublings)
        usual = max(1, machine.cpus * 2 ** max(0, round(doublings)))
        most = asked.workers or (1 if measured.gil > ALONE else usual)
    room = fitting(measured, machine)
    while most > max(1.0, room):
        most = int(room) if asked.workers else most // 2
    return max(1, most)


def predict(engine: Engine, measured: Measured, asked: Asked, machine: Machine) -> Candidate:
    """Seconds for the rest of the batch on this engine."""
    workers = width(engine, measured, asked, machine)
    if words := refusal(engine, measured, asked):
        return Candidate(engine.name, workers, math.inf, words)
    cost, traits, wall = engine.cost, engine.traits, measured.wall
    left = _left(measured, asked)
    busy = max(1, min(workers, left))
    most = int(plan.chunk_seconds(pickles=traits.pickles) / max(wall, 1e-9))
    chunk = max(1, min(asked.chunk, left // busy, most))
    each = cost.item + cost.call / chunk
    if traits.inline:
        return Candidate(engine.name, 1, left * (wall + each))
    warm = workers in engine.warm
    start = 0.0 if warm else cost.start
    # The last round is not always full; towards the end of a batch chunks get small on every engine.
    rounds = math.ceil(left / busy)
    cpu = left * measured.cpu / machine.cpus
    if traits.own_gil:
        start += 0.0 if warm else measured.load
        each += 2 * measured.carry + measured.bytes * cost.byte
        return Candidate(engine.name, workers, start + max(rounds * wall, cpu) + left * each, start=start)
    locked = left * measured.gil * wall
    seconds = start + max(rounds * wall, locked, cpu) + left * each
    return Candidate(engine.name, workers, seconds, start=start)


def foresee(engine: Engine, known: Measured | None, asked: Asked, machine: Machine) -> Candidate:
    """`predict`, where perhaps nothing was measured yet: then the time is not a number."""
    if known is not None:
        return predict(engine, known, asked, machine)
    nothing = Measured(0.0, 0.0, 0.0)
    words = refusal(engine, nothing, asked)
    return Candidate(
        engine.name, width(engine, nothing, asked, machine), math.inf if words else math.nan, words
    )


def decide(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The simplest of those within `MARGIN` of the cheapest, and what settled it.

    :raises ValueError: if all are refused.
    """
    able = [one for one in candidates if not one.refusal]
    if not able:
        raise ValueError("; ".join(f"{one.backend} {one.refusal}" for one in candidates))
    cheapest = min(able, key=lambda one: (one.seconds, _complexity(one.backend)))
    near = [one for one in able if one.seconds * (1 - MARGIN) <= cheapest.seconds]
    best = min(near, key=lambda one: (_complexity(one.backend), one.seconds))
    if len(able) == 1:
        return best, "no other engine is left"
    if best.backend != cheapest.backend:
        gain = 1 - cheapest.seconds / best.seconds if best.seconds else 0.0
        return best, f"{cheapest.backend} would gain {gain:.0%}, too little for what it adds"
    second = min((one for one in able if one is not best), key=lambda one: one.seconds)
    gain = 1 - best.seconds / second.seconds if second.seconds else 0.0
    return best, f"predicted {gain:.0%} faster than {second.backend}"


def stays(here: Candidate, best: Candidate) -> bool:
    """Whether a batch that runs `here` is to go on there: to move costs something, and a busy machine makes
    every engine slow."""
    return best.backend == here.backend or best.seconds > here.seconds * (1 - MARGIN)


def referee(candidates: Iterable[Candidate], measured: Measured) -> bool:
    """Whether two items at once on two threads should settle it: the lock's share is in between, and threads
    and processes are near to each other."""
    able = {one.backend: one for one in candidates if not one.refusal}
    if not 0.25 <= measured.gil <= 0.75 or not {"thread", "process"} <= able.keys():
        return False
    if able["thread"].workers < 2:  # two at once are not allowed
        return False
    low, high = sorted((able["thread"].seconds, able["process"].seconds))
    return high * (1 - CLOSE) <= low


def at_best(measured: Measured) -> Measured:
    """Items that take so long, and could not suit other engines better."""
    share = min(1.0, CALL_SECONDS / measured.wall) if measured.wall > 0 else 1.0
    return dataclasses.replace(measured, cpu=share * measured.wall, gil=share, bytes=0.0, carry=0.0)


def paired(measured: Measured, speedup: float) -> Measured:
    """What the paired run says of the lock: it sees every lock that the items share.

    :param speedup: seconds of two items one after the other / seconds of both at once.
    """
    return dataclasses.replace(measured, gil=min(1.0, 1 / max(speedup, 1e-9)) if speedup < 1.9 else 0.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a batch has done since the engine was chosen."""

    items: int
    seconds: float
    """Since it could begin: the engine's start is not counted."""
    work: float
    """Seconds that the items took in their workers."""
    running: tuple[float, ...] = ()
    """For how long those that run have run."""
    cpu: float | None = None
    """CPU seconds of this process in that time; None: the items ran elsewhere."""
    locked: float = 0.0
    """Share of the time, just now, for which somebody held the interpreter's lock."""

    @property
    def wall(self) -> float:
        """Seconds that an item takes; those that run count where they are past the others already."""
        mean = self.work / self.items if self.items else 0.0
        longer = [one for one in self.running if one > mean]
        return (self.work + sum(longer)) / max(1, self.items + len(longer))


def off_course(seen: Seen, each: float, measured: Measured) -> str:
    """Why the rest of the batch should be planned anew; empty: all goes well.

    :param each: predicted seconds for an item, by the clock on the wall.
    """
    done = seen.items * each
    if seen.seconds > 0 and done < SLOW * seen.seconds:
        return f"progress was {done / seen.seconds:.0%} of what was predicted"
    if seen.wall and measured.wall and not measured.wall / DRIFT < seen.wall < measured.wall * DRIFT:
        return f"items took {seen.wall / measured.wall:.2g} times as long as those that were measured"
    return ""


def revise(measured: Measured, seen: Seen) -> Measured:
    """What items take, by what they took since. In this process they also take longer because they wait for
    each other, so there their CPU time and the lock tell what they are."""
    if not seen.wall or not measured.wall:
        return measured
    if seen.cpu is None or not seen.seconds:
        return measured.scaled(seen.wall / measured.wall)
    # Those that run are half done, on the average.
    cpu, wall, gil = seen.cpu / max(1.0, seen.items + len(seen.running) / 2), seen.wall, measured.gil
    locked = seen.locked > LOCKED
    if locked or seen.cpu > SLOW * seen.seconds:
        wall = cpu + max(0.0, measured.wall - measured.cpu)
        gil = min(1.0, cpu / wall) if locked else min(gil, seen.locked)
    elif cpu > WAITS * wall and measured.cpu > WAITS * measured.wall:
        wall = measured.wall * cpu / measured.cpu  # they compute as before, and wait for busy neighbours
    return dataclasses.replace(measured, wall=wall, cpu=cpu, gil=gil, items=seen.items, source="watched")


def _left(measured: Measured, asked: Asked) -> int:
    if asked.left is not None:
        return asked.left
    return max(1, min(10**9, int(HORIZON_SECONDS / max(measured.wall, 1e-9))))


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _complexity(backend: str) -> int:
    return COMPLEXITY.get(backend, max(COMPLEXITY.values()))


@dataclass(frozen=True, slots=True)
class Decision:
    """Which engine a batch runs on, and everything that this was decided by. `str()` of it is a table."""

    backend: str
    workers: int
    threads: int
    """Native threads of each item."""
    reason: str
    """In one sentence."""
    candidates: tuple[Candidate, ...] = ()
    """Empty where a rule decided, and nothing was measured."""
    measured: Measured | None = None
    machine: Machine | None = None
    left: int | None = None
    """Items that were left when it was decided; None: nobody knew."""
    probe_seconds: float = 0.0
    """Until it was decided; the items of the probe are done, so only lost parallelism."""
    earlier: Decision | None = None
    """What this decision replaced while the batch ran."""

    @property
    def line(self) -> str:
        """It in one line."""
        return f"{self.backend}, {_counted(self.workers, 'worker')}: {self.reason}"

    def __str__(self) -> str:
        lines = [self.line]
        if self.measured is not None:
            lines += ["", *_measured_lines(self.measured, self.left, self.machine, self.probe_seconds)]
        if self.candidates:
            lines += ["", f"{'engine':<10}{'workers':>8}  predicted"]
            for one in self.candidates:
                says = one.refusal or (
                    "not measured yet" if math.isnan(one.seconds) else f"{one.seconds:.3g} s"
                )
                taken = "  <- taken" if one.backend == self.backend else ""
                lines.append(f"{one.backend:<10}{one.workers:>8}  {says}{taken}")
        if self.earlier is not None:
            lines += ["", "before that:", *("  " + line for line in str(self.earlier).splitlines())]
        return "\n".join(lines)


def _measured_lines(
    measured: Measured, left: int | None, machine: Machine | None, probe_seconds: float
) -> list[str]:
    crossing = (
        f"do not cross a process border ({measured.pickles})"
        if measured.pickles
        else (f"{measured.bytes:,.0f} bytes to and fro")
    )
    source = ""
    if measured.items:
        source = f", {_counted(measured.items, 'item')}, {probe_seconds:.3g} s"
    elif measured.source == "probe":
        source = ", of what failed, or twice what one took that had not ended"
    lines = [
        f"an item takes    {measured.wall:.3g} s, {measured.cpu:.3g} s of CPU, {measured.gil:.0%} of it with "
        "the interpreter's lock",
        f"items            {crossing}; {measured.memory / 2**20:.0f} MB of memory each",
        f"known from       {measured.source}{source}",
        f"left             {'unknown' if left is None else _counted(left, 'item')}",
    ]
    if machine is not None:
        free = "unknown" if math.isinf(machine.memory) else f"{machine.memory / 2**20:,.0f} MB"
        lines.append(f"machine          {_counted(machine.cpus, 'CPU')}, {free} of free memory")
    return lines
