"""Where the policies of a batch stand: what is drawn passes them before an engine has it, and what became
of it passes them before the caller has it. Pure: time comes in, waits and answers come out.

    drawn -> admit, first to last -> engine -> settle, last to first -> outcome
               |  wait                            |  run it again
               +---------> later <----------------+
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from video.errors import TaskError, VideoError, described
from video.events import logger
from video.outcome import Outcome
from video.policies.base import Job, Policy, Verdict

_numbers = itertools.count(1)


class Gate:
    """The policies of one batch, and its items that wait for them.

    :param policies: in their order; those of the standard list are checkpoint, cache, retry, memory, breaker,
        rate: answers first, the spender last.
    :param key: of an item, what it uses and others use too (a host, a service).
    :param cost: of an item, what it is expected to take.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        key: Callable[[Any], str] | None = None,
        cost: Callable[[Any], float] | None = None,
    ) -> None:
        self._number = next(_numbers)
        self._policies = tuple(policies)
        first: Any = self._policies[0] if self._policies else None
        self._chunks: Callable[[Sequence[Job]], dict[int, Outcome[Any]]] | None = getattr(
            first, "begin_many", None
        )
        self._keepers: list[Any] = [one for one in self._policies if hasattr(one, "flush")]
        self._watchers: list[Any] = [one for one in self._policies if hasattr(one, "watch")]
        self.watch_at = -math.inf if self._watchers else math.inf
        """When `watch` is to be asked next, while anything runs."""
        self._key = key
        self._cost = cost
        self._jobs: dict[int, Job] = {}
        """Of items that were looked at one by one, and have no outcome yet."""
        self._foreseen: dict[int, Outcome[Any] | None] = {}
        """What a policy that looks at whole chunks has said of an item already."""
        self._put_off: dict[int, set[int]] = {}
        """Places of the policies that have put an item off, and may keep a place in a queue for it."""
        self._waits: dict[int, tuple[float, Any, bool]] = {}
        """Of items that wait, by index: when to look again, the item, and whether it is to run alone."""
        self._later: list[tuple[float, int]] = []
        """(when to look again, index), soonest first. One that `_waits` does not know any more, or by another
        time, is passed over."""
        self._wakers: list[Any] = [one for one in self._policies if callable(getattr(one, "waiting", None))]

    def idle(self, now: float) -> bool:
        """Whether a whole chunk may pass unseen."""
        try:
            return all(policy.idle(now) for policy in self._policies)
        except Exception:  # noqa: BLE001  # `admit` will say so, of one item
            return False

    def foresee(self, indexes: Sequence[int], items: Sequence[Any]) -> None:
        """Items are about to be admitted one by one: what looks at whole chunks does so now, which is cheaper
        for all at once.

        :raises StoreError: if it cannot be written down that they begin; then they must not.
        """
        if self._chunks is None:
            return
        jobs = []
        for index, item in zip(indexes, items, strict=True):
            with contextlib.suppress(Exception):  # the caller's key: `admit` meets it again, and says so
                job = self._jobs[index] = self._job(index, item)
                jobs.append(job)
        answers = self._chunks(jobs)
        self._foreseen = {job.index: answers.get(job.index) for job in jobs}

    def flush(self) -> None:
        """What has ended is about to be handed out: so it must be kept.

        :raises StoreError: if it cannot be.
        """
        for policy in self._keepers:
            policy.flush()

    def admit(self, index: int, item: Any, attempts: int, now: float, *, alone: bool = False) -> Verdict:
        """None: it may run now, and what it takes is taken. A number: it waits here, to be looked at again
        after so many seconds. An outcome: that is the answer."""
        job = self._jobs.get(index)
        if job is None:
            try:
                job = self._jobs[index] = self._job(index, item)
            except Exception as error:  # noqa: BLE001  # the caller's key or cost: it costs this item alone
                return Outcome(index, None, error, attempts)
        job.attempts = attempts
        put_off = self._put_off.get(index)
        for place, policy in enumerate(self._policies):
            try:
                if place == 0 and index in self._foreseen:
                    verdict: Verdict = self._foreseen.pop(index)
                else:
                    verdict = policy.admit(job, now)
            except Exception as error:  # noqa: BLE001  # a key function, a store: it costs this item alone
                verdict = Outcome(index, None, _failed(policy, error), attempts, origin=policy.name)
            if put_off is not None:
                put_off.discard(place)
            if verdict is None:
                continue
            if isinstance(verdict, Outcome):
                # Those after it may still count on its coming.
                self._withdraw(job, now, [self._policies[one] for one in sorted(put_off or ())])
                return self._settled(job, verdict, now, self._policies[:place], alone)
            self._put_off.setdefault(index, set()).add(place)
            self._withdraw(job, now, self._policies[:place])
            self._wait(job, now + verdict, alone)
            return verdict
        return None

    def settle(
        self, item: Any, outcome: Outcome[Any], now: float, *, alone: bool = False
    ) -> Outcome[Any] | float:
        """What becomes of an attempt: an outcome, or the seconds after which it is made again, for which it
        waits here."""
        job = self._jobs.get(outcome.index)
        if job is None:
            try:
                job = self._jobs[outcome.index] = self._job(outcome.index, item)
            except Exception:  # noqa: BLE001  # the caller's key or cost: nobody can say any more of it
                return outcome
        job.attempts = outcome.attempts
        return self._settled(job, outcome, now, self._policies, alone)

    def again(self, index: int, item: Any, now: float) -> None:
        """Its worker was lost: it is to be admitted once more, and to run alone."""
        if (job := self._jobs.get(index)) is not None:
            self._withdraw(job, now, self._policies)
        else:
            job = self._jobs[index] = Job(index, item, batch=self._number)
        self._wait(job, now, alone=True)

    def watch(self, now: float) -> tuple[str, Any]:
        """Those that look after what runs do so: why the fattest worker has to end, if it has, and who says
        so."""
        self.watch_at = math.inf
        reason: tuple[str, Any] = "", None
        for policy in list(self._watchers):
            try:
                at, why = policy.watch(now, self._number)
            except Exception:  # noqa: BLE001  # what runs is not concerned
                logger.exception("the %s policy failed, and watches no more", policy.name)
                self._watchers.remove(policy)
                continue
            self.watch_at = min(self.watch_at, at)
            reason = reason if reason[0] else (why, policy)
        return reason

    def counts(self) -> dict[str, dict[str, Any]]:
        """What policies have counted, by their names."""
        counts: dict[str, dict[str, Any]] = {}
        for policy in self._policies:
            try:
                if (counted := getattr(policy, "counts", None)) is not None:
                    counts[policy.name] = counted()
            except Exception:  # noqa: BLE001  # nothing that was handed out is concerned
                logger.exception("the %s policy could not say what it has counted", policy.name)
        return counts

    def leave(self, now: float, total: int | None = None) -> None:
        """The batch ends: what has no outcome gives back what it took.

        :param total: items of the input, if all were drawn.
        """
        for job in self._jobs.values():
            self._withdraw(job, now, self._policies)
        self._jobs.clear()
        self._waits.clear()
        self._put_off.clear()
        self._later.clear()
        for policy in self._keepers:
            try:
                if total is not None:
                    policy.set_total(total)
                policy.flush()
            except VideoError as error:  # nothing that was handed out is concerned
                logger.warning("%s", error)

    def drop(self, index: int, now: float) -> bool:
        """An item is not wanted any more; False: it does not wait here."""
        if self._waits.pop(index, None) is None:
            return False
        self._put_off.pop(index, None)
        self._withdraw(self._jobs[index], now, self._policies)
        others = self._others(self._jobs.pop(index))
        self._wake(others, now)
        return True

    def saw(self, index: int) -> bool:
        """Whether an item was looked at by itself, and has no outcome yet."""
        return index in self._jobs

    @property
    def saw_any(self) -> bool:
        """Whether it has looked at any item that has no outcome yet."""
        return bool(self._jobs)

    def passed(self, count: int, now: float) -> None:
        """So many items that nothing looked at have ended well."""
        for policy in self._policies:
            policy.passed(count, now)

    # Those that wait

    @property
    def next_at(self) -> float:
        """When one that waits is to be looked at again; infinite: none waits."""
        while self._later and not self._holds(self._later[0]):
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else float("inf")

    def waiting(self) -> list[int]:
        """Items that wait here, by index."""
        return sorted(self._waits)

    def due(self, now: float, most: int) -> list[tuple[int, Any, bool]]:
        """Some that are to be looked at again, and wait here no more: (index, item, whether to run alone)."""
        found: list[tuple[int, Any, bool]] = []
        while len(found) < most and self._later and self._later[0][0] <= now:
            one = heapq.heappop(self._later)
            if self._holds(one):
                _, item, alone = self._waits.pop(one[1])
                found.append((one[1], item, alone))
        return found

    def _wait(self, job: Job, at: float, alone: bool) -> None:
        self._waits[job.index] = at, job.item, alone
        heapq.heappush(self._later, (at, job.index))

    def _holds(self, one: tuple[float, int]) -> bool:
        wait = self._waits.get(one[1])
        return wait is not None and wait[0] == one[0]

    def _others(self, job: Job) -> list[int]:
        """Those that waited for what has become of this one."""
        found: list[int] = []
        for policy in self._wakers:
            try:
                found += policy.waiting(job)
            except Exception:  # noqa: BLE001  # they ask again by themselves
                logger.exception("the %s policy could not say who waits for item %d", policy.name, job.index)
        return found

    def _wake(self, indexes: Iterable[int], now: float) -> None:
        """They are to be looked at now, rather than when they said that they would ask again."""
        for index in indexes:
            at, item, alone = self._waits.get(index, (-math.inf, None, False))
            if at > now:
                self._waits[index] = now, item, alone
                heapq.heappush(self._later, (now, index))

    def _settled(
        self, job: Job, outcome: Outcome[Any], now: float, policies: Sequence[Policy], alone: bool
    ) -> Outcome[Any] | float:
        for place in range(len(policies) - 1, -1, -1):
            policy = policies[place]
            try:
                verdict = policy.settle(job, outcome, now)
            except Exception:  # noqa: BLE001  # it ran, and its outcome must not be lost for a policy's sake
                logger.exception("the %s policy failed over item %d", policy.name, job.index)
                continue
            if isinstance(verdict, Outcome):
                outcome = verdict
            elif verdict is not None:
                self._withdraw(job, now, policies[:place])
                self._wait(job, now + verdict, alone)
                return verdict
        del self._jobs[job.index]
        self._put_off.pop(job.index, None)
        if self._wakers:
            self._wake(self._others(job), now)
        return outcome

    def _withdraw(self, job: Job, now: float, policies: Sequence[Policy]) -> None:
        for policy in reversed(policies):
            try:
                policy.withdraw(job, now)
            except Exception:  # noqa: BLE001  # as in `_settled`
                logger.exception("the %s policy failed over item %d", policy.name, job.index)

    def _job(self, index: int, item: Any) -> Job:
        key = self._key(item) if self._key is not None else ""
        cost = self._cost(item) if self._cost is not None else None
        return Job(index, item, key=key, cost=cost, batch=self._number)


def _failed(policy: Policy, error: Exception) -> Exception:
    if isinstance(error, VideoError):
        return error
    failure = TaskError(f"the {policy.name} policy failed over it ({described(error)})")
    failure.__cause__ = error
    return failure
