"""Spot checks: a few random items of a batch are run again in the caller's own process, and compared."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from video.errors import TaskError
from video.outcome import Outcome


class SpotCheckWarning(UserWarning):
    """An engine and the caller's own process gave different results for the same item."""


class SpotChecks:
    """A fair sample of a batch of any length (reservoir sampling: Vitter's algorithm R, ACM
    TOMS 11(1), 1985).

    :param count: items to check.
    """

    def __init__(self, task: Callable[[Any], Any], count: int) -> None:
        self._task = task
        self._count = count
        self._random = random.Random()  # noqa: S311  # a sample, not a secret
        self._drawn = 0
        self._items: dict[int, Any] = {}
        self._chosen: list[int] = []
        self._outcomes: dict[int, Outcome[Any]] = {}

    def drew(self, indexes: Sequence[int], items: Sequence[Any]) -> None:
        for index, item in zip(indexes, items, strict=True):
            self._drawn += 1
            if len(self._chosen) < self._count:
                self._chosen.append(index)
            else:
                place = self._random.randrange(self._drawn)
                if place >= self._count:
                    continue
                replaced = self._chosen[place]
                self._items.pop(replaced, None)
                self._outcomes.pop(replaced, None)
                self._chosen[place] = index
            self._items[index] = item

    def finished(self, outcomes: Iterable[Outcome[Any]]) -> None:
        for outcome in outcomes:
            # What an engine stopped or lost says nothing about its results.
            if outcome.index in self._items and not isinstance(outcome.error, TaskError):
                self._outcomes[outcome.index] = outcome

    def differences(self) -> Iterator[tuple[int, tuple[Any, Any]]]:
        """Run the sample; (index, (the engine's value or error, ours)) of those that differ."""
        for index in sorted(self._outcomes):
            outcome = self._outcomes[index]
            theirs = outcome.value if outcome.error is None else outcome.error
            ours = _run(self._task, self._items[index])
            if not _same(theirs, ours):
                yield index, (theirs, ours)


def _run(task: Callable[[Any], Any], item: Any) -> Any:
    try:
        value = task(item)
        if inspect.isawaitable(value):
            with ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop
                return thread.submit(asyncio.run, _awaited(value)).result()
        return value
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # sys.exit() in an item is an error of the item
        return error


async def _awaited(value: Any) -> Any:
    return await value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, BaseException) or isinstance(other, BaseException):
        return type(one) is type(other) and str(one) == str(other)
    try:
        if bool(one == other):
            return True
    except Exception:  # noqa: BLE001, S110  # arrays have no single truth; foreign classes may raise
        pass
    try:
        return pickle.dumps(one) == pickle.dumps(other)
    except Exception:  # noqa: BLE001  # then nobody can say
        return False
