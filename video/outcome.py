"""How one item ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The one result of one item, good or bad."""

    index: int
    """Position of the item in the input, from 0."""
    value: T | None
    """What the task returned; None where it failed."""
    error: BaseException | None
    """Why it failed; a worker's traceback text is its `__cause__`."""
    attempts: int = 1
    """How often the item was tried; 0: it never ran. More than 1 where its worker was lost under it."""
    seconds: float = 0.0
    """Wall time of the last attempt, measured in the worker."""
    origin: str = "run"
    """Who answered: "run", or the name of the policy that did."""

    @property
    def ok(self) -> bool:
        return self.error is None

    def unwrap(self) -> T:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None here is a T that the task returned


class _Draft(Generic[T]):
    """An outcome that is still being written: the same slots, without the guard of a frozen class."""

    __slots__ = Outcome.__slots__

    def __init__(self, index: int, value: Any, seconds: float) -> None:
        self.index = index
        self.value = value
        self.error = None
        self.attempts = 1
        self.seconds = seconds
        self.origin = "run"


def first_runs(indexes: Iterable[int], values: Iterable[Any], seconds: Iterable[float]) -> list[Outcome[Any]]:
    """Good outcomes of items that ran for the first time.

    A frozen dataclass takes 0.8 us to make, which is half of what an item may cost in all; a draft that
    then becomes an outcome takes 0.24 us (benchmarks/bench_dispatch.py).
    """
    outcomes: list[Any] = []
    add, draft, whole = outcomes.append, _Draft, Outcome
    for index, value, second in zip(indexes, values, seconds, strict=False):
        one: Any = draft(index, value, second)
        one.__class__ = whole
        add(one)
    return outcomes
