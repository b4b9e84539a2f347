"""How tasks, items and results cross a process border.

Plain pickle is tried first, since it is fast; cloudpickle takes what it refuses: lambdas, closures, and
whatever is defined in `__main__` or a notebook. Only bytes made by this package's own processes, sent
over their private pipes, are ever unpickled.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

from video.errors import NotPicklable

loads = pickle.loads


def dumps(value: Any) -> bytes:
    """`value` as bytes.

    :raises NotPicklable: with the reason, if neither pickler takes it.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001  # pickling runs foreign code, which may raise anything
        return dumps_by_value(value)


def dumps_by_value(value: Any) -> bytes:
    """As `dumps`, with classes and functions of `__main__` sent along instead of named."""
    try:
        return bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as error:
        raise NotPicklable(
            f"cannot be pickled for a worker process ({type(error).__name__}: {error})",
            cure="Pass plain data such as paths, or use the thread engine.",
        ) from error


_numbers = itertools.count()
_CACHE_SIZE = 16
_unpacked: dict[str, Callable[..., Any]] = {}


class Shipped:
    """A task packed once for a whole batch, and unpacked once in each worker.

    :raises NotPicklable: if the task cannot be pickled.
    """

    def __init__(self, task: Callable[..., Any]) -> None:
        self._key = f"{os.getpid()}-{next(_numbers)}"
        try:
            self._packed = bytes(cloudpickle.dumps(task, protocol=5))
        except Exception as error:
            raise NotPicklable(
                f"the task cannot be pickled for a worker process ({type(error).__name__}: {error})",
                subject=getattr(task, "__qualname__", repr(task)),
                cure="Pass what it needs as part of each item, or use the thread engine.",
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._key, self._packed)


def _unpack(key: str, packed: bytes) -> Callable[..., Any]:
    task = _unpacked.get(key)
    if task is None:
        while len(_unpacked) >= _CACHE_SIZE:
            _unpacked.pop(next(iter(_unpacked)))
        task = _unpacked[key] = loads(packed)  # see the module's first lines on what is unpickled
    return task
