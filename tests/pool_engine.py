"""A third party's engine, over the standard library's processes; a test installs it as a distribution.

What it adds to them is what the contract asks for: after a death they are started anew, workers end with
their program, and native libraries keep to their share of the CPUs.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

from video import ParallelConfig, resources
from video.backends.base import Traits


def start(threads: int, initializer: Callable[[], object] | None) -> None:
    """In each worker."""
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if initializer is not None:
        initializer()


def end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class PoolExecutor:
    def __init__(self, make: Callable[[], ProcessPoolExecutor]) -> None:
        self.make = make
        self.pool = make()
        self.lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        with self.lock:
            try:
                return self.pool.submit(fn, *args)
            except BrokenExecutor:  # one worker that dies breaks them all
                self.pool = self.make()
                return self.pool.submit(fn, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.pool.shutdown(wait, cancel_futures=cancel_futures)


class PoolBackend:
    traits = Traits(
        start=0.2, call=3e-4, own_gil=True, pickles=True, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self.config = config

    def open(self, workers: int) -> PoolExecutor:
        threads = max(1, resources.usable_cpus() // workers)
        context = multiprocessing.get_context("forkserver")
        hooks = start, (threads, self.config.initializer)
        return PoolExecutor(functools.partial(ProcessPoolExecutor, workers, context, *hooks))
