"""Time limits, and what is stopped where the engine can kill."""

from __future__ import annotations

import functools

from video.errors import ConfigError, ItemCancelled, ItemTimeout
from video.testing import tasks
from video.testing.base import Bench, ended, expect, folder, holds, promise, refused, until

LIMIT = 1.0
"""Seconds: long enough that quick items do not overrun it on a busy machine."""


@promise(4)
def a_time_limit_costs_the_stuck_item_alone(bench: Bench) -> None:
    """A time limit costs the item that is stuck, at its deadline and not at its end; an inline
    engine, which cannot hold limits, refuses them."""
    hang = tasks.hang_at if bench.traits.kills else tasks.wait_at
    with folder() as place, bench.runner(timeout=LIMIT) as runner:
        task = functools.partial(hang, 3, str(place), bench.stuck_seconds)
        try:
            runner.map(tasks.double, range(4))  # not every engine puts the clock off until a worker is there
            found = runner.map(task, range(8))
        except ConfigError as error:
            refused(error, bench)
            return
        holds(not (place / "ended").exists(), "its outcome came when it had ended, not at its deadline")
        expect(found, range(8), {3: ItemTimeout})


@promise(4)
def waiting_is_not_charged(bench: Bench) -> None:
    """The limit is for an item's own run: those that wait for a worker do not time out."""
    with bench.runner(timeout=LIMIT, max_workers=1) as runner:
        try:
            runner.map(tasks.double, range(4))
            found = runner.map(functools.partial(tasks.linger, LIMIT / 4), range(8))
        except ConfigError as error:
            refused(error, bench)
            return
        expect(found, range(8))


@promise(4, "kills")
def a_time_limit_ends_the_function_and_its_children(bench: Bench) -> None:
    """At its deadline a stuck function is dead, and so is the child process that it waits for."""
    with folder() as place, bench.runner(timeout=LIMIT) as runner:
        task = functools.partial(tasks.hang_at, 1, str(place), bench.stuck_seconds)
        expect(runner.map(task, range(3)), range(3), {1: ItemTimeout})
        ended(place, "an item that timed out")
        expect(runner.map(tasks.double, range(10)), range(0, 20, 2))


@promise(4, "kills")
def a_running_item_can_be_cancelled(bench: Bench) -> None:
    """`cancel` stops one running item, its process and its children; the others go on."""
    with folder() as place, bench.runner() as runner:
        task = functools.partial(tasks.hang_at, 0, str(place), bench.stuck_seconds)
        stream = runner.stream(task, range(6), ordered=False)
        found = [next(stream)]
        until(lambda: tasks.signed(place, "worker"), "the item does not begin")
        holds(stream.cancel(0), "`cancel` says that it cannot")
        found += stream
        expect(sorted(found, key=lambda one: one.index), range(6), {0: ItemCancelled})
        ended(place, "a cancelled item")


@promise(4, "coroutines")
def a_time_limit_cancels_a_coroutine(bench: Bench) -> None:
    """A coroutine that overruns its limit is cancelled, and unwinds."""
    with folder() as place, bench.runner(timeout=LIMIT) as runner:
        task = functools.partial(tasks.hang_softly_at, 3, str(place), 60.0)
        expect(runner.map(task, range(8)), range(8), {3: ItemTimeout})
        until((place / "cancelled").exists, "the coroutine was not cancelled")
