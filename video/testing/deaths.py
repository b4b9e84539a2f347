"""Workers that die: for engines with processes of their own."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable

from video.errors import Quarantined, WorkerDied
from video.testing import tasks
from video.testing.base import Bench, expect, folder, holds, promise

COUNT, VICTIM = 60, 33
"""Enough items that the victim travels in the middle of a chunk."""


def _death(bench: Bench, how: Callable[[], None], code: int) -> None:
    """One item ends its worker; the pool then goes on.

    :param code: the exit code, or a signal's number below 0; an engine may not know it, but must not err.
    """
    with folder() as place, bench.runner() as runner:
        task = functools.partial(tasks.die_at, VICTIM, how, str(place))
        kind = WorkerDied if bench.traits.exact else Exception
        error = expect(runner.map(task, range(COUNT)), range(COUNT), {VICTIM: kind})[VICTIM]
        if isinstance(error, WorkerDied):
            known = (code,) if bench.traits.exact else (None, code)
            holds(error.exitcode in known, f"its exit code is {code}, but is said to be {error.exitcode}")
        expect(runner.map(tasks.double, range(COUNT)), range(0, 2 * COUNT, 2))


@promise(3, "pickles")
def a_worker_that_exits_costs_its_item(bench: Bench) -> None:
    """A worker that leaves by `os._exit` costs the item that it ran; the others finish, the pool refills."""
    _death(bench, tasks.leave, 7)


@promise(3, "pickles", "posix")
def a_worker_that_is_killed_costs_its_item(bench: Bench) -> None:
    """A worker that is killed by SIGKILL, as for want of memory, costs the item that it ran."""
    _death(bench, tasks.kill, -signal.SIGKILL)


@promise(3, "pickles", "posix")
def a_crash_in_native_code_costs_its_item(bench: Bench) -> None:
    """A real segmentation fault costs the item that it happened in."""
    _death(bench, tasks.crash, -signal.SIGSEGV)


@promise(3, "pickles")
def two_deaths_at_once_cost_two_items(bench: Bench) -> None:
    """Two workers that die in one batch cost their two items."""
    with folder() as place, bench.runner() as runner:
        first = functools.partial(tasks.die_at, 20, tasks.leave, str(place))
        second = functools.partial(tasks.die_at, 21, tasks.leave, str(place))

        def both(item: int) -> int:
            return first(item) if item % 2 == 0 else second(item)

        kind = WorkerDied if bench.traits.exact else Exception
        expect(runner.map(both, range(40)), range(40), {20: kind, 21: kind})


@promise(3, "exact")
def what_a_chunk_had_finished_is_kept(bench: Bench) -> None:
    """A death reruns nothing: what its chunk had finished is kept, what it had not begun runs once."""
    with folder() as place, bench.runner() as runner:
        task = functools.partial(tasks.die_at, VICTIM, tasks.leave, str(place))
        expect(runner.map(task, range(COUNT)), range(COUNT), {VICTIM: WorkerDied})
        twice = {item: count for item, count in tasks.marks(place).items() if count != 1}
        holds(not twice, f"these items ran more than once (item: times): {twice}")


@promise(14, "pickles")
def an_item_that_kills_again_is_given_up(bench: Bench) -> None:
    """An item that kills worker after worker is quarantined, not run for ever."""
    with folder() as place, bench.runner(max_kills=2) as runner:
        task = functools.partial(tasks.die_at, VICTIM, tasks.leave, str(place))
        kind = Quarantined if bench.traits.exact else Exception
        error = expect(runner.map(task, range(COUNT)), range(COUNT), {VICTIM: kind})[VICTIM]
        runs = tasks.marks(place)[VICTIM]
        if isinstance(error, Quarantined):
            holds(error.kills == 2, f"it was to kill 2 workers, and is said to have killed {error.kills}")
        holds(runs <= (2 if bench.traits.exact else 4), f"it ran {runs} times")
