"""The peers that more than one file compares with, each as its documentation shows it.

Run as a program it is mpire's side, in a process of its own: mpire may hang, and must not hang the run.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from _tasks import nothing, rest

PATIENCE = 20.0
"""Seconds that an answer of mpire may take; the longest usual one takes about five."""

MPIRE_START = """
import sys
sys.path.insert(0, sys.argv[1])
from _peers import serve_mpire
serve_mpire(*sys.argv[2:])
"""


@contextmanager
def standard_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """The standard library's processes, all of them started."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(rest, [0.02] * 8 * workers))
        yield pool


def joblib_map(workers: int, task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """A new `Parallel` for each batch, as people write it; its loky workers stay from one to the next."""
    from joblib import Parallel, delayed

    results: list[Any] = Parallel(workers)(delayed(task)(item) for item in items)
    return results


@contextmanager
def mpire(workers: int, side: str, *settings: int) -> Iterator[Callable[[], float]]:
    """A warm `WorkerPool`; each call runs the batch once and returns its seconds.

    :param side: of `MPIRE_SIDES`.
    :param settings: its further arguments.
    :raises TimeoutError: from a call, if there is no answer in time; its processes are then ended.
    """
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", MPIRE_START, folder, str(workers), side, *map(str, settings)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def run() -> float:
            into.write(b"\n")
            into.flush()
            if not select.select([out], [], [], PATIENCE)[0]:
                end()
                raise TimeoutError(f"did not answer within {PATIENCE:g} s")
            return float(out.readline())

        try:
            yield run
            into.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        finally:
            end()


def serve_mpire(workers: str, side: str, *settings: str) -> None:
    from mpire import WorkerPool

    with WorkerPool(int(workers), keep_alive=True) as pool:
        run = MPIRE_SIDES[side](pool, *map(int, settings))
        run()
        for _ in sys.stdin.buffer:
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)


def _mapping(pool: Any, count: int) -> Callable[[], object]:
    return lambda: pool.map(nothing, range(count))


def _echoing(pool: Any, count: int, size: int) -> Callable[[], object]:
    """`imap`, one by one: `map` would join the arrays that come back into one."""
    arrays = Arrays(count, size)
    return lambda: consume(pool.imap(nothing, arrays, iterable_len=count, chunk_size=1))


MPIRE_SIDES: dict[str, Callable[..., Callable[[], object]]] = {"map": _mapping, "echo": _echoing}


class Arrays:
    """`count` NumPy arrays of `size` bytes, each an object of its own over one of a few blocks of memory.

    Nobody can then send one array once and name it again, as joblib does with the same object.
    """

    BLOCKS = 8

    def __init__(self, count: int, size: int) -> None:
        import numpy as np

        self._count = count
        self._blocks = [np.full(size // 8, number, np.float64) for number in range(self.BLOCKS)]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return (self._blocks[number % self.BLOCKS][:] for number in range(self._count))


def consume(results: Iterable[Any]) -> None:
    """Take each array as it comes, look at it, and let it go."""
    for number, array in enumerate(results):
        assert array[0] == array[-1] == number % Arrays.BLOCKS
