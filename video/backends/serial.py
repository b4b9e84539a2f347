"""The calling thread itself, one item after the other: no overhead, and a debugger can step into it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from video.backends.base import Traits
from video.config import ParallelConfig


class SerialExecutor:
    """Runs each call inside `submit`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:  # noqa: BLE001  # it belongs to the call
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing waits and nothing runs."""


class SerialBackend:
    traits: ClassVar[Traits] = Traits(
        start=1e-3, call=1.1e-5, own_gil=False, pickles=False, coroutines=False, kills=False, remote=False
    )

    def __init__(self, config: ParallelConfig) -> None: ...

    def open(self, workers: int) -> SerialExecutor:
        return SerialExecutor()
