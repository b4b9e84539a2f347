"""One item, one outcome; what fails, fails alone; what a task may be; the same results everywhere."""

from __future__ import annotations

import functools
import itertools
import time
import traceback
from collections.abc import Callable
from typing import Any

from video.errors import NotPicklable, RemoteError, RemoteTraceback
from video.testing import tasks
from video.testing.base import Bench, expect, folder, holds, promise


@promise(1)
def every_item_has_one_outcome_in_order(bench: Bench) -> None:
    """Each item ends in one outcome, and they come in input order."""
    with bench.runner() as runner:
        found = runner.map(tasks.double, range(1000))
        expect(found, range(0, 2000, 2))
        odd = next((one for one in found if one.attempts != 1 or one.origin != "run"), None)
        holds(odd is None, f"nothing went wrong, but an outcome says otherwise: {odd}")
        expect(runner.map(tasks.double, []), [])


@promise(1)
def as_completed_loses_and_doubles_nothing(bench: Bench) -> None:
    """Outcomes in the order in which they finish are the same ones, each once."""
    task = functools.partial(tasks.raise_at, 77, tasks.value_error)
    with bench.runner() as runner:
        found = list(runner.stream(task, range(300), ordered=False))
    expect(sorted(found, key=lambda one: one.index), range(300), {77: ValueError})


@promise(1)
def no_item_runs_twice(bench: Bench) -> None:
    """Where nothing goes wrong, each item runs exactly once."""
    with folder() as place, bench.runner() as runner:
        expect(runner.map(functools.partial(tasks.note, str(place)), range(50)), range(50))
        twice = {item: count for item, count in tasks.marks(place).items() if count != 1}
        holds(not twice, f"these items ran more than once (item: times): {twice}")


@promise(1)
def odd_sizes_lose_nothing(bench: Bench) -> None:
    """Nothing is lost where chunks, lookahead and the input do not divide evenly."""
    for count, chunk, lookahead in ((1, 1, 1), (13, 5, 3), (29, 2, 7)):
        with bench.runner(chunk_size=chunk, lookahead=lookahead) as runner:
            expect(runner.map(tasks.double, iter(range(count))), range(0, 2 * count, 2))


@promise(2)
def an_item_that_raises_fails_alone(bench: Bench) -> None:
    """An item that raises fails alone, with the type, the message and the traceback of its error."""
    task = functools.partial(tasks.raise_at, 13, tasks.value_error)
    with bench.runner() as runner:
        error = expect(runner.map(task, range(30)), range(30), {13: ValueError})[13]
    holds(str(error) == "a bad item", f"its message is {str(error)!r}")
    if bench.traits.pickles:
        holds(isinstance(error.__cause__, RemoteTraceback), f"its cause is no traceback: {error.__cause__!r}")
    text = "".join(traceback.format_exception(error))
    holds("in raise_at" in text, f"its traceback does not show the task:\n{text}")


@promise(2)
def an_item_that_exits_fails_alone(bench: Bench) -> None:
    """`sys.exit()` in an item ends that item, neither its worker's other items nor the program."""
    with bench.runner() as runner:
        expect(runner.map(functools.partial(tasks.exit_at, 13), range(30)), range(30), {13: SystemExit})


@promise(2)
def an_item_without_memory_fails_alone(bench: Bench) -> None:
    """A MemoryError fails its item alone."""
    task = functools.partial(tasks.raise_at, 13, MemoryError)
    with bench.runner() as runner:
        expect(runner.map(task, range(30)), range(30), {13: MemoryError})


@promise(2, "pickles")
def an_argument_that_does_not_pickle_fails_alone(bench: Bench) -> None:
    """An item that cannot be pickled, or not unpickled, fails alone, and says so."""
    items = [*range(10), tasks.Unpicklable(), *range(11, 20), tasks.Unloadable(), *range(21, 30)]
    with bench.runner() as runner:
        errors = expect(
            runner.map(tasks.same, items), range(30), {10: NotPicklable, 20: (NotPicklable, RuntimeError)}
        )
    holds("it refuses" in str(errors[10]), f"why it cannot be pickled is not said: {errors[10]}")


@promise(2, "pickles")
def a_result_that_does_not_pickle_fails_alone(bench: Bench) -> None:
    """A result that cannot be pickled, or not unpickled, fails its item alone."""
    with bench.runner() as runner:
        for make, kinds in ((tasks.Unpicklable, NotPicklable), (tasks.Unloadable, Exception)):
            task = functools.partial(tasks.return_at, 13, make)
            expect(runner.map(task, range(30)), range(30), {13: kinds})


@promise(2, "pickles")
def an_error_that_does_not_pickle_fails_alone(bench: Bench) -> None:
    """An error that cannot be pickled, or not unpickled, arrives by its name and with its traceback."""
    with bench.runner() as runner:
        for make, name in ((tasks.StubbornError, "StubbornError"), (tasks.odd_error, "OddError")):
            task = functools.partial(tasks.raise_at, 13, make)
            error = expect(runner.map(task, range(30)), range(30), {13: RemoteError})[13]
            holds(getattr(error, "kind", None) == name, f"{name} does not arrive by its name: {error!r}")
            holds("in raise_at" in str(error.__cause__), f"{name} arrives without its traceback")


@promise(7)
def any_callable_is_a_task(bench: Bench) -> None:
    """A task may be a lambda, a closure, a partial, a bound method or an object that can be called."""
    number = 7
    adder = tasks.Adder(7)

    def closure(item: int) -> int:
        return item + number

    kinds: list[tuple[str, Callable[[int], Any]]] = [
        ("a lambda", lambda item: item + 7),
        ("a closure", closure),
        ("a partial", functools.partial(tasks.add, 7)),
        ("a bound method", adder.add),
        ("an object", adder),
        ("a built-in", (7).__add__),
    ]
    with bench.runner() as runner:
        for words, task in kinds:
            values = [one.error or one.value for one in runner.map(task, range(5))]
            holds(values == [7, 8, 9, 10, 11], f"{words} gave {values}")


MAIN = """
class Point:
    def __init__(self, x):
        self.x = x

def move(point):
    if point.x == 3:
        raise Lost(point.x)
    return Point(point.x + 1)

class Lost(Exception):
    pass
"""


@promise(7)
def what_main_defines_travels(bench: Bench) -> None:
    """Functions, classes and errors of `__main__` or of a notebook cross both ways, as themselves."""
    main: dict[str, Any] = {"__name__": "__main__"}
    exec(MAIN, main)  # noqa: S102  # as the interpreter runs a script; the text stands above
    with bench.runner() as runner:
        found = runner.map(main["move"], [main["Point"](x) for x in range(6)])
    values = [getattr(one.value, "x", one.error or one.value) for one in found]
    holds(all(type(one.value) is main["Point"] for one in found if one.ok), "its classes arrive as others")
    holds([*values[:3], *values[4:]] == [1, 2, 3, 5, 6], f"its objects arrive as {values}")
    holds(type(found[3].error) is main["Lost"], f"its error arrives as {found[3].error!r}")


@promise(7, "coroutines")
def coroutine_functions_are_tasks(bench: Bench) -> None:
    """`async def` tasks are awaited side by side, and one that raises fails alone."""
    with bench.runner(max_workers=8) as runner:
        expect(runner.map(tasks.double_later, range(50)), range(0, 100, 2), {5: ValueError})
        started = time.monotonic()
        expect(runner.map(tasks.linger_softly, range(16)), range(16))
        # One after the other they take 16 s; the bound is generous, for a busy machine.
        holds(time.monotonic() - started < 12, "coroutines run one after the other")


@promise(12)
def results_are_those_of_a_plain_loop(bench: Bench) -> None:
    """The same input and seeds give the results, and the errors, of a plain loop."""
    with bench.runner() as runner:
        for one in itertools.chain(runner.map(tasks.draw, range(100)), runner.map(tasks.draw, range(100))):
            try:
                value: Any = tasks.draw(one.index)
            except ArithmeticError as error:
                value = repr(error)
            here = one.value if one.error is None else repr(one.error)
            holds(here == value, f"item {one.index} gave {here!r}, a plain loop {value!r}")
