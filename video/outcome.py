"""How one item ended."""

from __future__ import annotations

from collections.abc import Sequence
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


def first_runs(indexes: Sequence[int], values: Sequence[Any], seconds: Sequence[float]) -> list[Outcome[Any]]:
    """Good outcomes of items that ran for the first time; as many as there are values.

    A frozen dataclass takes 0.8 us to make, which is half of what an item may cost in all; a draft that
    then becomes an outcome takes 0.14 us (benchmarks/bench_dispatch.py).
    """
    draft, whole, run = _Draft, Outcome, "run"
    outcomes: list[Any] = [draft() for _ in values]
    for outcome, index, value, second in zip(outcomes, indexes, values, seconds, strict=False):
        outcome.index = index
        outcome.value = value
        outcome.error = None
        outcome.attempts = 1
        outcome.seconds = second
        outcome.origin = run
        outcome.__class__ = whole
    return outcomes
