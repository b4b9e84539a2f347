"""What a check is, how it is chosen by what an engine claims, and how it is asked within a bounded time.

A module of checks (`results`, `deaths`, `limits`, ...) holds functions of one `Bench`, each marked with
`promise`: its docstring is the promise in one sentence, its name what the reports call it. What the items
of a check run stands in `tasks`, where worker processes can import it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

from video import registry
from video.backends.base import Traits
from video.config import ParallelConfig
from video.errors import ConfigError
from video.events import Observer
from video.outcome import Outcome
from video.runner import Runner
from video.testing import tasks

LINUX = sys.platform == "linux"
"""Where /proc tells what there is; elsewhere some parts of checks are left out."""
LIMIT_SECONDS = 60.0
"""A check that takes longer is broken; its threads are left behind, since nothing can stop them."""
WAIT_SECONDS = 15.0
"""How long a check waits for what an engine does in the background, on a busy machine too."""
STUCK_SECONDS = 60.0
"""An item that hangs, where the engine can end it. It has to be far beyond `WAIT_SECONDS`."""
PATIENT_SECONDS = 4.0
"""The same where nothing can end it, and whoever leaves may have to wait for it."""

PROMISES = {
    1: "One item, one outcome",
    2: "An item that raises fails alone",
    3: "A worker that dies costs the item that it ran",
    4: "A time limit is for the item's own run",
    5: "Any input, endless ones too",
    6: "Leaving leaves nothing behind",
    7: "Anything that can be called can be the task",
    8: "Workers share the machine",
    9: "Workers start clean",
    10: "Large buffers cross whole",
    11: "Runners do not disturb each other",
    12: "The same results everywhere",
    13: "Nobody who watches is blocked, or breaks anything",
    14: "It is said how a batch fails",
}
"""The contract in headings; docs/contract.md has it in full."""


class State(StrEnum):
    HELD = "held"
    BROKEN = "broken"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check."""

    name: str
    promise: int
    """Number in the contract, 1 to 14."""
    says: str
    """The promise, in one sentence."""
    state: State
    message: str = ""
    """What was broken, or why it was not asked; empty where it held."""
    seconds: float = 0.0
    """Wall time; 0 where it was not asked."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine that is asked."""

    backend: str
    traits: Traits
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of every runner, over the defaults below and under what a check asks for."""

    def config(self, **more: Any) -> ParallelConfig:
        # strict: an engine that cannot start must not be judged by the one that stands in for it.
        usual = {"backend": self.backend, "max_workers": 2, "strict": True}
        return ParallelConfig(**{**usual, **self.settings, **more})

    def runner(self, *, observers: Iterable[Observer] = (), **more: Any) -> Runner:
        return Runner(self.config(**more), observers=observers)

    @property
    def stuck_seconds(self) -> float:
        """How long an item may hang without holding up the whole suite."""
        return STUCK_SECONDS if self.traits.kills else PATIENT_SECONDS

    @property
    def target(self) -> str | None:
        """Where another program imports this engine from, as "module:Class"; None: it cannot."""
        found = registry.backends.get(self.backend)
        module, name = getattr(found, "__module__", "__main__"), getattr(found, "__qualname__", "<locals>")
        if module == "__main__" or "<locals>" in name:
            return None
        with contextlib.suppress(Exception):
            if functools.reduce(getattr, name.split("."), import_module(module)) is found:
                return f"{module}:{name}"
        return None


NEEDS: dict[str, tuple[str, Callable[[Bench], bool]]] = {
    "pickles": ("its trait `pickles` is false", lambda bench: bench.traits.pickles),
    "coroutines": ("its trait `coroutines` is false", lambda bench: bench.traits.coroutines),
    "kills": ("its trait `kills` is false", lambda bench: bench.traits.kills),
    "exact": ("its trait `exact` is false", lambda bench: bench.traits.exact),
    "posix": ("it needs Linux or macOS", lambda _: os.name == "posix"),
    "another program": ("another program cannot import it", lambda bench: bench.target is not None),
}
"""What a check may need: why it is not asked without, and whether it is there."""

Function = Callable[[Bench], None]


@dataclass(frozen=True, slots=True)
class Marked:
    """A function of one bench, and when it is asked."""

    function: Function
    promise: int
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def says(self) -> str:
        return " ".join((self.function.__doc__ or "").split())

    def why_not(self, bench: Bench) -> str | None:
        """Why it is not asked of this engine; None: it is."""
        return next((words for words, there in map(NEEDS.__getitem__, self.needs) if not there(bench)), None)


MARKED: list[Marked] = []
"""All checks, in the order of their promises once `video.testing` is imported."""


def promise(number: int, *needs: str) -> Callable[[Function], Function]:
    """Mark a function as a check of that promise.

    :param needs: keys of `NEEDS`; without one of them it is not asked.
    """

    def mark(function: Function) -> Function:
        MARKED.append(Marked(function, number, tuple(needs)))
        return function

    return mark


class Check:
    """One promise, asked of one engine, each time that it is called.

    `__name__` and `__doc__` say which promise, `promise` its number in the contract.

    :raises AssertionError: on the call, if the engine does not keep it, or has not answered in time.
    """

    def __init__(self, marked: Marked, bench: Bench, limit: float = LIMIT_SECONDS) -> None:
        self.__name__ = marked.name
        self.__doc__ = marked.says
        self.promise = marked.promise
        self._function = functools.partial(marked.function, bench)
        self._limit = limit

    def __repr__(self) -> str:
        return f"<check {self.__name__}>"

    def __call__(self) -> None:
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                self._function()
            except BaseException as error:  # noqa: BLE001  # it is raised to the caller
                raised.append(error)

        thread = threading.Thread(target=ask, name=f"video-check-{self.__name__}", daemon=True)
        thread.start()
        thread.join(self._limit)
        if thread.is_alive():
            raise AssertionError(f"no answer within {self._limit:g} s; it was {_where(thread)}")
        if raised:
            raise raised[0]

    def result(self) -> Result:
        """Call it, and say what came of it."""
        started = time.perf_counter()
        state, message = State.HELD, ""
        try:
            self()
        except Exception as error:  # noqa: BLE001  # an engine may raise anything
            state, message = State.BROKEN, _words(error)
        return Result(
            self.__name__, self.promise, self.__doc__ or "", state, message, time.perf_counter() - started
        )


def _words(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({frame.filename}:{frame.lineno})" for frame in place)
    return f"{type(error).__name__}: {error}{where}"


def _where(thread: threading.Thread) -> str:
    """Where a thread is, for a message."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "about to end"
    inner = traceback.extract_stack(frame)[-1]
    return f"in {inner.name} ({inner.filename}:{inner.lineno})"


# What checks are made of


def holds(truth: object, words: str) -> None:
    """
    :raises AssertionError: with these words, if it does not hold; under `python -O` too.
    """
    if not truth:
        raise AssertionError(words)


def until(true: Callable[[], object], words: str | Callable[[], str]) -> None:
    """Wait for `true()`, for `WAIT_SECONDS`; after that, these words are what is broken."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            said = words if isinstance(words, str) else words()
            raise AssertionError(f"{said} (waited for {WAIT_SECONDS:g} s)")
        time.sleep(0.02)


def expect(
    outcomes: Iterable[Outcome[Any]],
    values: Sequence[Any],
    failing: Mapping[int, type[BaseException] | tuple[type[BaseException], ...]] | None = None,
) -> dict[int, BaseException]:
    """There is one outcome for each value, in order, and these values are what they hold; of `failing`,
    errors of these types.

    :return: the errors, by index.
    """
    outcomes, failing = list(outcomes), failing or {}
    indexes = [one.index for one in outcomes]
    holds(
        indexes == list(range(len(values))),
        f"{len(values)} items, but the outcomes are those of {_short(indexes)}",
    )
    errors: dict[int, BaseException] = {}
    for one, value in zip(outcomes, values, strict=True):
        if one.index in failing:
            holds(one.error is not None, f"item {one.index} was to fail, but gave {one.value!r:.80}")
            kinds = failing[one.index]
            holds(isinstance(one.error, kinds), f"item {one.index} failed with {one.error!r}, not {kinds}")
            assert one.error is not None
            errors[one.index] = one.error
        else:
            holds(one.error is None, f"item {one.index} failed, which it was not to: {one.error!r:.500}")
            holds(one.value == value, f"item {one.index} gave {one.value!r:.80}, not {value!r:.80}")
    return errors


def _short(indexes: Sequence[int]) -> str:
    counts = {index: indexes.count(index) for index in set(indexes)} if len(indexes) < 5000 else {}
    twice = sorted(index for index, count in counts.items() if count > 1)
    words = f"{len(indexes)} items" + (f", {twice[:5]} more than once" if twice else "")
    return f"{words}, out of order" if indexes != sorted(indexes) else words


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for what items write down. On a cluster, `TMPDIR` must be shared by its machines."""
    with tempfile.TemporaryDirectory(prefix="video-check-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextlib.contextmanager
def aside(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run `work` in another thread beside the block.

    :return: what it raised, once the block has ended; it is waited for.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # the check looks at it
            raised.append(error)

    thread = threading.Thread(target=run, name="video-check-aside", daemon=True)
    thread.start()
    yield raised
    thread.join(LIMIT_SECONDS / 2)
    holds(not thread.is_alive(), f"a batch in another thread does not end; it is {_where(thread)}")


@contextlib.contextmanager
def heard(name: str) -> Iterator[list[logging.LogRecord]]:
    """What is logged there, kept from whoever else listens."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler()
    logger = logging.getLogger(name)
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before


# Who is there


def alive(one: tuple[str, int]) -> bool:
    """Whether a process, by host and number, runs; of other machines nobody knows, and it counts as dead."""
    host, pid = one
    if host != tasks.host():
        return False
    if LINUX:
        return _stat(pid)[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def ended(place: Path, words: str) -> None:
    """The worker that signed there is dead, and the child process that it started."""
    for name in ("worker", "child"):
        one = tasks.signed(place, name)
        if one is None:
            raise AssertionError(f"{words} ended before it had begun")
        until(functools.partial(_dead, one), f"the {name} process of {words} runs on: {one}")


def _dead(one: tuple[str, int]) -> bool:
    return not alive(one)


def _stat(pid: int) -> tuple[str, int]:
    """State and parent of a process, by proc(5); state "X" if there is none."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return "X", 0
    return state, int(parent)


@dataclass(frozen=True, slots=True)
class Belongings:
    """What this process has: threads and, on Linux, processes, descriptors, shared memory and files."""

    threads: dict[int, str]
    processes: dict[int, str]
    descriptors: dict[str, str]
    """By number, what they point to."""
    shared: dict[str, str]
    """Mappings and files that bear this process's number."""

    @classmethod
    def now(cls) -> Belongings:
        gc.collect()  # what nobody refers to any more is not held
        threads = {id(one): one.name for one in threading.enumerate()}
        if not LINUX:
            return cls(threads, {}, {}, {})
        descriptors = {}
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the listing itself
                descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        lines = Path("/proc/self/maps").read_text().splitlines()
        shared = {line.split()[0]: line for line in lines if "/dev/shm/" in line or "memfd:" in line}  # noqa: S108
        mine = re.compile(rf"(?<!\d){os.getpid()}(?!\d)")
        for place in {"/dev/shm", tempfile.gettempdir()}:  # noqa: S108  # looked at, not written to
            with contextlib.suppress(OSError):
                shared |= {f"{place}/{name}": name for name in os.listdir(place) if mine.search(name)}
        return cls(threads, _descendants(), descriptors, shared)

    def beyond(self, before: Belongings) -> str:
        """What is here that was not there before, in words; empty: nothing."""
        found = [
            f"{kind} {name}"
            for kind, here, there in (
                ("thread", self.threads, before.threads),
                ("process", self.processes, before.processes),
                ("", self.shared, before.shared),
            )
            for key, name in here.items()
            if key not in there
        ]
        # Numbers are used again, so only how many there are tells.
        if more := max(0, len(self.descriptors) - len(before.descriptors)):
            new = [name for number, name in self.descriptors.items() if number not in before.descriptors]
            found.append(f"{more} file descriptors (of {', '.join(new[:5])})")
        return "; ".join(found)


def _descendants() -> dict[int, str]:
    """Children of this process, their children, and so on, with their command lines."""
    parents = {int(name): _stat(int(name))[1] for name in os.listdir("/proc") if name.isdigit()}
    found: dict[int, str] = {}
    ring = {os.getpid()}
    while ring:
        ring = {pid for pid, parent in parents.items() if parent in ring and pid not in found}
        for pid in ring:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:80]
                found[pid] = f"{pid} ({line.decode(errors='replace').strip() or 'a zombie'})"
    return found


def refused(error: ConfigError, bench: Bench) -> None:
    """Only an engine with the trait `inline` may refuse a time limit, as the runner does for it; elsewhere
    the outcome has to come at the deadline, even if the function cannot be stopped."""
    if not bench.traits.inline:
        raise AssertionError(f"it refuses a time limit, but its trait `inline` is false: {error}") from error
