"""What the items of the checks run: functions of a module, so that worker processes can import them.

They reach a check through what they return, and through files in a folder that they are given: an item that
is killed returns nothing. `victim` is the item that misbehaves. Imports stand where they are used: each
check starts workers, and each of them imports this.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import threading
import time

from video import scope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    Being = tuple[str, int]
    """(host, process id) of who runs an item."""

SAID = "video.testing"
"""The logger that items log to."""

parent_was_here = False
"""Set in the parent by a check; true in a worker that is a copy of its parent's memory."""
initialized = 0
"""How often this process was initialized."""
in_thread = threading.local()
"""`initialized` of each thread."""


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("it refuses")


class Unloadable:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("it does not unpickle")


class OddError(Exception):
    """Pickles, but does not unpickle, as many libraries' errors: it takes more than `Exception` is told."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class StubbornError(Exception):
    """Refuses to be pickled."""

    def __init__(self) -> None:
        super().__init__("it refuses")
        self.lock = threading.Lock()


class Adder:
    """Its method and itself are tasks."""

    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, item: int) -> int:
        return item + self.number

    def __call__(self, item: int) -> int:
        return self.add(item)


def double(item: int) -> int:
    return 2 * item


def add(number: int, item: int) -> int:
    return number + item


def same(item: Any) -> Any:
    return item


def draw(item: int) -> tuple[float, str]:
    """Depends on its item alone; one in seven fails."""
    if item % 7 == 3:
        raise ArithmeticError(f"no root of {item}")
    import random

    lots = random.Random(item)  # noqa: S311  # no secret
    return math.fsum(lots.random() for _ in range(50)), f"{math.sqrt(item):.17g}"


def raise_at(victim: int, make: Callable[[], BaseException], item: int) -> int:
    if item == victim:
        raise make()
    return item


def value_error() -> ValueError:
    return ValueError("a bad item")


def odd_error() -> OddError:
    return OddError("one", "two")


def exit_at(victim: int, item: int) -> int:
    if item == victim:
        sys.exit(5)
    return item


def return_at(victim: int, make: Callable[[], Any], item: int) -> Any:
    return make() if item == victim else item


def raise_later(victim: int, folder: str, seconds: float, item: int) -> int:
    """Fails at the victim; what comes after it takes its time. Leaves a mark for each item that it began."""
    mark(folder, item)
    if item == victim:
        raise value_error()
    if item > victim:
        time.sleep(seconds)
    return item


def linger(seconds: float, item: Any) -> Any:
    time.sleep(seconds)
    return item


def host() -> str:
    import socket

    return socket.gethostname()


def being() -> Being:
    return host(), os.getpid()


def linger_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def who(_: Any) -> Being:
    return being()


# Deaths


def leave() -> None:
    os._exit(7)


def kill() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """A real segmentation fault, as in a codec."""
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants the core dump
    ctypes.string_at(0)


def die_at(victim: int, how: Callable[[], None], folder: str, item: int) -> int:
    mark(folder, item)
    if item == victim:
        how()
    return item


def mark(folder: str, item: int) -> None:
    """One byte more in the file of that item: it runs."""
    page = os.open(os.path.join(folder, str(item)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(page, b".")
    os.close(page)


def note(folder: str, item: int) -> int:
    mark(folder, item)
    return item


def marks(folder: Path) -> dict[int, int]:
    """How often each item ran."""
    return {int(page.name): page.stat().st_size for page in folder.iterdir() if page.name.isdigit()}


# Hangs


def sign(folder: str, name: str, pid: int) -> None:
    """Write down that this process, or a child of it, runs here."""
    page = os.path.join(folder, f".{name}")
    with open(page, "w") as file:
        file.write(f"{host()}\n{pid}")
    os.replace(page, os.path.join(folder, name))  # whole or not at all: others read it at any time


def signed(folder: Path, name: str) -> Being | None:
    """Who signed there, if somebody has."""
    try:
        machine, pid = (folder / name).read_text().split("\n")
    except OSError:
        return None
    return machine, int(pid)


def touch(folder: str, name: str) -> None:
    with open(os.path.join(folder, name), "w"):
        pass


def hang_at(victim: int, folder: str, seconds: float, item: int) -> int:
    """Hangs at the victim in one long call, beside a child process, as a job that waits for its encoder."""
    if item == victim:
        import subprocess

        program = f"import time; time.sleep({seconds})"
        child = subprocess.Popen([sys.executable, "-c", program])  # noqa: S603  # our own interpreter
        sign(folder, "child", child.pid)
        sign(folder, "worker", os.getpid())
        time.sleep(seconds)
        child.wait()
        touch(folder, "ended")
    return item


def wait_at(victim: int, folder: str, seconds: float, item: int) -> int:
    """Works at the victim for long, and looks whether it is still wanted, as a job does once a frame."""
    if item == victim:
        sign(folder, "worker", os.getpid())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            scope.check_cancelled()
            time.sleep(0.02)
        touch(folder, "ended")
    return item


def write_and_hang(folder: str, seconds: float, _: int) -> None:
    from pathlib import Path

    path = Path(folder, "clip.part")
    with scope.unfinished(path):
        path.write_text("half")
        sign(folder, "worker", os.getpid())
        time.sleep(seconds)
        touch(folder, "ended")


async def double_later(item: int) -> int:
    import asyncio

    await asyncio.sleep(0.001)
    if item == 5:
        raise value_error()
    return 2 * item


async def linger_softly(item: int) -> int:
    import asyncio

    await asyncio.sleep(1)
    return item


async def hang_softly_at(victim: int, folder: str, seconds: float, item: int) -> int:
    import asyncio

    if item == victim:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            touch(folder, "cancelled")
            raise
    return item


# What a worker is


def nested(item: int) -> tuple[str, list[Any]]:
    """The engine that a runner inside a worker takes, and what it gives."""
    from video.config import ParallelConfig
    from video.runner import Runner

    with Runner(ParallelConfig(backend="process", max_workers=2)) as runner:
        choice = runner.choose(double, total=3)
        return choice.backend, [one.value for one in runner.map(double, [item, item + 1])]


def threads(_: Any) -> tuple[int, str | None]:
    """Native threads of this item, by its slot and by the environment."""
    return scope.native_threads(), os.environ.get("OMP_NUM_THREADS")


def saw_parent(_: Any) -> tuple[Being, bool]:
    return being(), parent_was_here


def initialize() -> None:
    global initialized
    initialized += 1
    in_thread.initialized = getattr(in_thread, "initialized", 0) + 1


def how_often_initialized(_: Any) -> tuple[int, int]:
    """(in this process, in this thread)"""
    time.sleep(0.01)
    return initialized, getattr(in_thread, "initialized", 0)


def fail_to_initialize() -> None:
    raise OSError("no licence for this codec")


def say(item: int) -> int:
    import logging
    import warnings

    print(f"printed by {item}")
    logging.getLogger(SAID).warning("logged by %d", item)
    warnings.warn(f"warned by {item}", UserWarning, stacklevel=1)
    return item


def reverse(item: bytes) -> bytes:
    return item[::-1]


def halve(item: Any) -> Any:
    """An array, or a list of arrays, at half its values."""
    return [part / 2 for part in item] if isinstance(item, list) else item / 2


# A program of its own


def start_program(packed: bytes) -> None:
    """A batch of two items that hang, for a check that kills or interrupts this program.

    :param packed: the pickled plan: backend, where to import it from, settings, and what the items take.
    """
    from video import registry
    from video.config import ParallelConfig
    from video.runner import Runner

    plan = pickle.loads(packed)  # noqa: S301  # what the check has just made
    if plan["backend"] not in registry.backends.builtin:
        registry.backends.register(plan["backend"], plan["target"])
    config = ParallelConfig(**plan["settings"], backend=plan["backend"], strict=True)
    with Runner(config) as runner:
        runner.map(_hang_where_told, [(plan["folder"], plan["seconds"])] * 2)


def _hang_where_told(item: tuple[str, float]) -> None:
    folder, seconds = item
    hang_at(0, folder, seconds, 0)
