"""Whoever works beside a batch: other runners, other threads, async callers, observers; and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import itertools
import warnings
from collections.abc import Iterator

from video.errors import BatchFailed
from video.events import Event, Kind
from video.testing import tasks
from video.testing.base import Bench, aside, expect, folder, heard, holds, promise, until


@promise(11)
def two_runners_side_by_side(bench: Bench) -> None:
    """Two runners at once do not disturb each other, whatever happens to one of them."""
    with bench.runner() as mine, folder() as place:
        stream = mine.stream(functools.partial(tasks.linger, 0.01), range(40))
        found = [next(stream)]
        with bench.runner() as other:
            expect(other.map(tasks.double, range(50)), range(0, 100, 2))
            if bench.traits.pickles:
                task = functools.partial(tasks.die_at, 5, tasks.leave, str(place))
                expect(other.map(task, range(10)), range(10), {5: Exception})
        expect([*found, *stream], range(40))
        expect(mine.map(tasks.double, range(10)), range(0, 20, 2))


@promise(11)
def eight_threads_share_a_runner(bench: Bench) -> None:
    """Eight threads may use one runner at once; each gets its own outcomes."""
    with bench.runner() as runner, contextlib.ExitStack() as stack:

        def use(number: int) -> None:
            task = functools.partial(tasks.add, 1000 * number)
            expect(runner.map(task, range(60)), range(1000 * number, 1000 * number + 60))

        failures = [stack.enter_context(aside(functools.partial(use, number))) for number in range(8)]
        stack.close()
        holds(not any(failures), f"a thread got something else: {next(filter(None, failures), [])}")


@promise(13)
def async_callers_are_not_blocked(bench: Bench) -> None:
    """An event loop goes on while a batch runs, and a caller that is cancelled leaves the batch."""

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        async def use_for_ever() -> None:
            async for _ in runner.astream(tasks.double, itertools.count()):
                begun.set()

        begun, ticker = asyncio.Event(), asyncio.create_task(tick())
        try:
            task = functools.partial(tasks.linger, 0.05)
            expect([one async for one in runner.astream(task, range(8))], range(8))
            counted = ticks
            user = asyncio.create_task(use_for_ever())
            await begun.wait()
            user.cancel()
            await asyncio.wait([user])
            holds(user.cancelled(), "a caller that was cancelled ended otherwise")
            return counted
        finally:
            ticker.cancel()

    with bench.runner() as runner:
        ticks = asyncio.run(main())
        holds(ticks >= 5, f"the event loop came round {ticks} times while items ran for 0.2 s")
        expect(runner.map(tasks.double, range(3)), [0, 2, 4])


@promise(13)
def observers_break_nothing(bench: Bench) -> None:
    """An observer hears of the start, each item and the end; one that raises is logged and breaks nothing."""
    events: list[Event] = []

    def broken(_: Event) -> None:
        raise RuntimeError("an observer that fails")

    task = functools.partial(tasks.raise_at, 3, tasks.value_error)
    with heard("video") as records, bench.runner(observers=[broken, events.append]) as runner:
        expect(runner.map(task, range(6)), range(6), {3: ValueError})
    holds(len(records) >= len(events), "an observer that fails is not logged")
    ends = {one.index: one.kind for one in events if one.kind in (Kind.ITEM_FINISHED, Kind.ITEM_FAILED)}
    wanted = {item: Kind.ITEM_FAILED if item == 3 else Kind.ITEM_FINISHED for item in range(6)}
    holds(ends == wanted, f"the observers heard of {ends}")
    first, last = events[0].kind, events[-1].kind
    holds(
        (first, last) == (Kind.BATCH_STARTED, Kind.BATCH_FINISHED), f"they heard {first} first, {last} last"
    )


@promise(13, "pickles")
def what_workers_say_is_heard(bench: Bench) -> None:
    """What items print, log and warn of in a worker arrives where the caller sees it, once."""
    printed = io.StringIO()
    with (
        heard(tasks.SAID) as records,
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("always")
        with bench.runner() as runner:
            expect(runner.map(tasks.say, range(6)), range(6))
        until(
            lambda: printed.getvalue().count("\n") >= 6 and len(records) >= 6,
            lambda: f"6 items printed and logged; {printed.getvalue()!r} and {len(records)} records arrived",
        )
    for words, found in (
        ("printed by", printed.getvalue().splitlines()),
        ("logged by", [record.getMessage() for record in records]),
        ("warned by", [str(one.message) for one in warned if one.category is UserWarning]),
    ):
        wanted = [f"{words} {item}" for item in range(6)]
        holds(sorted(found) == wanted, f"of {words.split()[0]} lines, these arrived: {sorted(found)}")


@promise(14)
def the_first_failure_can_end_a_batch(bench: Bench) -> None:
    """With `fail="fast"` the first failure ends the batch, and says what was done, ran, and never started."""
    drawn = 0

    def counted() -> Iterator[int]:
        nonlocal drawn
        for item in range(40):
            drawn += 1
            yield item

    with folder() as place, bench.runner(fail="fast", chunk_size=1, lookahead=16) as runner:
        task = functools.partial(tasks.raise_later, 5, str(place), 0.3)
        try:
            runner.map(task, counted())
        except BatchFailed as error:
            failed = error
        else:
            raise AssertionError("the batch went on")
        runner.close()
        began = set(tasks.marks(place))
    holds(failed.failed == 5 and 5 in failed.done, f"item 5 failed, but {failed.failed} is said to have")
    holds(isinstance(failed.__cause__, ValueError), f"its cause is {failed.__cause__!r}")
    parts = [list(failed.done), failed.running, failed.waiting]
    holds(
        sorted(itertools.chain(*parts)) == list(range(drawn)),
        f"{drawn} items were drawn; done, running and waiting are said to be {parts}",
    )
    wrong = sorted(began & set(failed.waiting))
    holds(not wrong, f"{failed.waiting} are said never to have started, but {wrong} did")
