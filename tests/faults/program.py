"""Runs faults on one engine in turn; prints a line of JSON for each (`python -m tests.faults.program -h`)."""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import functools
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from tests.faults import items
from tests.faults.census import SHM, census, growth, own_shm
from tests.waiting import alive, until
from video import ParallelConfig, Runner, registry
from video.backends import _pool, _wire
from video.errors import BackendUnavailable, WorkerDied
from video.outcome import Outcome

Facts: TypeAlias = dict[str, Any]
Fault: TypeAlias = "Callable[[Lab], Facts]"

WORKERS = 2
LIMIT = 0.5
"""Seconds that an item may run where there is a time limit."""
LATE_SECONDS = 1.5
"""What an item that nobody can stop takes: it must end some time, for its thread to be counted."""
STUCK_SECONDS = 60
AT = 17
"""The item at which something happens, of so many:"""
COUNT = 40
LONG_COUNT = 120
"""Items of a batch that something else happens beside."""
LARGE_BYTES = 200 * 2**20
CHUNK = 64
IN_CHUNK = 230
"""An item far from the ends of its chunk, however the first ones were cut."""
CONNECTIONS = 16
"""That Dask may open on demand and keep."""
READY = "ready"
"""What the program says first: its engine has started once."""


class Lab:
    """One engine, under the settings of one variant of it.

    :param variant: "" or "spawn" (how the process engine starts workers) or "coroutines".
    """

    def __init__(self, engine: str, variant: str, folder: Path) -> None:
        self.engine = engine
        self.traits = registry.backends.get(engine).traits
        self.coroutines = variant == "coroutines"
        self.settings: dict[str, Any] = {"backend": engine, "max_workers": WORKERS, "strict": True}
        if variant == "spawn":
            self.settings["start_method"] = "spawn"
        self.folder = folder
        self.shm_is_ours = own_shm()
        self.start = census(shm_is_ours=self.shm_is_ours)

    def runner(self, **settings: Any) -> Runner:
        return Runner(ParallelConfig(**self.settings | settings))

    def task(self, task: Callable[..., Any], *args: Any) -> Callable[[Any], Any]:
        """A task of one item; a coroutine function where this variant is about them."""
        task = functools.partial(task, *args)
        return functools.partial(items.softly, task) if self.coroutines else task

    def room(self) -> Path:
        """A new folder, apart from the temporary ones that are counted."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @property
    def stuck_seconds(self) -> float:
        return STUCK_SECONDS if self.traits.kills else LATE_SECONDS

    def warm(self, runner: Runner) -> None:
        """Start every worker, and import what calls import."""
        for _ in range(2):
            runner.map(self.task(items.linger), range(4 * WORKERS))

    def watch(
        self, use: Callable[[Runner], Facts], *, segments: int = 0, workers: int = 0, **settings: Any
    ) -> Facts:
        """Run `use` on a warm runner, and see what has grown; then what is left of it all once it is closed.

        :param segments: so many more of shared memory may be kept for use again.
        :param workers: so many may just have been dismissed when the runner was warm, and live afterwards.
        """
        kept = {
            "segments": segments,
            "descriptors": CONNECTIONS if self.traits.remote else 3 * workers,
            "processes": 2 * workers,  # each with its guard
            "threads": workers,
        }
        with self.runner(**settings) as runner:
            self.warm(runner)
            before = census(shm_is_ours=self.shm_is_ours)
            facts = use(runner)
            again = runner.map(self.task(items.linger), range(4 * WORKERS))
            facts["again"] = [outcome.value for outcome in again] == list(range(0, 8 * WORKERS, 2))
            facts["grown"] = growth(before, kept, shm_is_ours=self.shm_is_ours)
        return self.left(facts)

    def left(self, facts: Facts) -> Facts:
        facts["left"] = growth(self.start, {}, shm_is_ours=self.shm_is_ours)
        return facts

    def workers(self, runner: Runner) -> list[int]:
        """Processes that run items; they are idle afterwards."""
        pids: set[int] = set()
        while len(pids) < WORKERS:
            pids |= {outcome.unwrap() for outcome in runner.map(self.task(items.process), range(4 * WORKERS))}
        return sorted(pids)


def told(outcomes: Iterable[Outcome[Any]], count: int) -> Facts:
    """Outcomes as JSON takes them.

    :param count: items that there were.
    """
    rows = []
    for outcome in outcomes:
        error, cause = outcome.error, None if outcome.error is None else outcome.error.__cause__
        rows.append(
            {
                "index": outcome.index,
                "value": outcome.value if isinstance(outcome.value, int | list | str) else None,
                "error": None if error is None else type(error).__name__,
                "words": "" if error is None else _words(error),
                "cause": None if cause is None else type(cause).__name__,
                "exitcode": error.exitcode if isinstance(error, WorkerDied) else None,
                "kind": getattr(error, "kind", None),
                "attempts": outcome.attempts,
                "seconds": outcome.seconds,
            }
        )
    return {"count": count, "outcomes": rows}


def batch(runner: Runner, task: Callable[[Any], Any], inputs: Iterable[Any], count: int) -> Facts:
    """A batch, and how long it took."""
    began = time.monotonic()
    outcomes = runner.map(task, inputs)
    return {"batch seconds": round(time.monotonic() - began, 3)} | told(outcomes, count)


def _words(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except Exception as failure:
        return f"(it cannot say: {failure})"


# One item of many is bad


def _bad(how: Callable[[], Any], **settings: Any) -> Fault:
    def fault(lab: Lab) -> Facts:
        task = lab.task(items.strike, how, AT)
        return lab.watch(lambda runner: batch(runner, task, range(COUNT), COUNT), **settings)

    return fault


def _hang(how: Callable[[float], Any]) -> Fault:
    def fault(lab: Lab) -> Facts:
        return _bad(functools.partial(how, lab.stuck_seconds), timeout=LIMIT)(lab)

    return fault


def _bad_argument(kind: Callable[[], Any]) -> Fault:
    def fault(lab: Lab) -> Facts:
        arguments: list[Any] = list(range(COUNT))
        arguments[AT] = kind()
        task = lab.task(items.is_number)
        return lab.watch(lambda runner: told(runner.map(task, arguments), COUNT))

    return fault


def odd_exceptions(lab: Lab) -> Facts:
    task = lab.task(items.odd)
    return lab.watch(lambda runner: told(runner.map(task, range(COUNT)), COUNT))


def large(lab: Lab) -> Facts:
    """An argument and a result of 200 MB, among small ones."""
    block = os.urandom(1 << 20)
    arguments: list[Any] = [b"%d" % number for number in range(6)]
    arguments[3] = block * (LARGE_BYTES >> 20)
    want = [zlib.crc32(one[::-1]) for one in arguments]

    def use(runner: Runner) -> Facts:
        outcomes = runner.map(lab.task(items.backwards), arguments)
        same = [zlib.crc32(outcome.value or b"") for outcome in outcomes] == want
        return told(outcomes, len(arguments)) | {"same": same}

    return lab.watch(use, segments=2 * WORKERS * _wire.MOST_FREE)


# The input


def input_that_raises(lab: Lab) -> Facts:
    def failing() -> Iterator[int]:
        yield from range(AT)
        raise OSError("the list ends badly")

    def use(runner: Runner) -> Facts:
        outcomes, error = [], ""
        try:
            for outcome in runner.stream(lab.task(items.double), failing()):
                outcomes.append(outcome)  # noqa: PERF402  # those before the error count
        except OSError as raised:
            error = str(raised)
        return told(outcomes, AT) | {"raised": error}

    return lab.watch(use)


def endless_input(lab: Lab) -> Facts:
    def use(runner: Runner) -> Facts:
        drawn = itertools.count()
        with runner.stream(lab.task(items.double), iter(lambda: next(drawn), None)) as stream:
            outcomes = list(itertools.islice(stream, 100))
            time.sleep(0.2)
        count = next(drawn)
        time.sleep(0.2)
        return told(outcomes, 100) | {"ahead": count - 100, "still drawing": next(drawn) != count + 1}

    return lab.watch(use, lookahead=30)


# Ctrl-C


def interrupt(lab: Lab) -> Facts:
    """One Ctrl-C, which a terminal sends to the whole process group, while long items run."""

    def use(runner: Runner) -> Facts:
        began = lab.room()
        seconds = STUCK_SECONDS if lab.traits.kills else 1
        how = functools.partial(items.sleep_softly if lab.coroutines else time.sleep, seconds)
        task = lab.task(items.begun_then, began, how)
        least = 1 if lab.engine == "serial" else WORKERS

        def press() -> None:
            until(lambda: len(items.read(began / "begun")) >= least)
            os.killpg(0, signal.SIGINT)

        thumb = threading.Thread(target=press)
        thumb.start()
        try:
            runner.map(task, itertools.count())
        except KeyboardInterrupt:
            return told([], 0) | {"interrupted": True}
        finally:
            thumb.join()
        return told([], 0) | {"interrupted": False}

    return lab.watch(use)


# Workers die by another's hand


def kill_idle_workers(lab: Lab) -> Facts:
    def use(runner: Runner) -> Facts:
        for pid in lab.workers(runner):
            os.kill(pid, signal.SIGKILL)
        return told(runner.map(lab.task(items.double), range(COUNT)), COUNT)

    return lab.watch(use)


def kill_every_worker(lab: Lab) -> Facts:
    """All of them at once, each in the middle of an item."""

    def use(runner: Runner) -> Facts:
        began = lab.room()
        struck: list[int] = []

        def strike() -> None:
            until(lambda: len(items.read(began / "begun")) >= WORKERS)
            lines = [line.split() for line in items.read(began / "begun")]
            for _, pid in lines:
                os.kill(int(pid), signal.SIGKILL)
            struck.extend(int(index) for index, _ in lines)

        hand = threading.Thread(target=strike)
        hand.start()
        task = lab.task(items.begun_then, began, functools.partial(time.sleep, 0.5))
        outcomes = runner.map(task, range(8))
        hand.join()
        return told(outcomes, 8) | {"struck": struck}

    return lab.watch(use)


def kill_loop(lab: Lab, seconds: float = 30.0) -> Facts:
    """A random worker dies every 50 ms (less often where an engine takes longer to start one)."""

    def use(runner: Runner) -> Facts:
        marks = lab.room()
        pause = max(0.05, 3 * lab.traits.start) if not lab.traits.exact else 0.05
        end = time.monotonic() + seconds
        kills = 0

        def strike() -> None:
            nonlocal kills
            while time.monotonic() < end:
                time.sleep(pause)
                living = [pid for pid in items.workers(marks) if alive(pid)]
                if living:
                    os.kill(random.choice(living), signal.SIGKILL)
                    kills += 1

        def until_then() -> Iterator[int]:
            for number in itertools.count():
                if time.monotonic() > end:
                    return
                yield number

        hand = threading.Thread(target=strike)
        hand.start()
        count, attempts, in_order, failed, odd = 0, 0, True, [], []
        for outcome in runner.stream(lab.task(items.signed, marks, 0.0005), until_then()):
            in_order = in_order and outcome.index == count
            count += 1
            attempts += outcome.attempts
            if outcome.error is not None:
                failed.append([outcome.index, type(outcome.error).__name__, outcome.attempts])
            elif outcome.value != 2 * outcome.index:
                odd.append(outcome.index)
        hand.join()
        starts = len(items.read(marks / "starts"))
        facts = {"kills": kills, "in order": in_order, "ran": count, "attempts": attempts, "starts": starts}
        return told([], 0) | facts | {"failed": failed, "odd": odd}

    return lab.watch(use, max_kills=2)


def _child(own_session: bool) -> Fault:
    def fault(lab: Lab) -> Facts:
        def use(runner: Runner) -> Facts:
            folder = lab.room()
            facts = batch(runner, lab.task(items.with_child, folder, own_session), range(6), 6)
            (child,) = (int(line) for line in items.read(folder / "child"))
            with contextlib.suppress(AssertionError):
                until(lambda: not alive(child), 5)
            return facts | {"child lives": alive(child)}

        return lab.watch(use, timeout=LIMIT)

    return fault


# Within a chunk


def _in_chunk(how: Callable[[], Any], **settings: Any) -> Fault:
    """Something happens in the middle of a chunk of 64; every start is written down."""

    def fault(lab: Lab) -> Facts:
        def use(runner: Runner) -> Facts:
            marks = lab.room()
            runner.map(lab.task(items.double), iter(range(1000)))
            task = lab.task(items.noted, marks, how, IN_CHUNK)
            facts = batch(runner, task, iter(range(400)), 400)
            return facts | {"starts": [int(line) for line in items.read(marks / "starts")]}

        return lab.watch(use, chunk_size=CHUNK, **settings)

    return fault


def trap_in_a_chunk(lab: Lab) -> Facts:
    """A chunk's results come in parts, and one of them does not unpickle."""

    def use(runner: Runner) -> Facts:
        runner.map(lab.task(items.double), iter(range(1000)))
        return told(runner.map(lab.task(items.trap_among_long_ones, IN_CHUNK), iter(range(400))), 400)

    return lab.watch(use, chunk_size=CHUNK)


# Others in the same process


def fork(lab: Lab) -> Facts:
    """The program forks while its threads run a batch; a child uses the runner, others just end."""

    def use(runner: Runner) -> Facts:
        outcomes: list[Outcome[Any]] = []

        def batch() -> None:
            outcomes.extend(runner.map(lab.task(items.linger), range(LONG_COUNT)))

        thread = threading.Thread(target=batch)
        thread.start()
        endings = []
        for inherits in (False, True, False):
            time.sleep(0.1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested
                pid = os.fork()
            if pid == 0:
                if inherits:
                    values = [one.value for one in runner.map(lab.task(items.double), range(4))]
                    runner.close()
                    os._exit(0 if values == [0, 2, 4, 6] else 3)
                sys.exit(0)
            endings.append(_ending(pid))
        thread.join()
        return told(outcomes, LONG_COUNT) | {"endings": endings}

    return lab.watch(use)


def _ending(pid: int) -> int:
    """Exit code of a child of ours; one that hangs is made to say where."""
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
            deadline += 20
        time.sleep(0.01)


def two_runners(lab: Lab) -> Facts:
    """One has its workers killed; the other is not to notice."""

    def use(runner: Runner) -> Facts:
        before = lab.workers(runner)
        with lab.runner() as other:
            theirs = lab.workers(other)
            outcomes: list[Outcome[Any]] = []

            def batch() -> None:
                outcomes.extend(runner.map(lab.task(items.linger), range(LONG_COUNT)))

            thread = threading.Thread(target=batch)
            thread.start()
            killed = other.map(lab.task(items.strike, items.kill, AT), range(COUNT))
            for pid in lab.workers(other):
                os.kill(pid, signal.SIGKILL)
            good = [one.ok for one in other.map(lab.task(items.double), range(COUNT))]
            thread.join()
        facts = told(outcomes, LONG_COUNT)
        facts["other"] = told(killed, COUNT)["outcomes"]
        return facts | {
            "other again": all(good),
            "apart": not set(before) & set(theirs),
            "same workers": before == lab.workers(runner),
        }

    return lab.watch(use)


def eight_threads(lab: Lab) -> Facts:
    """Each has its own batch on the one runner, with an item that fails (that kills, where all is exact)."""

    def use(runner: Runner) -> Facts:
        how = items.kill if lab.traits.exact else items.leave_in_peace
        outcomes: list[list[Outcome[Any]]] = [[] for _ in range(8)]

        def batch(number: int) -> None:
            task = lab.task(items.strike, how, number)
            outcomes[number] = runner.map(task, range(COUNT))

        threads = [threading.Thread(target=batch, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told([], 0) | {"batches": [told(one, COUNT)["outcomes"] for one in outcomes]}

    return lab.watch(use)


def nested(lab: Lab) -> Facts:
    return lab.watch(lambda runner: told(runner.map(lab.task(items.nested), range(6)), 6))


# Hooks and recycling


def initializer_fails(lab: Lab) -> Facts:
    with lab.runner(initializer=items.fail_to_start) as runner:
        try:
            facts = told(runner.map(lab.task(items.double), range(6)), 6)
        except BackendUnavailable as error:  # an engine that starts its workers at once may say so at once
            facts = told([], 0) | {"refused": str(error)}
    return lab.left(facts)


def recycle_by_items(lab: Lab) -> Facts:
    def use(runner: Runner) -> Facts:
        outcomes = runner.map(lab.task(items.process), range(COUNT))
        each: dict[int, int] = {}
        for outcome in outcomes:
            each[outcome.unwrap()] = each.get(outcome.unwrap(), 0) + 1
        return told(outcomes, COUNT) | {"most": max(each.values())}

    # A seat without a worker gets one with its next call. A leak would be of all that were replaced.
    return lab.watch(use, workers=WORKERS, max_items_per_worker=5)


def recycle_by_memory(lab: Lab) -> Facts:
    def use(runner: Runner) -> Facts:
        outcomes = runner.map(lab.task(items.keep, 40), range(12))
        each: dict[int, int] = {}
        for outcome in outcomes:
            each[outcome.unwrap()] = each.get(outcome.unwrap(), 0) + 1
        return told(outcomes, 12) | {"most": max(each.values())}

    return lab.watch(use, max_worker_memory_mb=160, chunk_size=1)


# Little or no memory


def _arrays(lab: Lab, runner: Runner) -> Facts:
    arguments = [bytes([number]) * 3_000_000 for number in range(12)]
    outcomes = runner.map(lab.task(items.backwards), arguments)
    return told(outcomes, 12) | {"same": [one.value for one in outcomes] == arguments}


def _limit_files(size: int) -> None:
    import resource  # not on Windows, where this module is imported, too

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def little_shared_memory(lab: Lab) -> Facts:
    """Files, shared memory among them, may grow to 256 KiB: enough for a board, too little for arrays."""
    _limit_files(1 << 18)
    return lab.watch(functools.partial(_arrays, lab))


def shared_memory_runs_full(lab: Lab) -> Facts:
    """Every other write to shared memory ends half way, and the next finds none left."""
    real, calls = os.pwrite, itertools.count()

    def pwrite(fd: int, data: Any, place: int) -> int:
        if next(calls) % 3 == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: max(1, len(data) // 2)], place)

    os.pwrite = pwrite
    return lab.watch(functools.partial(_arrays, lab), segments=WORKERS * _wire.MOST_FREE)


def _no_shared_memory(take_away: Callable[[], None]) -> Fault:
    def fault(lab: Lab) -> Facts:
        take_away()
        facts: Facts = {}
        with lab.runner(strict=True) as runner:
            try:
                runner.map(lab.task(items.double), range(4))
            except BackendUnavailable as error:
                facts["strict"] = str(error)
        with lab.runner(strict=False) as runner, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                facts |= told(runner.map(lab.task(items.double), range(COUNT)), COUNT)
        facts["warnings"] = [[type(one.message).__name__, str(one.message)] for one in caught]
        return lab.left(facts)

    return fault


def _without_memfd() -> None:
    def memfd_create(name: str, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    os.memfd_create = memfd_create


def _without_room() -> None:
    _limit_files(1 << 14)


# For want of memory

GROUP_BYTES = 256 * 2**20
HUNGRY_MEGABYTES = 400


def out_of_memory(lab: Lab) -> Facts:
    """In a control group with a limit, an item takes more than there is: once, or each time."""
    try:
        group = make_memory_group(GROUP_BYTES)
    except OSError as error:  # only root may, mostly
        return {"skipped": f"this system gives us no control group with a limit ({error})"}
    hungry = functools.partial(items.fill, HUNGRY_MEGABYTES)
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        marks = lab.room()
        with lab.runner() as runner:
            once = told(runner.map(lab.task(items.once, marks, hungry, AT), range(COUNT)), COUNT)
        spans = [line.split() for line in items.read(marks / "spans")]
        with lab.runner(max_memory_kills=1) as runner:
            first = told(runner.map(lab.task(items.strike, hungry, AT), range(COUNT)), COUNT)
        with lab.runner(max_memory_kills=2) as runner:
            always = told(runner.map(lab.task(items.strike, hungry, AT), range(COUNT)), COUNT)
        facts = once | {"spans": spans, "first": first["outcomes"], "always": always["outcomes"]}
        return lab.left(facts)
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        until(lambda: not (group / "cgroup.procs").read_text(), 10)
        group.rmdir()


def make_memory_group(limit: int) -> Path:
    """A control group below our own one (cgroup v1 or v2) whose processes may hold so many bytes together.

    :raises OSError: if the machine does not let us; the message says why.
    """
    top, name, ours = None, "", ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, name, ours = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", path
            break
        if controllers == "" and "memory" in _controllers(Path("/sys/fs/cgroup", path.lstrip("/"))):
            top, name, ours = Path("/sys/fs/cgroup"), "memory.max", path
    if top is None:
        raise OSError("no memory controller for groups below this process's own")
    group = top / ours.lstrip("/") / f"video-faults-{os.getpid()}"
    group.mkdir()
    try:
        (group / name).write_text(str(limit))
        for swap in ("memory.swap.max", "memory.swappiness"):
            if (group / swap).exists():
                (group / swap).write_text("0")
    except OSError:
        group.rmdir()
        raise
    return group


def _controllers(group: Path) -> list[str]:
    """That groups below this one may use."""
    path = group / "cgroup.subtree_control"
    return path.read_text().split() if path.exists() else []


def small_shm(lab: Lab) -> Facts:
    """A /dev/shm of 1 MB, half full, while arrays of 3 MB cross."""
    if not own_shm("1m"):
        return {"skipped": "this system does not let us mount a small /dev/shm"}
    (SHM / "filler").write_bytes(bytes(1 << 19))
    lab.start = census(shm_is_ours=True)
    return lab.watch(functools.partial(_arrays, lab), segments=2 * WORKERS * _wire.MOST_FREE)


# Ended from outside


def hold(lab: Lab, how: str) -> None:
    """Run items that hang, and wait to be killed or interrupted; says "holding" once they all hang."""
    began = lab.room()
    ways = {
        "sleep": items.sleep_softly if lab.coroutines else time.sleep,
        "spin": items.spin,
        "lock": items.hold_the_lock,
        "resist": items.resist if lab.traits.pickles else items.spin,
    }
    task = lab.task(items.begun_then, began, functools.partial(ways[how], STUCK_SECONDS))

    def say() -> None:
        least = 1 if lab.engine == "serial" else WORKERS
        until(lambda: len(items.read(began / "begun")) >= least)
        print(json.dumps({"fault": "holding"}), flush=True)

    threading.Thread(target=say, daemon=True).start()
    try:
        with lab.runner() as runner:
            lab.warm(runner)
            runner.map(task, itertools.count())
    except KeyboardInterrupt:
        print(json.dumps({"fault": "interrupted"}), flush=True)
        raise


FAULTS: dict[str, Fault] = {
    "kill": _bad(items.kill),
    "segfault": _bad(items.segfault),
    "leave": _bad(items.leave),
    "exit": _bad(items.leave_in_peace),
    "memory": _bad(items.devour),
    "odd exceptions": odd_exceptions,
    "cancels itself": _bad(items.cancel_itself),
    "spin": _hang(items.spin),
    "sleep": _hang(time.sleep),
    "sleep softly": _hang(items.sleep_softly),
    "hold the lock": _hang(items.hold_the_lock),
    "argument": _bad_argument(threading.Lock),
    "stubborn argument": _bad_argument(items.Stubborn),
    "argument that does not unpickle": _bad_argument(items.Trap),
    "result": _bad(threading.Lock),
    "result that does not unpickle": _bad(items.Trap),
    "exception": _bad(functools.partial(items.throw, items.locked)),
    "exception that does not unpickle": _bad(functools.partial(items.throw, items.unloadable)),
    "large": large,
    "input that raises": input_that_raises,
    "endless input": endless_input,
    "interrupt": interrupt,
    "kill idle workers": kill_idle_workers,
    "kill every worker": kill_every_worker,
    "kill loop": kill_loop,
    "child": _child(own_session=False),
    "child with its own session": _child(own_session=True),
    "death in a chunk": _in_chunk(items.kill),
    "deaths in a chunk": _in_chunk(items.kill, max_kills=3),
    "overrun in a chunk": _in_chunk(functools.partial(time.sleep, STUCK_SECONDS), timeout=LIMIT),
    "trap in a chunk": trap_in_a_chunk,
    "fork": fork,
    "two runners": two_runners,
    "eight threads": eight_threads,
    "nested": nested,
    "initializer fails": initializer_fails,
    "recycle by items": recycle_by_items,
    "recycle by memory": recycle_by_memory,
    "little shared memory": little_shared_memory,
    "shared memory runs full": shared_memory_runs_full,
    "small /dev/shm": small_shm,
    "no shared memory": _no_shared_memory(_without_memfd),
    "no room for shared memory": _no_shared_memory(_without_room),
    "out of memory": out_of_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run faults on one engine, and say in JSON what happened.")
    parser.add_argument("engine", help="its name, or NAME:spawn, NAME:coroutines")
    parser.add_argument("faults", nargs="*", help="; ".join(FAULTS))
    parser.add_argument("--hold", help="run items that hang in this way, instead: sleep, spin, lock, resist")
    parser.add_argument("--folder", type=Path, required=True, help="for marks on the disk")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    # A shell without job control ignores it for what it starts in the background, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()  # one that hangs is ended by SIGABRT, and then says where its threads are
    engine, _, variant = options.engine.partition(":")
    lab = Lab(engine, variant, options.folder)
    if options.hold:
        _pool.LOST_SECONDS = 30.0  # so that waiting for threads is told apart from not waiting
        hold(lab, options.hold)
        return
    with lab.runner() as runner:  # what is imported once, and started once for the whole process
        lab.warm(runner)
        runner.map(lab.task(items.backwards), [bytes(1 << 25)])
    print(json.dumps({"fault": READY}), flush=True)
    for fault in options.faults:
        for _ in range(options.repeats):
            lab.start = census(shm_is_ours=lab.shm_is_ours)  # anew: a leak is one fault's
            began = time.monotonic()
            facts = FAULTS[fault](lab)
            took = {"fault": fault, "took": round(time.monotonic() - began, 3)}
            print(json.dumps(took | facts), flush=True)


if __name__ == "__main__":
    main()
