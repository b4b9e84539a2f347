"""Who keeps what: the same faults, against the peers that are installed and against each of our engines.

    python benchmarks/faults.py [--engines pebble,video:process] [--rows kill,stuck] [--json PATH]

Each row of faults is run on each engine as a cell: a program of its own, in a session of its own.

    this script --starts--> cell: opens the engine, runs the fault --starts--> workers: run the tasks
         ^                    |                                                  |
         +---- facts.json <---+          folder of the cell                      |
         +---- ROLE.ITEM.PID files, "who runs here" <----------------------------+

A cell is waited for with a bound, so that an engine that hangs costs only its cell, which then says "hung".
What a cell leaves behind is ended by its process group and by the processes that its tasks wrote down; a
process counts as the one that was written down only while its start time is the same.

Every peer is used in the best form that its documentation has for the fault at hand; what that is stands
under the table. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

Fact: TypeAlias = int | str | bool | None
Task: TypeAlias = Callable[[int], Any]

WORKERS = 2
LIMIT = 1.0
"""Seconds that an item of the row "stuck" may run."""
PATIENCE = 3.0
"""What an engine without a limit of its own is given beyond it, and what a stopped item may take to die."""
STUCK_SECONDS = 60.0
ORPHAN_SECONDS = 5.0
EXIT_SECONDS = 40.0
"""A program that has not ended so long after Ctrl-C is not waited for any more."""
START_SECONDS = 30.0
"""Until the first items run, on a busy machine too."""
LOOKAHEAD = 16
INPUTS = 10_000


# What the workers run. Module-level functions, since most peers take nothing else.


def linger(folder: str, seconds: float, item: int) -> int:
    sign(folder, "worker", item)
    time.sleep(seconds)
    return item


async def linger_softly(folder: str, seconds: float, item: int) -> int:
    sign(folder, "worker", item)
    await asyncio.sleep(seconds)
    return item


def die(folder: str, victim: int, item: int) -> int:
    """Kill the worker, as the system does when memory is short, on one item."""
    sign(folder, "worker", item)
    time.sleep(0.05)
    if item == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def hang(folder: str, victim: int, item: int) -> int:
    """Hang on one item in one long call, with a child process, as a job hangs that waits for its encoder."""
    if item == victim:
        with hanging(folder, item):
            time.sleep(STUCK_SECONDS)
    return item


async def hang_softly(folder: str, victim: int, item: int) -> int:
    if item == victim:
        with hanging(folder, item):
            await asyncio.sleep(STUCK_SECONDS)
    return item


@contextlib.contextmanager
def hanging(folder: str, item: int) -> Iterator[None]:
    child = subprocess.Popen(["sleep", f"{STUCK_SECONDS:g}"])
    sign(folder, "child", item, child.pid)
    sign(folder, "stuck", item)
    try:
        yield
    finally:  # stopped in a way that leaves its process alive
        Path(folder, "left").touch()


def echo(item: int) -> int:
    return item


# Who is alive.


def birth(pid: int) -> str | None:
    """When that process started, as the system words it; None if it is dead.

    A number alone does not do: the system gives it to another process some day.
    """
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        start = fields[18]  # field 22 of proc(5); `state` is the third
    else:
        asked = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, start = asked.stdout.strip().partition(" ")
    return None if state[:1] in ("Z", "X", "") else start.strip()


def sign(folder: str, role: str, item: int, pid: int | None = None) -> None:
    """Write down, for the script, that this process (or `pid`) runs here."""
    pid = os.getpid() if pid is None else pid
    page = Path(folder, f".{role}.{item}.{pid}")
    page.write_text(birth(pid) or "")
    page.replace(page.with_name(page.name[1:]))  # whole or not at all: others read it at any time


def signed(folder: Path, role: str = "*") -> list[tuple[int, str]]:
    """Process and start time, once for each item that signed."""
    found: list[tuple[int, str]] = []
    for page in folder.glob(f"{role}.*.*"):
        with contextlib.suppress(OSError, ValueError):
            found.append((int(page.suffix[1:]), page.read_text()))
    return found


def living(folder: Path, role: str = "*") -> set[int]:
    return {pid for pid, start in signed(folder, role) if birth(pid) == start}


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait for it; whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def item_dead(folder: Path) -> bool:
    """The stuck item began, and neither runs on in a live process."""
    return bool(signed(folder, "stuck")) and ((folder / "left").exists() or not living(folder, "stuck"))


def child_dead(folder: Path) -> bool:
    return bool(signed(folder, "child")) and not living(folder, "child")


# The engines.


class Side(ABC):
    """One engine, as a program would use it. A task whose results are counted returns its item."""

    package: str
    """What `pip` calls it."""
    module: str
    how: str
    """In what form it is used, for the reader of the table."""
    processes = True
    """Its workers are processes."""
    coroutines = False
    """Its tasks are `async def`."""

    library: Any
    """The imported module."""

    def open(self) -> None:
        """Import it and open its pool, where it has one: in the cell, before all else."""
        self.library = importlib.import_module(self.module)

    @abstractmethod
    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        """The results that reach the caller, whatever becomes of the other items.

        :param limit: seconds for one item.
        """

    @abstractmethod
    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        """Start item 0, wait until it is `running`, cancel it, and pass on what the engine answers. None: it
        cannot be asked."""

    @abstractmethod
    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        """Results as they come, from an input that is drawn no faster than the engine needs."""

    @abstractmethod
    def stop(self) -> None:
        """End at once, with whatever still runs: what a program calls when it sees KeyboardInterrupt."""


class Futures(Side):
    """What the peers with a `submit -> Future` have in common."""

    pool: Any

    def submit(self, task: Task, item: int, limit: float | None) -> Any:
        return self.pool.submit(task, item)

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        futures: list[Any] = []
        with contextlib.suppress(Exception):  # a broken pool takes no more
            futures.extend(self.submit(task, item, limit) for item in items)
        finished, late = concurrent.futures.wait(futures, None if limit is None else limit + PATIENCE)
        for future in late:
            future.cancel()
        return [one.result() for one in finished if not one.cancelled() and one.exception() is None]

    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        future = self.submit(task, 0, None)
        until(running, START_SECONDS)
        return self.cancel_running(future)

    def cancel_running(self, future: Any) -> bool:
        return bool(future.cancel())

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        return iter(self.pool.map(task, items))


class StandardPool(Futures):
    package = module = "concurrent.futures"
    how = "submit; map (with buffersize since Python 3.14); shutdown(wait=False, cancel_futures=True)"

    def open(self) -> None:
        super().open()
        self.pool = self.library.ProcessPoolExecutor(WORKERS)

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        bound = {"buffersize": LOOKAHEAD} if sys.version_info >= (3, 14) else {}
        return iter(self.pool.map(task, items, **bound))

    def stop(self) -> None:
        if sys.version_info >= (3, 14):
            self.pool.kill_workers()
        else:
            self.pool.shutdown(wait=False, cancel_futures=True)


class Loky(Futures):
    package = module = "loky"
    how = "get_reusable_executor, asked for anew before each batch; shutdown(kill_workers=True)"

    def open(self) -> None:
        super().open()
        self.pool = self.library.get_reusable_executor(WORKERS)

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        self.pool = self.library.get_reusable_executor(WORKERS)
        return super().kept(task, items, limit)

    def stop(self) -> None:
        self.pool.shutdown(wait=True, kill_workers=True)


class Pebble(Futures):
    package, module = "Pebble", "pebble"
    how = "schedule(timeout=); map().result(); future.cancel(); stop() and join()"

    def open(self) -> None:
        super().open()
        self.pool = self.library.ProcessPool(WORKERS)

    def submit(self, task: Task, item: int, limit: float | None) -> Any:
        return self.pool.schedule(task, args=[item], timeout=limit)

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        return iter(self.pool.map(task, items).result())

    def stop(self) -> None:
        self.pool.stop()
        self.pool.join()


class Deadpool(Futures):
    package, module = "deadpool-executor", "deadpool"
    how = (
        "submit(deadpool_timeout=); map, max_backlog=16; cancel_and_kill_if_running(); "
        "shutdown(wait=False, cancel_futures=True)"
    )

    def open(self) -> None:
        super().open()
        self.pool = self.library.Deadpool(max_workers=WORKERS, max_backlog=LOOKAHEAD)

    def submit(self, task: Task, item: int, limit: float | None) -> Any:
        return self.pool.submit(task, item, deadpool_timeout=limit)

    def cancel_running(self, future: Any) -> bool:
        future.cancel_and_kill_if_running()
        return True  # it answers nothing

    def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class Joblib(Side):
    package = module = "joblib"
    how = (
        "return_as='generator_unordered' with batch_size=1 and timeout=; 'generator' with pre_dispatch=16 "
        "for the inputs; interrupted, it ends its workers by itself"
    )

    def _run(self, task: Task, items: Iterable[int], **settings: Any) -> Iterator[Any]:
        calls = (self.library.delayed(task)(item) for item in items)
        results: Iterator[Any] = self.library.Parallel(WORKERS, **settings)(calls)
        return results

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        results: list[int] = []
        with contextlib.suppress(Exception):  # the first failure ends the call
            results.extend(
                self._run(task, items, return_as="generator_unordered", batch_size=1, timeout=limit)
            )
        return results

    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        return None

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        return self._run(task, items, return_as="generator", pre_dispatch=LOOKAHEAD)

    def stop(self) -> None:
        """`Parallel` has done so when it passes the interrupt on."""


class Mpire(Side):
    package = module = "mpire"
    how = (
        "imap_unordered; apply_async(task_timeout=) where items have a limit, since it alone costs no "
        "neighbours; imap(chunk_size=1, max_tasks_active=16) for the inputs; terminate()"
    )

    def open(self) -> None:
        super().open()
        self.pool: Any = self.library.WorkerPool(WORKERS)

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        results: list[int] = []
        if limit is None:
            with contextlib.suppress(Exception):  # the first failure ends the call
                results.extend(self.pool.imap_unordered(task, items, chunk_size=1))
            return results
        for asked in [self.pool.apply_async(task, (item,), task_timeout=limit) for item in items]:
            with contextlib.suppress(Exception):
                results.append(asked.get(limit + PATIENCE))
        return results

    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        return None

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        return iter(self.pool.imap(task, items, chunk_size=1, max_tasks_active=LOOKAHEAD))

    def stop(self) -> None:
        self.pool.terminate()


class Distributed(Side):
    package = module = "distributed"
    how = "a LocalCluster of processes of one thread; map, which takes no iterators; shutdown()"

    def open(self) -> None:
        super().open()
        self.client: Any = self.library.Client(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        futures = self.client.map(task, items, pure=False)
        with contextlib.suppress(TimeoutError):
            self.library.wait(futures, None if limit is None else limit + PATIENCE)
        results = [future.result() for future in futures if future.status == "finished"]
        self.client.cancel([future for future in futures if not future.done()])
        return results

    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        future = self.client.submit(task, 0, pure=False)
        until(running, START_SECONDS)
        future.cancel()
        return bool(future.cancelled())

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        futures = self.client.map(task, list(items), pure=False)
        return (future.result() for future in futures)

    def stop(self) -> None:
        self.client.shutdown()


class Ours(Side):
    package, module = "parallel-video", "video"
    how = f"timeout= for the limit; stream(ordered=False).cancel(0); lookahead={LOOKAHEAD}; close()"

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.processes = backend not in ("serial", "thread", "async")
        self.coroutines = backend == "async"
        self._runners: dict[float | None, Any] = {}

    def _runner(self, limit: float | None = None) -> Any:
        """The limit is a setting of the runner, so there is one for each; from batch to batch it stays."""
        if limit not in self._runners:
            config = self.library.ParallelConfig(
                backend=self.backend, max_workers=WORKERS, timeout=limit, lookahead=LOOKAHEAD, strict=True
            )
            self._runners[limit] = self.library.Runner(config)
        return self._runners[limit]

    def kept(self, task: Task, items: Sequence[int], limit: float | None = None) -> list[int]:
        return [outcome.value for outcome in self._runner(limit).map(task, items) if outcome.ok]

    def cancel(self, task: Task, running: Callable[[], object]) -> bool | None:
        if self.backend == "serial":
            return None  # its item runs in the thread that would have to ask
        stream = self._runner().stream(task, range(3), ordered=False)
        next(stream)  # of another item; the first one hangs
        until(running, START_SECONDS)
        answer = bool(stream.cancel(0))
        # A caller would read on, but must not be held up here by an item that was not stopped.
        threading.Thread(target=list, args=(stream,), daemon=True).start()
        return answer

    def stream(self, task: Task, items: Iterable[int]) -> Iterator[object]:
        return iter(self._runner().stream(task, items))

    def stop(self) -> None:
        for runner in self._runners.values():
            runner.close()


SIDES: dict[str, Side] = {
    "concurrent.futures": StandardPool(),
    "joblib": Joblib(),
    "loky": Loky(),
    "mpire": Mpire(),
    "pebble": Pebble(),
    "deadpool": Deadpool(),
    "distributed": Distributed(),
    **{f"video:{name}": Ours(name) for name in ("serial", "thread", "process", "joblib", "dask", "async")},
}


# The faults. What runs in the cell ...


class Facts:
    """What the cell finds out; on the disk at once, so that it outlives a cell that hangs later."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "facts.json"
        self._known: dict[str, Fact] = {}

    def add(self, **facts: Fact) -> None:
        self._known |= facts
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self._known))
        draft.replace(self._path)


def kill(side: Side, folder: Path, facts: Facts) -> None:
    victim = 5
    warm_up(side, folder)
    facts.add(kept=len(set(side.kept(partial(die, str(folder), victim), range(20))) - {victim}))
    facts.add(after=set(side.kept(echo, range(4))) == set(range(4)))


def stuck(side: Side, folder: Path, facts: Facts) -> None:
    victim = 2
    warm_up(side, folder)  # some limits count from the call, and would run out while the workers start
    warm_up(side, folder, LIMIT)
    task = hang_softly if side.coroutines else hang
    facts.add(others=len(set(side.kept(partial(task, str(folder), victim), range(6), LIMIT)) - {victim}))
    facts.add(dead=until(lambda: item_dead(folder), PATIENCE))
    facts.add(child=until(lambda: child_dead(folder), PATIENCE if item_dead(folder) else 0.0))


def cancel(side: Side, folder: Path, facts: Facts) -> None:
    warm_up(side, folder)
    task = hang_softly if side.coroutines else hang
    answer = side.cancel(partial(task, str(folder), 0), lambda: signed(folder, "stuck"))
    if answer is None:
        facts.add(cancel="no way")
    elif until(lambda: item_dead(folder), PATIENCE):
        facts.add(cancel="stopped")
    else:
        facts.add(cancel="runs on" if answer else "refused")


def lambdas(side: Side, folder: Path, facts: Facts) -> None:
    facts.add(lambdas=set(side.kept(lambda item: item, range(4))) == set(range(4)))


def drawn(side: Side, folder: Path, facts: Facts) -> None:
    warm_up(side, folder)
    count = itertools.count()
    inputs = (next(count) for _ in range(INPUTS))
    results = side.stream(echo, inputs)
    for _ in range(5):
        next(results)
    time.sleep(1.0)
    facts.add(drawn=next(count))


def busy(seconds: float, items: int, side: Side, folder: Path, facts: Facts) -> None:
    """A plain program with a long batch, for the script to disturb."""
    task = linger_softly if side.coroutines else linger
    try:
        side.kept(partial(task, str(folder), seconds), range(items))
    except KeyboardInterrupt:
        side.stop()
        raise


def warm_up(side: Side, folder: Path, limit: float | None = None) -> None:
    task = linger_softly if side.coroutines else linger
    side.kept(partial(task, str(folder), 0.1), range(2 * WORKERS), limit)


# ... and what the script does to it.


class Cell:
    """One fault on one engine: a program of its own, and everything that it starts."""

    def __init__(self, engine: str, row: str, folder: Path) -> None:
        self.folder = folder
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self._program = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "--cell", engine, row, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=os.environ | {"TMPDIR": str(folder)},  # what a killed engine leaves goes with the folder
                start_new_session=True,
            )
        self.pid = self._program.pid

    def running(self) -> bool:
        return birth(self.pid) is not None  # never polled: until it is reaped its number cannot be another's

    def facts(self) -> dict[str, Fact]:
        with contextlib.suppress(OSError):
            facts: dict[str, Fact] = json.loads((self.folder / "facts.json").read_text())
            return facts
        return {}

    def last_words(self) -> str:
        lines = self._output.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")

    def at_work(self) -> bool:
        """Wait until every worker has an item."""
        until(lambda: len(signed(self.folder, "worker")) >= WORKERS or not self.running(), START_SECONDS)
        time.sleep(0.3)  # for whatever else the engine does at its start
        return len(signed(self.folder, "worker")) >= WORKERS and self.running()

    def workers(self) -> set[int]:
        return {pid for pid, _ in signed(self.folder, "worker")} - {self.pid}

    def end(self) -> None:
        for pid in living(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._program.kill()
        # Trackers of shared semaphores clean up once nobody else is left; a moment later they have to go too.
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
            os.killpg(self.pid, signal.SIGKILL)
        self._program.wait()


def listen(cell: Cell, seconds: float) -> dict[str, Fact]:
    """Let it find out by itself."""
    until(lambda: "done" in cell.facts() or not cell.running(), seconds)
    return cell.facts()


def interrupt(cell: Cell, seconds: float) -> dict[str, Fact]:
    if not cell.at_work():
        return cell.facts()
    start = time.monotonic()
    os.kill(cell.pid, signal.SIGINT)
    if not until(lambda: not cell.running(), seconds):
        return {"exit": f"> {seconds:g}"}
    text = f"{time.monotonic() - start:.1f}"
    time.sleep(1.0)
    left = len(living(cell.folder, "worker"))
    return {"exit": f"{text}, {left} left" if left else text}


def bereave(cell: Cell, seconds: float) -> dict[str, Fact]:
    if not cell.at_work():
        return cell.facts()
    os.kill(cell.pid, signal.SIGKILL)
    time.sleep(seconds)
    return {"orphans": f"{len(living(cell.folder, 'worker') - {cell.pid})} of {len(cell.workers())}"}


@dataclass(frozen=True)
class Row:
    """A fault, and the columns of the table that tell what became of it."""

    columns: Mapping[str, tuple[str, str]]
    """The two lines of the head of each fact's column."""
    note: str
    program: Callable[[Side, Path, Facts], None]
    seconds: float
    act: Callable[[Cell, float], dict[str, Fact]] = listen
    processes_only: bool = False


ROWS = {
    "kill": Row(
        {"kept": ("killed:", "of 19"), "after": ("pool", "after")},
        "20 items, item 5 kills its worker with SIGKILL: results of the 19 others that the caller gets, and "
        "whether the pool then runs 4 more items.",
        kill,
        40.0,
        processes_only=True,
    ),
    "stuck": Row(
        {"others": ("stuck:", "of 5"), "dead": ("item", "dead"), "child": ("child", "dead")},
        f"6 items, item 2 hangs, limit {LIMIT:g} s: results of the 5 others, whether the stuck function is "
        f"really dead {PATIENCE:g} s later, and whether the process is that it had started. Where an engine "
        f"has no limit the caller waits {LIMIT + PATIENCE:g} s and cancels the future.",
        stuck,
        30.0,
    ),
    "cancel": Row(
        {"cancel": ("cancel", "running")},
        'cancel one running item. "refused": the engine says no; "runs on": it says yes, and the function '
        'runs on; "no way": it cannot be asked.',
        cancel,
        30.0,
    ),
    "lambda": Row({"lambdas": ("", "lambda")}, "a lambda as the task.", lambdas, 15.0),
    "ctrl-c": Row(
        {"exit": ("Ctrl-C:", "seconds")},
        f"8 items of 20 s, SIGINT to the program alone, which then stops its engine: until it has ended, at "
        f"most {EXIT_SECONDS:g}; and workers that are left 1 s later.",
        partial(busy, 20.0, 8),
        EXIT_SECONDS,
        interrupt,
    ),
    "orphans": Row(
        {"orphans": ("", "orphans")},
        f"items of 1 s, the program is killed with SIGKILL: workers alive {ORPHAN_SECONDS:g} s later.",
        partial(busy, 1.0, 60),
        ORPHAN_SECONDS,
        bereave,
        processes_only=True,
    ),
    "drawn": Row(
        {"drawn": ("inputs", "drawn")},
        f"of a generator of {INPUTS} inputs, 5 results read, 1 s later. Bounds are set to {LOOKAHEAD} where "
        "an engine has one; left alone, ours is four chunks for each worker, at least 64 items.",
        drawn,
        30.0,
    ),
}


def run_cell(engine: str, row: str, folder: Path) -> None:
    """The program of a cell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with `&`
    facts = Facts(folder)
    try:
        SIDES[engine].open()
        ROWS[row].program(SIDES[engine], folder, facts)
    except Exception as error:  # noqa: BLE001  # whatever the engine raises is what is told of it
        facts.add(failed=f"{type(error).__name__}: {error}")
    facts.add(done=True)


def run(engine: str, name: str) -> dict[str, Fact]:
    """The facts of one cell; each of its columns has one."""
    row = ROWS[name]
    if row.processes_only and not SIDES[engine].processes:
        return dict.fromkeys(row.columns)
    with tempfile.TemporaryDirectory(prefix="f", ignore_cleanup_errors=True) as folder:
        cell = Cell(engine, name, Path(folder))
        try:
            facts = row.act(cell, row.seconds)
            hung = "done" not in facts and cell.running()
            if not hung and not facts.keys() & row.columns.keys():
                facts.setdefault("failed", cell.last_words())
        finally:
            cell.end()
    told = {column: facts.get(column, "hung" if hung else "failed") for column in row.columns}
    return told | ({"failed": facts["failed"]} if "failed" in facts else {})


# The table.


def table(results: Mapping[str, Mapping[str, Mapping[str, Fact]]], rows: Sequence[str]) -> list[str]:
    columns = [(row, column) for row in rows for column in ROWS[row].columns]
    heads = [("", *(ROWS[row].columns[column][line] for row, column in columns)) for line in (0, 1)]
    body = [
        (engine, *(worded(cells.get(row, {}).get(column)) for row, column in columns))
        for engine, cells in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*heads, *body, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (*heads, *body)
    ]


def worded(fact: Fact) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return "-" if fact is None else str(fact)


def notes(results: Mapping[str, Mapping[str, Mapping[str, Fact]]], rows: Sequence[str]) -> Iterator[str]:
    yield from (f"{name}: {ROWS[name].note}" for name in rows)
    yield '"-": not run, as the engine is not installed, or has no worker processes. "hung": given up on.'
    for side in dict.fromkeys(SIDES[engine].package for engine in results):
        names = [engine for engine in results if SIDES[engine].package == side]
        yield f"{', '.join(names)}: {version(SIDES[names[0]])}; {SIDES[names[0]].how}."
    for engine, cells in results.items():
        failed: dict[Fact, list[str]] = {}
        for row, facts in cells.items():
            if "failed" in facts:
                failed.setdefault(facts["failed"], []).append(row)
        yield from (f"{engine} failed at {', '.join(where)}: {why}" for why, where in failed.items())


def version(side: Side) -> str:
    if side.package == StandardPool.package:
        return f"Python {platform.python_version()}"
    try:
        return f"{side.package} {importlib.metadata.version(side.package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{side.package} is not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description="The same faults against our engines and their peers.")
    for option, known in (("--engines", SIDES), ("--rows", ROWS)):
        parser.add_argument(option, default=",".join(known), help="names with commas between: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the facts there too")
    parser.add_argument("--cell", nargs=3, metavar=("ENGINE", "ROW", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cell:
        # Under its own name, so that every engine finds the tasks in a module that workers can import. What
        # is in `__main__`, some engines would send by value, and others not at all.
        importlib.import_module("faults").run_cell(asked.cell[0], asked.cell[1], Path(asked.cell[2]))
        return

    engines, rows = asked.engines.split(","), asked.rows.split(",")
    for given, known in ((engines, SIDES), (rows, ROWS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}")

    start = time.monotonic()
    results: dict[str, dict[str, dict[str, Fact]]] = {engine: {} for engine in engines}
    for engine in engines:
        if importlib.util.find_spec(SIDES[engine].module) is None:
            continue
        for row in rows:
            facts = results[engine][row] = run(engine, row)
            print(f"{engine}, {row}: {', '.join(map(worded, facts.values()))}", file=sys.stderr, flush=True)

    print(*table(results, rows), "", sep="\n")
    for note in notes(results, rows):
        print(textwrap.fill(note, 110, initial_indent="  ", subsequent_indent="    "))
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    took = f"{time.monotonic() - start:.0f} s"
    print(f"\n{took} on {os.cpu_count()} CPUs, {sys.platform}, load average after the run: {loads}")
    if asked.json:
        versions = {engine: version(SIDES[engine]) for engine in engines}
        facts_of_all = {"python": platform.python_version(), "versions": versions, "results": results}
        asked.json.write_text(json.dumps(facts_of_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
