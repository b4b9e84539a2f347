"""Inputs of any kind: endless, failing, and how far ahead they are drawn."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator

from video.outcome import Outcome
from video.testing import tasks
from video.testing.base import Bench, expect, holds, promise

LOOKAHEAD = 12


@promise(5)
def an_endless_input_is_drawn_little_ahead(bench: Bench) -> None:
    """Of an endless input at most `lookahead` items are drawn ahead; the batch can be left at any time."""
    found: list[Outcome[int]] = []
    ahead = 0

    def endless() -> Iterator[int]:
        nonlocal ahead
        for item in itertools.count():
            ahead = max(ahead, item + 1 - len(found))
            yield item

    with bench.runner(lookahead=LOOKAHEAD) as runner:
        rounds = runner.rounds(tasks.double, endless())
        with contextlib.closing(rounds):
            for some in rounds:
                found += some
                if len(found) >= 60:
                    break
    expect(found, range(0, 2 * len(found), 2))
    holds(ahead <= LOOKAHEAD, f"{ahead} items were drawn ahead, not {LOOKAHEAD}")


@promise(5)
def results_that_wait_for_their_turn_are_bounded(bench: Bench) -> None:
    """While the first item takes its time, no more than `lookahead` results pile up behind it."""
    found: list[Outcome[float]] = []
    drawn, ahead = 0, 0

    def counted() -> Iterator[float]:
        nonlocal drawn, ahead
        for item in range(40):
            drawn += 1
            ahead = max(ahead, drawn - len(found))
            yield 0.0 if item else 0.3

    with bench.runner(lookahead=LOOKAHEAD) as runner:
        for some in runner.rounds(tasks.linger_for, counted()):
            found += some
    expect(found, [0.3, *[0.0] * 39])
    holds(ahead <= LOOKAHEAD, f"{ahead} items were drawn ahead, not {LOOKAHEAD}")


@promise(5)
def an_input_that_fails_comes_after_its_outcomes(bench: Bench) -> None:
    """If the input raises, the outcomes of all that it gave come first, and then its error."""

    def failing() -> Iterator[int]:
        yield from range(17)
        raise OSError("the list ends badly")

    found = []
    with bench.runner() as runner:
        try:
            for one in runner.stream(functools.partial(tasks.linger, 0.01), failing()):
                found.append(one)  # noqa: PERF402  # what came before the error is kept
        except OSError as error:
            holds("ends badly" in str(error), f"the error is {error!r}")
        else:
            holds(False, "the error of the input is lost")
    expect(found, range(17))
