"""What a policy is: it decides before and after each attempt of an item, on the caller's side of any engine.

Policies never sleep and never read a clock: `now` is passed in (`time.monotonic()` in a batch), so that each
is tested with plain numbers, and an item that waits holds no worker. They stand in a row. `admit` is asked
from the first to the last, `settle` from the last to the first; what stands after the retry policy sees every
attempt. A policy belongs to one batch at a time or to many at once: all of its methods may be called from any
thread, and inside each other: garbage collection, which may begin anywhere, ends batches that were left, and
these give back what they took. So their locks are re-entrant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from video.outcome import Outcome

Verdict = None | float | Outcome[Any]
"""Go on | ask again (of `admit`), or run it again (of `settle`), in so many seconds | this is the answer."""


class Job:
    """An item, as policies see it."""

    __slots__ = ("attempts", "batch", "cost", "deadline", "index", "item", "key", "notes")

    def __init__(
        self, index: int, item: Any, *, key: str = "", cost: float | None = None, batch: int = 0
    ) -> None:
        self.index = index
        """Position in the input, from 0."""
        self.item = item
        self.key = key
        """Of what it uses and others use too: a host, a service. "": it uses nothing of the kind."""
        self.cost = cost
        """What it is expected to take, in any unit that is the same for the whole batch; None: not known."""
        self.batch = batch
        """A number of the batch that it belongs to: several may share a policy."""
        self.attempts = 0
        """How often it has run so far."""
        self.deadline: float | None = None
        """Once this time is reached it is not tried again; None: not set yet."""
        self.notes: dict[str, Any] = {}
        """What policies have to remember of it, by their names. Its index will not do: several batches may
        share a policy."""


class Policy(Protocol):
    name: str
    """What it is called in `Outcome.origin`, in events and in statistics."""
    answers: bool
    """It may have an item's answer already, and so stands before all that is spent on an attempt."""

    def admit(self, job: Job, now: float) -> Verdict:
        """Before an attempt: None takes what the attempt needs (a permit, a place); a number says in how many
        seconds to ask again, and takes nothing."""
        ...

    def settle(self, job: Job, outcome: Outcome[Any], now: float) -> Verdict:
        """After an attempt that it had admitted: gives back what that took. None leaves the outcome as it
        is; a number has the item run again in so many seconds; an outcome takes its place."""
        ...

    def withdraw(self, job: Job, now: float) -> None:
        """An attempt that it had admitted does not take place, or an item that it had put off is not wanted
        any more: gives back what that took."""
        ...

    def idle(self, now: float) -> bool:
        """Whether it would admit whatever comes now, and has nothing to count for it: then whole chunks pass
        it by, and it hears of each of their outcomes by `passed` or, if that is no success, by `settle`."""
        ...

    def passed(self, count: int, now: float) -> None:
        """So many items that passed it by have ended well."""
        ...


class Watcher(Policy, Protocol):
    """A policy that looks after what runs."""

    def watch(self, now: float, batch: int) -> tuple[float, str]:
        """Asked while anything runs: when to ask next, and why the fattest worker process has to end now;
        empty: it need not.

        :param batch: the number of the one that asks (`Job.batch`).
        """
        ...

    def tree(self, pid: int) -> float:
        """Bytes that a process and its children hold: by that, workers are compared."""
        ...

    def ended(self) -> None:
        """It has ended."""
        ...


class Waker(Policy, Protocol):
    """A policy that has items wait for others."""

    def waiting(self, job: Job) -> list[int]:
        """Asked once a job has its outcome, or is not wanted any more: positions of those that waited for it
        and are to be admitted at once, rather than when they said that they would ask again."""
        ...


class Keeper(Policy, Protocol):
    """A policy that writes down what happens; it stands first in its row."""

    def begin_many(self, jobs: Sequence[Job]) -> dict[int, Outcome[Any]]:
        """`admit` for a whole chunk: the answers that it has, by index. When it returns it is written down
        that the others begin; what it raises ends the batch."""
        ...

    def flush(self) -> None:
        """When it returns, all outcomes that it has settled are kept, and may be handed out."""
        ...

    def set_total(self, total: int) -> None:
        """So many items has the input, which has come to its end."""
        ...
