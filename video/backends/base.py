"""What an engine is: one that opens an executor, and says by its traits which promises it can keep.

`submit -> Future` is the whole interface. Three more methods are optional, and the runner uses them where
they exist:

- `running(future)`: `(position, started)` of the item of this call that runs now, `started` being
  `time.monotonic()` of its real start (a time to come puts its time limit off); None while none runs. An
  engine without it has its calls timed from when `Future.running()` was first seen true.
- `kill(future)`: give up this running call now. Where the trait `kills` holds, there has to be one, and the
  call is really stopped; elsewhere its worker is replaced, so that it holds no slot any more.
- `watch(future, listener)`: pass on what the call reports of its progress (`video.scope.report`).

A call that its engine lost fails with any exception; one that knows more raises `ChunkLost`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from video.backends._chunk import (
    CHUNK_SECONDS,
    ChunkLost,
    Ran,
    arrived,
    portable,
    run_chunk,
    run_packed,
)
from video.config import ParallelConfig

__all__ = [
    "CHUNK_SECONDS",
    "Backend",
    "ChunkLost",
    "Executor",
    "Ran",
    "Traits",
    "arrived",
    "portable",
    "run_chunk",
    "run_packed",
]


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine costs and can do; read by the planner, the runner and `video backends`."""

    start: float
    """Seconds until the first worker answers (benchmarks/bench_start.py)."""
    call: float
    """Seconds of overhead for a call of one item (benchmarks/bench_dispatch.py)."""
    own_gil: bool
    """Items run Python code truly at once."""
    pickles: bool
    """Tasks, items and results cross a process border."""
    coroutines: bool
    """Runs `async def` tasks."""
    kills: bool
    """A running item can be stopped, whatever it does."""
    remote: bool
    """Items may run on other machines."""
    inline: bool = False
    """Calls run inside `submit`, in the caller's own thread, where nothing can hold a time limit."""
    exact: bool = False
    """A death names its item, and keeps what its chunk had finished; so chunks may have time limits."""


class Executor(Protocol):
    """The part of `concurrent.futures.Executor` that is needed here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Backend(Protocol):
    """An engine; made with the batch's settings, and registered under a name."""

    traits: ClassVar[Traits]

    def __init__(self, config: ParallelConfig) -> None: ...

    def open(self, workers: int) -> Executor:
        """An executor of that many workers.

        :raises BackendUnavailable: if it cannot start here.
        """
        ...
