"""The engine of one batch, chosen while it runs: probe, decide, watch, and decide anew if it must.

    probe on a thread -> [two at once, where threads and processes are near] -> decision -> watch -> ...

The batch asks `steer` when something has happened or is due, and goes on as the answer says. What follows
from what is `selector`'s business, and what items take is `measure`'s; here is only what has happened.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from video import calibrate, profiles, resources, selector
from video.backends.base import CHUNK_SECONDS, Executor
from video.batch import Opened, Progress
from video.errors import BackendUnavailable
from video.events import logger
from video.measure import STRETCH_SECONDS, Listening, Probe
from video.plan import Choice, native_threads
from video.selector import Asked, Candidate, Decision, Engine, Machine, Measured, Seen

IN_PLACE = ("serial", "thread")
"""Engines to which nothing needs to cross."""
LOOKS = (0.001, 0.0025, 0.004, 0.0065, 0.012, 0.025, 0.05, 0.1, 0.25)
"""Seconds after which the probe is looked at, whatever has ended: at the first the listening to the lock
begins, by the last it is decided, even if the first item still runs: the others shall not wait for it."""
HARDLY_SECONDS = 0.0025
"""Work that is left, of which another engine could save no more than it takes to choose one."""
ENOUGH_SECONDS = 0.025
"""Measured work that tells who holds the interpreter's lock: its holder lets go every 5 ms only."""
ENOUGH_ITEMS = 2
COMPUTES = 0.5
"""An item that uses more CPU than this share of its time keeps a CPU busy."""
FREE = 0.2
"""An item that was heard to hold the lock for less of its time suits threads, however long it takes."""
BRIEF_LOOKS = 2
"""The first so many looks may find that what is left is not worth one."""
HEAR_SECONDS = 1.25 * STRETCH_SECONDS
"""The second look comes no sooner after the first, so that enough is heard by then; who listens has to wait
for a CPU himself now and then."""
BRIEF_SECONDS = 0.0008
"""What the probe runs in one go until the first look, at least an item: a short batch is over by then, or
known to be short."""
STEP_SECONDS = 0.006
"""The same from then on. Between two the lock is free, so that brief items would seem to hold it less than
they do."""
WATCH_SECONDS = 0.1
"""The first look at progress comes no earlier."""
FEW_ITEMS, FEW_SECONDS = 8, 1.0
"""Until then, fewer items than these for each worker process say nothing: they come in lumps, and the last
worker may still load what the task needs."""
CHANCE = 1.5
"""Worker processes may be so many times slower than predicted just because the machine is busy."""
LISTEN_SECONDS = 0.05
START_PATIENCE = 5.0
"""An engine may take so many times longer to start than was measured."""
MOST_SWITCHES = 2
WIDER = 1.5
"""More of the same workers are worth a change only from this factor on; fewer never are."""


class Auto:
    """Chooses for one batch.

    :param engines: which there are, and which of them are warm; takes the seconds of work that are left.
    :param threads: native threads of each item; None: what the workers leave of the CPUs.
    :param open: an engine for a choice, with `True` one that no other batch uses; may give another one where
        that cannot start.
    :param release: an engine of its own is not needed any more.
    :param crosses: why the task itself cannot cross a process border; empty: it can.
    :param known: what items take, where that was declared or is remembered: then a single item is probed,
        for whether it crosses a process border.
    :param key: under which what was measured is remembered; None: it is not.
    :param here: the thread that asks for the outcomes may run what is measured.
    """

    def __init__(
        self,
        engines: Callable[[float], Mapping[str, Engine]],
        asked: Asked,
        cpus: int,
        threads: int | None,
        open: Callable[[Choice, bool], Opened],
        release: Callable[[Executor], None],
        crosses: Callable[[], str],
        known: Measured | None = None,
        key: str | None = None,
        here: bool = False,
    ) -> None:
        self._latest: Decision | None = None
        self._ended = False
        """The batch was over before anything was decided."""
        self._engines = engines
        self._asked = asked
        self._cpus = cpus
        self._fixed_threads = threads
        self._open = open
        self._release = release
        self._crosses = crosses
        # Whether items can be pickled is for the first one of this batch to say.
        self._known = known and dataclasses.replace(known, pickles="")
        self._key = key
        self._here = here
        self._began = time.monotonic()
        self._own: list[Executor] = []
        """Engines that only this batch uses: a probe must not wait behind another batch's long item."""
        self._probe: Probe | None = Probe()
        self._probing_on: Opened | None = None
        """What runs the probe."""
        self._probed: Probe | None = None
        """The probe, when it is over."""
        self._doubtful: Measured | None = None
        """What the probe says, while two items at once are to say more."""
        self._measured: Measured | None = None
        """What items take, as far as is known by now."""
        self._switches = 0
        self._out: dict[str, str] = {}
        """Engines that this batch cannot take any more, and why."""
        self._before: dict[str, str] = {}
        """Engines that it left: not to be gone back to, unless there is no other."""
        self._starting = False
        """The engine has not answered yet."""
        self._opened = 0.0
        """When it began to start."""
        self._listening: Listening | None = None
        """To the interpreter's lock, since progress is not what it should be."""
        self._watched = _Watched()
        self._looks = 0
        self._done = 0
        """Items of the probe that had ended by the last look."""
        self._predicted: tuple[Measured, int | None, tuple[Candidate, ...], Machine] | None = None
        """What was predicted for the first decision, and from what: a short batch is over before it could be
        predicted twice."""
        self.check_at = self._began  # at once: who drives the batch is to be known before its first item runs

    @property
    def decision(self) -> Decision | None:
        """The latest; None until there is one."""
        if self._latest is None and self._ended:  # only now: few ask
            assert self._probed is not None
            engine = "serial" if self._here else "thread"
            reason = "it ended before there was anything to choose"
            measured = self._known or self._probed.ended() or self._probed.measured()
            self._latest = Decision(engine, 1, self._threads(1), reason, measured=measured)
        return self._latest

    @property
    def eager(self) -> bool:
        probe = self._probe
        if probe is None:
            return self._starting
        return probe.looks or (probe.items > 0 and self._enough(probe))

    def first(self) -> Opened:
        """The engine to begin on: one thread of this process, for only here the lock can be measured, and
        where it may be the caller's own, which is there already; or at once the right one, where that is
        known and nothing needs to cross to it."""
        if self._known is not None:
            left = self._asked.left
            best, _ = selector.decide(self._candidates(self._known, left)[0])
            if best.backend in IN_PLACE:
                return self._decide(time.monotonic(), Progress(0, 0.0, left), self._known)
        return self._probing(1, "what the items take is measured first")

    def steer(self, now: float, progress: Progress) -> Opened | None:
        """The engine for what comes next, where that changes."""
        if self._probe is not None:
            self._probe.driver = threading.get_native_id()
            return self._look_at_probe(self._probe, now, progress)
        if self._starting and progress.answer is not None:
            self._has_started(now, progress, *progress.answer)
        return self._look_at_progress(now, progress) if now >= self.check_at else None

    def close(self) -> None:
        """The batch has ended."""
        if self._listening is not None:
            self._listening.locked(time.monotonic())
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()
            self._probed, self._ended = probe, True
        for executor in self._own:
            self._release(executor)
        self._remember()
        # The runner, which keeps us to explain, is not kept by us.
        self._engines = self._open = self._release = _over

    def _remember(self) -> None:
        """What this batch found out, for the next one of the task; not what it was told."""
        if self._key is None or time.monotonic() - self._began < ENOUGH_SECONDS:
            return  # to write it down would take as long
        found, measured = None, self._measured
        if measured is not None and measured.source == "watched":
            found = measured
        elif self._known is None and self._probed is not None:
            # By now the items have ended that ran when it was decided.
            found = self._probed.ended()
            if found is not None and measured is not None:
                found = dataclasses.replace(found, gil=measured.gil)
        if found is not None and found.items:
            profiles.save(self._key, found)

    # Probing

    def _probing(self, workers: int, reason: str) -> Opened:
        assert self._probe is not None
        threads = self._threads(min(self._cpus, self._asked.left or self._cpus))
        here = self._here and workers == 1
        opened = self._open(Choice("serial" if here else "thread", workers, threads, reason), not here)
        if not here:
            self._own.append(opened.executor)
        # In steps that may settle it: what is run in one go here, cannot be taken elsewhere.
        step = STEP_SECONDS if self._probe.looks else BRIEF_SECONDS
        self._probing_on = dataclasses.replace(opened, run=self._probe.run, target=step, here=here)
        return self._probing_on

    def _threads(self, workers: int) -> int:
        return native_threads(self._fixed_threads, self._cpus, workers)

    def _look_at_probe(self, probe: Probe, now: float, progress: Progress) -> Opened | None:
        if progress.left == 0:
            self.check_at = math.inf  # nothing is left to choose for
            return None
        if probe.began is None:  # the input, or the system, takes its time
            self.check_at = now + LOOKS[0]
            return None
        late = False
        if now >= self.check_at:
            brief = self._looks < BRIEF_LOOKS and not probe.looks
            ended = self._all_alike(probe, progress) if brief else None
            self._looks += 1
            late = self._looks >= len(LOOKS)
            self.check_at = now + LOOKS[-1] if late else max(now, probe.began + LOOKS[self._looks])
            if ended is not None:
                if ended.wall * _count(progress.left, ended) < HARDLY_SECONDS:
                    return None
                if (measured := self._short(ended, progress)) is not None:
                    return self._decide(now, progress, measured)
            first = not probe.looks
            probe.look()
            if first:  # it is not short
                self.check_at = max(self.check_at, time.monotonic() + HEAR_SECONDS)
                assert self._probing_on is not None
                return dataclasses.replace(self._probing_on, target=STEP_SECONDS)
        elif not probe.items or not self.eager:
            return None
        measured = probe.measured()
        if measured is None:
            return None
        if self._known is not None:
            load = max(self._known.load, measured.load)
            known = dataclasses.replace(self._known, pickles=measured.pickles, load=load)
            if probe.items or now - probe.began >= ENOUGH_SECONDS:
                return self._decide(now, progress, known)
            return None
        if self._doubtful is not None:
            speedup = probe.speedup(self._doubtful.wall)
            if speedup is None and not late:
                return None
            measured = selector.paired(self._doubtful, speedup or 1.0)
            return self._decide(now, progress, measured, "; two items at once settled it")
        if not late and not self._tells(probe, measured):
            return None
        if not late and not probe.running and (progress.left is None or progress.left >= 2):
            candidates, _ = self._candidates(measured, progress.left)
            if selector.referee(candidates, measured):
                self._doubtful = measured
                probe.pair()
                return self._probing(2, "two items at once tell threads from processes")
        return self._decide(now, progress, measured)

    def _tells(self, probe: Probe, measured: Measured) -> bool:
        """The probe has seen enough. Items that fail tell nothing: the next ones may not."""
        heard = probe.running and measured.wall > 2 * HEAR_SECONDS  # what runs is taken for twice its time
        if probe.items and not measured.items and not heard:
            return False
        return (measured.gil < FREE and probe.heard > 0) or self._enough(probe)

    def _all_alike(self, probe: Probe, progress: Progress) -> Measured | None:
        """What items take, if that of those that have ended is all there is to go by for the others, and it
        is known how many there are."""
        before, self._done = self._done, probe.items
        # If none has ended since the last look, they do not stand for the one that runs.
        alike = self._known is None and progress.left is not None and probe.items > before
        measured = probe.ended() if alike else None
        return measured if measured is not None and measured.items else None

    def _short(self, ended: Measured, progress: Progress) -> Measured | None:
        """What items take at best, if even so no engine does what is left sooner than this thread."""
        measured = selector.at_best(ended)
        candidates, machine = self._candidates(measured, progress.left)
        if selector.decide(candidates)[0].backend != "serial":
            return None
        self._predicted = measured, progress.left, candidates, machine
        return measured

    def _enough(self, probe: Probe) -> bool:
        """Whoever holds the lock has had to let go of it."""
        return probe.items >= ENOUGH_ITEMS and probe.seconds >= ENOUGH_SECONDS

    # Deciding

    def _decide(self, now: float, progress: Progress, measured: Measured, more: str = "") -> Opened:
        if self._probe is not None:
            self._probe.close()
            self._probed, self._probe = self._probe, None
        opened = self._take(now, progress, measured, more)
        if self._probed is not None and opened.choice.backend != "serial":
            self._probed.give_back()
        return opened

    def _candidates(self, measured: Measured, left: int | None) -> tuple[tuple[Candidate, ...], Machine]:
        predicted, self._predicted = self._predicted, None
        if predicted is not None and predicted[:2] == (measured, left):
            return predicted[2:]
        machine = Machine(self._cpus, min(resources.free_memory(), self._asked.memory))
        asked = dataclasses.replace(self._asked, left=left)
        engines = self._engines(measured.wall * _count(left, measured))
        candidates: tuple[Candidate, ...] = ()
        for out in ({**self._before, **self._out}, self._out):
            candidates = tuple(
                selector.predict(
                    dataclasses.replace(engine, missing=out.get(name, engine.missing)),
                    measured,
                    asked,
                    machine,
                )
                for name, engine in engines.items()
            )
            if not _all_refused(candidates):
                break
        return candidates, machine

    def _take(self, now: float, progress: Progress, measured: Measured, more: str = "") -> Opened:
        """Decide, and open the engine; again, where it turns out that it cannot be had."""
        while True:
            candidates, machine = self._candidates(measured, progress.left)
            best, reason = selector.decide(candidates)
            if best.backend not in IN_PLACE and (refused := self._crosses()):
                self._out |= {one.backend: refused for one in candidates if one.backend not in IN_PLACE}
                continue
            share = min(best.workers, _count(progress.left, measured))
            try:
                opened = self._open(Choice(best.backend, best.workers, self._threads(share), reason), False)
            except BackendUnavailable as error:
                self._out[best.backend] = str(error)
                if _all_refused(self._candidates(measured, progress.left)[0]):
                    raise
                continue
            if opened.choice.backend == best.backend:
                break
            self._out[best.backend] = "cannot start here"
            if _all_refused(self._candidates(measured, progress.left)[0]):
                break  # then what it was replaced by has to do
        tight = self._asked.workers is not None or selector.fitting(measured, machine) < 2 * best.workers
        computes = measured.cpu > COMPUTES * measured.wall
        earlier = self._latest
        self._latest = latest = Decision(
            opened.choice.backend,
            opened.choice.workers,
            opened.choice.threads,
            reason + more,
            candidates,
            measured,
            machine,
            progress.left,
            now - self._began if earlier is None else 0.0,
            earlier,
        )
        self._measured = measured
        logger.info("%s", latest.line)
        each = max(0.0, best.seconds - best.start) / _count(progress.left, measured)
        self._expect(now, progress, each)
        if best.start:
            self._starting, self._opened = True, now
            self.check_at += START_PATIENCE * best.start
        return dataclasses.replace(
            opened, each=measured.wall, bounded=tight, gradual=computes and earlier is None
        )

    # Watching

    def _has_started(self, now: float, progress: Progress, answered: float, work: float) -> None:
        """The engine has answered: the clock starts for what it is to do."""
        assert self.decision is not None
        calibrate.started(self.decision.backend, answered - self._opened - work)
        self._expect(now, progress, self._watched.each)

    def _expect(self, start: float, progress: Progress, each: float) -> None:
        """From `start` on, an item is to take `each` seconds by the clock on the wall."""
        assert self.decision is not None
        patience = max(WATCH_SECONDS, 2 * self.decision.workers * each / selector.SLOW)
        self._watched = _Watched(start, progress, each, time.process_time(), patience)
        self._starting = False
        self.check_at = start + patience

    def _look_at_progress(self, now: float, progress: Progress) -> Opened | None:
        watched, decision, known = self._watched, self.decision, self._measured
        assert decision is not None
        assert known is not None
        if progress.left == 0:
            self.check_at = math.inf
            return None
        inside = decision.backend in IN_PLACE
        seen = watched.seen(now, progress, known.wall, inside=inside)
        if (
            not inside
            and seen.items < FEW_ITEMS * decision.workers
            and now - watched.start < FEW_SECONDS + 8 * known.wall
        ):
            self.check_at = now + WATCH_SECONDS
            return None
        why = selector.off_course(seen, watched.each, known)
        if why and inside and self._listening is None:
            self._listening = Listening()
            self.check_at = now + LISTEN_SECONDS
            return None
        if self._listening is not None:
            seen = dataclasses.replace(seen, locked=self._listening.locked(now))
            self._listening = None
        watched.patience *= 2
        self.check_at = watched.start + watched.patience
        if not why:
            return None
        measured = selector.revise(known, seen)
        candidates, _ = self._candidates(measured, progress.left)
        if _all_refused(candidates):
            return None
        left = _count(progress.left, measured)
        here = next(one for one in candidates if one.backend == decision.backend)
        actual = seen.seconds / seen.items if seen.items else here.seconds / left
        if not inside or seen.locked > selector.LOCKED:
            # What it does is known, and need not be predicted. Threads that are slow without a lock to wait
            # for have busy neighbours, who would be no better to another engine.
            known_here = actual * left / (1 if inside else CHANCE)
            now_here = dataclasses.replace(here, seconds=max(here.seconds, known_here))
            candidates = tuple(now_here if one is here else one for one in candidates)
            here = now_here
        best, _ = selector.decide(candidates)
        wider = best.backend == decision.backend and best.workers > WIDER * decision.workers
        if (selector.stays(here, best) and not wider) or self._switches == MOST_SWITCHES:
            self._measured = measured
            self._expect(now, progress, actual)
            return None
        self._switches += 1
        if best.backend != decision.backend:
            # Or a busy machine would send it to and fro.
            self._before[decision.backend] = "was left for another one before"
        return self._take(now, progress, measured, f"; {why}")


@dataclasses.dataclass(slots=True)
class _Watched:
    """What is expected of the engine that runs, and since when."""

    start: float = 0.0
    since: Progress = dataclasses.field(default_factory=lambda: Progress(0, 0.0, None))
    each: float = 0.0
    cpu: float = 0.0
    patience: float = 0.0

    def seen(self, now: float, progress: Progress, wall: float, *, inside: bool) -> Seen:
        # The time of one item, or of one chunk, is forgiven: what runs is no slower for not having ended.
        until = max(progress.last, now - max(1.5 * wall, CHUNK_SECONDS))
        return Seen(
            progress.done - self.since.done,
            max(0.0, until - self.start),
            progress.work - self.since.work,
            progress.running,
            time.process_time() - self.cpu if inside else None,
        )


def _all_refused(candidates: tuple[Candidate, ...]) -> bool:
    return all(one.refusal for one in candidates)


def _over(*_: Any) -> NoReturn:
    raise RuntimeError("this batch has ended")


def _count(left: int | None, measured: Measured) -> int:
    """Items that are left, or are taken to be."""
    if left is not None:
        return max(1, left)
    return max(1, int(selector.HORIZON_SECONDS / max(measured.wall, 1e-9)))
