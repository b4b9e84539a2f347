"""The calling thread itself, one item after the other: no overhead, and a debugger can step into it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from video.backends._pool import initializer_failed
from video.backends.base import Traits
from video.config import ParallelConfig
from video.events import logger


class SerialExecutor:
    """Runs each call inside `submit`."""

    def __init__(self, config: ParallelConfig) -> None:
        self._initializer = config.initializer
        self._finalizer = config.finalizer
        self._ready = False
        self._broken: BaseException | None = None

    def _prepare(self) -> None:
        """Before the first call, in the thread that it runs in."""
        self._ready = True
        if self._initializer is not None:
            try:
                self._initializer()
            except Exception as error:  # noqa: BLE001  # every call will say so
                self._broken = error

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if not self._ready:
            self._prepare()
        try:
            if self._broken is not None:
                raise initializer_failed(self._broken)
            future.set_result(fn(*args))
        except Exception as error:  # noqa: BLE001  # it belongs to the call
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing waits and nothing runs."""
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None and self._ready and self._broken is None:
            try:
                finalizer()
            except Exception:  # noqa: BLE001  # it is the user's code, and nobody waits for it
                logger.exception("the finalizer failed")


class SerialBackend:
    traits: ClassVar[Traits] = Traits(
        start=1e-3,
        call=1.1e-5,
        own_gil=False,
        pickles=False,
        coroutines=False,
        kills=False,
        remote=False,
        inline=True,
    )

    def __init__(self, config: ParallelConfig) -> None:
        self._config = config

    def open(self, workers: int) -> SerialExecutor:
        return SerialExecutor(self._config)
