"""Threads of this process: for work that waits, or that runs in native code, as FFmpeg does."""

from __future__ import annotations

from typing import ClassVar

from video.backends._pool import Pool
from video.backends.base import Traits
from video.config import ParallelConfig


class ThreadExecutor(Pool):
    """A thread cannot be killed: a call that is given up runs on in a thread that is written off, and
    sees `scope.check_cancelled()` raise at its next frame."""

    def __init__(self, workers: int, config: ParallelConfig) -> None:
        super().__init__(workers, "video-thread", config.initializer, config.finalizer)


class ThreadBackend:
    traits: ClassVar[Traits] = Traits(
        start=2.3e-3, call=2e-5, own_gil=False, pickles=False, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> ThreadExecutor:
        return ThreadExecutor(workers, self._config)
