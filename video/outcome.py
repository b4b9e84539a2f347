"""How one item ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

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
    """How often the item was tried; 0: it never ran. 2 where its chunk failed and it was run again alone."""
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
