"""How tasks, items and results cross a process border.

Plain pickle is tried first, since it is fast; cloudpickle takes what it refuses: lambdas, closures, and
whatever is defined in `__main__` or a notebook. Only bytes made by this package's own processes, sent
over their private pipes, are ever unpickled.
"""

from __future__ import annotations

import itertools
import os
import pickle

from video.errors import NotPicklable, described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

loads = pickle.loads

FLAT_BYTES = 1 << 16
"""Plain bytes from this length on travel beside the pickle, as arrays do."""


class Packed:
    """Something pickled: the body, and large buffers that were left out of it."""

    __slots__ = ("body", "buffers")

    def __init__(self, body: bytes, buffers: list[memoryview]) -> None:
        self.body = body
        self.buffers = buffers


class _Flat:
    """Stands for long bytes, which pickle would copy into its body."""

    def __init__(self, value: bytes | bytearray) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._value), (pickle.PickleBuffer(self._value),)


def _without_flat(values: Any) -> Any:
    """The list with its long bytes wrapped, or itself if there are none."""
    if _FLAT.isdisjoint(map(type, values)):
        return values
    return [_Flat(one) if type(one) in _FLAT and len(one) >= FLAT_BYTES else one for one in values]


_FLAT = frozenset({bytes, bytearray})


def pack(value: Any) -> Packed:
    """`value` for a pipe that carries buffers apart; of the lists of a tuple, long bytes too.

    :raises NotPicklable: with the reason, if neither pickler takes it.
    """
    buffers: list[pickle.PickleBuffer] = []
    if isinstance(value, tuple):
        parts = [_without_flat(part) if type(part) is list else part for part in value]
        value = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    try:
        body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except Exception:  # noqa: BLE001  # pickling runs foreign code, which may raise anything
        return pack_by_value(value)
    return Packed(body, [_raw(buffer) for buffer in buffers])


def pack_by_value(value: Any) -> Packed:
    """As `pack`, with classes and functions of `__main__` sent along instead of named."""
    import cloudpickle  # 20 ms that most workers never need

    buffers: list[pickle.PickleBuffer] = []
    try:
        body = bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append))
        return Packed(body, [_raw(buffer) for buffer in buffers])
    except Exception as error:
        raise NotPicklable(
            f"cannot be pickled for a worker process ({described(error)})",
            cure="Pass plain data such as paths, or use the thread engine.",
        ) from error


def _raw(buffer: pickle.PickleBuffer) -> memoryview:
    return buffer.raw()


def dumps(value: Any) -> bytes:
    """`value` as bytes, buffers and all.

    :raises NotPicklable: with the reason, if neither pickler takes it.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001  # as above
        return dumps_by_value(value)


def dumps_by_value(value: Any) -> bytes:
    """As `dumps`, with classes and functions of `__main__` sent along instead of named."""
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as error:
        raise NotPicklable(
            f"cannot be pickled for a worker process ({described(error)})",
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
            self._packed = _task_bytes(task)
        except Exception as error:
            raise NotPicklable(
                f"the task cannot be pickled for a worker process ({described(error)})",
                subject=getattr(task, "__qualname__", repr(task)),
                cure="Pass what it needs as part of each item, or use the thread engine.",
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._key, self._packed)


def _task_bytes(task: Callable[..., Any]) -> bytes:
    try:
        packed = pickle.dumps(task, protocol=5)
        if b"__main__" not in packed:  # what is defined there, a worker could not import
            return packed
    except Exception:  # noqa: BLE001, S110  # as in `pack`
        pass
    import cloudpickle

    return bytes(cloudpickle.dumps(task, protocol=5))


def _unpack(key: str, packed: bytes) -> Callable[..., Any]:
    task = _unpacked.get(key)
    if task is None:
        while len(_unpacked) >= _CACHE_SIZE:
            _unpacked.pop(next(iter(_unpacked)))
        task = _unpacked[key] = loads(packed)  # see the module's first lines on what is unpickled
    return task


def without_unpicklable(ran: Any) -> Any:
    """`ran` with each value that cannot be pickled replaced by an error of its own item."""
    values, errors = list(ran.values), list(ran.errors)
    for place, value in enumerate(values):
        try:
            dumps(value)
        except Exception as error:  # noqa: BLE001  # whatever its pickling raises
            values[place] = None
            reason = NotPicklable(
                f"the result, of type {type(value).__qualname__}, cannot be pickled ({error})",
                cure="Return plain data, or use the thread engine.",
            )
            errors.append((place, reason, ""))
    return ran._replace(values=values, errors=sorted(errors, key=lambda one: one[0]))
