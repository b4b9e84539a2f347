"""Tasks that worker processes import by name."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from video import scope
from video.errors import DownloadFailed


def double(x: int) -> int:
    return 2 * x


async def double_later(x: int) -> int:
    await asyncio.sleep(0.001)
    return 2 * x


def fail_on_3(x: int) -> int:
    if x == 3:
        raise ValueError(f"three is {x}")
    return x


def exit_on_3(x: int) -> int:
    if x == 3:
        sys.exit(5)
    return x


def kill_on_3(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def leave_on_3(x: int) -> int:
    if x == 3:
        os._exit(7)
    return x


def hang_on_3(x: int) -> int:
    if x == 3:
        time.sleep(60)
    return x


def unpicklable_on_3(x: int) -> Any:
    return (lambda: x) if x != 3 else threading.Lock()


class Unloadable(Exception):
    """Pickles, but does not unpickle: its __init__ takes more than `args` holds."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def unloadable_on_3(x: int) -> int:
    if x == 3:
        raise Unloadable("a", "b")
    return x


def fail_beside_tblib(x: int) -> int:
    """Fails out of an error that cannot cross, where tblib, which Dask installs, takes such errors along."""
    import tblib.pickling_support

    tblib.pickling_support.install()
    try:
        raise OSError(open(os.devnull))  # noqa: SIM115  # a file that is open does not pickle
    except OSError:
        raise DownloadFailed("is gone", subject=str(x), status=404) from None


class Stubborn:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("stubborn")


class SlowToPickle:
    """Stands for a result that is too large to cross in a moment; arrives as its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        time.sleep(1)
        return int, (self.number,)


def slow_to_cross(number: int) -> SlowToPickle:
    return SlowToPickle(number)


def pid(_: Any) -> int:
    return os.getpid()


def threads(_: Any) -> int:
    return scope.native_threads()


def nested(x: int) -> list[str]:
    from video import Runner

    with Runner() as runner:
        return [
            runner.choose(double, total=5).backend,
            *(str(one.value) for one in runner.map(double, [x, x + 1])),
        ]


def write_then_hang(path: str) -> None:
    with scope.unfinished(Path(path)):
        Path(path).write_text("half")
        time.sleep(60)


def write_until_cancelled(path: str) -> None:
    with scope.unfinished(Path(path)):
        Path(path).write_text("half")
        for _ in range(6000):
            scope.check_cancelled()
            time.sleep(0.01)


def child_then_hang(path: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(str(child.pid))
    time.sleep(60)


def sleep_and_tell(seconds: float) -> int:
    """Of the worker, the id of its process."""
    time.sleep(seconds)
    return os.getpid()


def hold(megabytes: int) -> int:
    """Fill so much memory for half a second."""
    _held = b"x" * (megabytes << 20)
    time.sleep(0.5)
    return megabytes


def hold_in_a_child(what: tuple[str, int]) -> None:
    """The same in a child process, which then says that it has ended."""
    folder, megabytes = what
    code = f"import time, pathlib; held = b'x' * ({megabytes} << 20); time.sleep(2); "
    subprocess.run([sys.executable, "-c", code + f"pathlib.Path({folder!r}, 'ended').touch()"], check=True)


_kept: list[bytes] = []


def keep(megabytes: int) -> int:
    """Leak so much memory."""
    _kept.append(b"x" * (megabytes << 20))
    return os.getpid()
