"""What the workers of the fault programs run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def double(x: Any) -> Any:
    return 2 * x


def linger(x: int) -> int:
    """Long enough that every worker gets some."""
    time.sleep(0.01)
    return 2 * x


def strike(how: Callable[[], Any], at: int, x: int) -> Any:
    """Doubles, but for the item at which something happens."""
    return how() if x == at else 2 * x


def is_number(x: Any) -> int:
    """Doubles a number, and takes anything else that arrives."""
    return 2 * x if isinstance(x, int) else -1


def backwards(x: bytes) -> bytes:
    return x[::-1]


async def softly(task: Callable[[Any], Any], x: Any) -> Any:
    """The same task as a coroutine; what it returns may be one, too."""
    await asyncio.sleep(0)
    value = task(x)
    return await value if asyncio.iscoroutine(value) else value


# What happens


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    import faulthandler

    faulthandler.disable()  # its report would fill the log
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def leave_in_peace() -> None:
    sys.exit(5)


def devour() -> bytearray:
    return bytearray(1 << 60)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def hold_the_lock(seconds: float) -> None:
    """A C call that keeps the interpreter's lock: no other thread of the process runs."""
    ctypes.PyDLL(None).sleep(int(seconds))


async def cancel_itself() -> None:
    """What it waits for is cancelled, as when another task of the same program is."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    await future


async def sleep_softly(seconds: float) -> None:
    await asyncio.sleep(seconds)


def resist(seconds: float) -> None:
    """Goes on whatever it is told, but for a kill."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            time.sleep(0.05)


# What cannot travel


class Stubborn:
    """Refuses to be pickled, with an error that no pickler raises."""

    def __reduce__(self) -> Any:
        raise RuntimeError("stubborn")


class Trap:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    raise RuntimeError("a trap")


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.lock = threading.Lock()


class Unloadable(Exception):
    """Pickles, but does not unpickle: its __init__ takes more than `args` holds."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class Speechless(Unloadable):
    """Neither unpickles nor says what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def throw(error: Callable[[], BaseException]) -> None:
    raise error()


def locked() -> BaseException:
    return Locked("with a lock")


def unloadable() -> BaseException:
    return Unloadable("one", "two")


def odd(x: int) -> int:
    """Items 1 to 5 raise what is seldom raised."""
    kinds = {
        1: lambda: StopIteration(1),
        2: GeneratorExit,
        3: lambda: Speechless("one", "two"),
        4: lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
        5: lambda: pickle.PicklingError("not ours"),
    }
    if x in kinds:
        raise kinds[x]()
    return 2 * x


def trap_among_long_ones(at: int, x: int) -> Any:
    """Every eighth takes so long that its worker sends what it has."""
    if x % 8 == 5:
        time.sleep(0.005)
    return Trap() if x == at else 2 * x


# Marks on the disk, for the parent to see


def write(path: Path, words: str) -> None:
    """A line, whole even if others write at the same time and the process dies right after."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{words}\n".encode())
    finally:
        os.close(fd)


def read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def noted(folder: Path, how: Callable[[], Any], at: int, x: int) -> Any:
    """`strike`, with each start written down before anything can happen."""
    write(folder / "starts", str(x))
    return strike(how, at, x)


def begun_then(folder: Path, how: Callable[[], Any], x: int) -> int:
    """Says that it has begun, and by which process."""
    write(folder / "begun", f"{x} {os.getpid()}")
    how()
    return 2 * x


def signed(folder: Path, seconds: float, x: int) -> int:
    """Leaves its process's number once, and what it was called with each time."""
    write(folder / "starts", str(x))
    page = folder / f"worker.{os.getpid()}"
    if not page.exists():
        page.touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return 2 * x


def workers(folder: Path) -> list[int]:
    return [int(page.suffix[1:]) for page in folder.glob("worker.*")]


def once(folder: Path, how: Callable[[], Any], at: int, x: int) -> Any:
    """`strike` the first time only; the span of each run is written down."""
    start = time.monotonic()
    first = x == at and not (folder / "struck").exists()
    if first:
        (folder / "struck").touch()
        write(folder / "spans", f"{x} {start!r} {time.monotonic()!r} {os.getpid()}")
        how()
    time.sleep(0.02)
    write(folder / "spans", f"{x} {start!r} {time.monotonic()!r} {os.getpid()}")
    return 2 * x


def with_child(folder: Path, own_session: bool, x: int) -> int:
    """On item 3, hangs with a child, as a job hangs that waits for its encoder."""
    if x == 3:
        child = subprocess.Popen(["sleep", "60"], start_new_session=own_session)
        write(folder / "child", str(child.pid))
        time.sleep(60)
    return 2 * x


def process(_: Any) -> int:
    time.sleep(0.005)
    return os.getpid()


_kept: list[bytes] = []


def keep(megabytes: int, x: int) -> int:
    """Leaks, and says in which process."""
    _kept.append(os.urandom(1 << 20) * megabytes)
    return os.getpid()


def fill(megabytes: int) -> None:
    """Touch so much memory that a small control group has none left."""
    _kept.extend(os.urandom(1 << 20) for _ in range(megabytes))


def nested(x: int) -> list[Any]:
    from video import Runner

    with Runner() as runner:
        outcomes = runner.map(double, [x, x + 1])
        return [runner.choose(double, total=5).backend, *(outcome.value for outcome in outcomes)]


def fail_to_start() -> None:
    raise OSError("no licence for this codec")
