"""What the runner promises on every engine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tasks
from tests.waiting import until
from video import ParallelConfig, Runner, registry
from video.backends.serial import SerialBackend, SerialExecutor
from video.errors import BatchFailed, ConfigError, ItemCancelled, ItemTimeout, RemoteTraceback, UnknownName
from video.events import Event, Kind

ENGINES = ["serial", "thread", "process", "async"]


@pytest.fixture(scope="module", params=ENGINES)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with Runner(ParallelConfig(backend=request.param, max_workers=2)) as runner:
        yield runner


def test_outcomes_come_in_input_order(runner: Runner) -> None:
    outcomes = runner.map(tasks.double, range(1000))
    assert [one.index for one in outcomes] == list(range(1000))
    assert [one.value for one in outcomes] == list(range(0, 2000, 2))
    assert all(one.ok and one.attempts == 1 and one.origin == "run" for one in outcomes)


def test_an_empty_input_gives_no_outcomes(runner: Runner) -> None:
    assert runner.map(tasks.double, []) == []


def test_unordered_gives_each_outcome_once(runner: Runner) -> None:
    outcomes = list(runner.stream(tasks.double, range(500), ordered=False))
    assert sorted(one.index for one in outcomes) == list(range(500))


@pytest.mark.parametrize("task", [tasks.fail_on_3, tasks.exit_on_3])
def test_an_item_that_raises_fails_alone(runner: Runner, task: Any) -> None:
    outcomes = runner.map(task, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]
    assert [one.value for one in outcomes] == [0, 1, 2, None, 4, 5]


def test_the_traceback_names_the_line_in_the_task(runner: Runner) -> None:
    error = runner.map(tasks.fail_on_3, [3])[0].error
    assert isinstance(error, ValueError)
    assert str(error) == "three is 3"
    if isinstance(error.__cause__, RemoteTraceback):
        assert "in fail_on_3" in str(error.__cause__)
    else:
        frames = []
        trace = error.__traceback__
        while trace:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert "fail_on_3" in frames


def test_a_lambda_and_a_closure_are_tasks(runner: Runner) -> None:
    add = 7
    assert [one.value for one in runner.map(lambda x: x + add, range(3))] == [7, 8, 9]


def test_an_endless_input_is_drawn_no_further_than_lookahead(runner: Runner) -> None:
    drawn = itertools.count()

    def endless() -> Iterator[int]:
        for _ in iter(int, 1):
            yield next(drawn)

    bounded = Runner(ParallelConfig(backend=runner.config.backend, max_workers=2, lookahead=10))
    with bounded:
        stream = bounded.stream(tasks.double, endless())
        taken = [next(stream).value for _ in range(25)]
        time.sleep(0.1)
        assert taken == list(range(0, 50, 2))
        assert next(drawn) <= 25 + 2 * 10
        stream.close()


def test_a_failing_input_gives_its_outcomes_first_and_then_its_error(runner: Runner) -> None:
    def failing() -> Iterator[int]:
        yield from range(7)
        raise OSError("the list ends badly")

    stream = runner.stream(tasks.double, failing())
    assert [next(stream).value for _ in range(7)] == list(range(0, 14, 2))
    with pytest.raises(OSError, match="ends badly"):
        next(stream)


def test_the_runner_can_be_used_again_after_a_batch_was_left(runner: Runner) -> None:
    for _ in range(3):
        stream = runner.stream(tasks.double, itertools.count())
        assert next(stream).value == 0
        stream.close()
    assert [one.value for one in runner.map(tasks.double, range(5))] == [0, 2, 4, 6, 8]


def test_a_runner_inside_a_worker_runs_inline(runner: Runner) -> None:
    assert runner.map(tasks.nested, [5])[0].value == ["serial", "10", "12"]


def test_several_threads_share_one_runner(runner: Runner) -> None:
    results: list[list[Any]] = []

    def use(first: int) -> None:
        results.append([one.value for one in runner.map(tasks.double, range(first, first + 200))])

    users = [threading.Thread(target=use, args=(1000 * n,)) for n in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(30)
    assert sorted(map(tuple, results)) == [
        tuple(range(2000 * n, 2000 * n + 400, 2)) for n in range(4)
    ]  # fmt: skip


def test_a_closed_runner_starts_anew(runner: Runner) -> None:
    runner.close()
    assert runner.map(tasks.double, [4])[0].value == 8


def test_async_callers_get_the_same_outcomes_and_are_not_blocked(runner: Runner) -> None:
    async def main() -> tuple[list[Any], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        values = [one.index async for one in runner.astream(lambda _: time.sleep(0.02), range(10))]
        ticker.cancel()
        return values, ticks

    values, ticks = asyncio.run(main())
    assert values == list(range(10))
    assert ticks >= 3


def test_a_cancelled_async_caller_leaves_the_batch(runner: Runner) -> None:
    async def main() -> None:
        async def use() -> None:
            async for _ in runner.astream(tasks.double, itertools.count()):
                await asyncio.sleep(0)

        user = asyncio.create_task(use())
        await asyncio.sleep(0.2)
        user.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user

    asyncio.run(asyncio.wait_for(main(), 20))
    assert runner.map(tasks.double, [1])[0].value == 2


def test_events_tell_of_start_each_item_and_end(runner: Runner) -> None:
    events: list[Event] = []
    with Runner(runner.config, observers=[events.append]) as watched:
        watched.map(tasks.fail_on_3, range(5))
    assert events[0].kind is Kind.BATCH_STARTED
    assert events[0].total == 5
    assert events[-1].kind is Kind.BATCH_FINISHED
    ends = {one.index: one.kind for one in events[1:-1]}
    assert ends == {n: Kind.ITEM_FAILED if n == 3 else Kind.ITEM_FINISHED for n in range(5)}


def test_an_observer_that_raises_breaks_nothing(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Event) -> None:
        raise RuntimeError("observer")

    with Runner(runner.config, observers=[broken]) as watched:
        assert len(watched.map(tasks.double, range(3))) == 3
    assert "observer" in caplog.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 60),
    failing=st.sets(st.integers(0, 59), max_size=8),
    chunk=st.integers(1, 9),
    lookahead=st.integers(1, 12),
    workers=st.integers(1, 4),
    engine=st.sampled_from(ENGINES),
)
def test_nothing_is_lost_or_doubled(
    count: int, failing: set[int], chunk: int, lookahead: int, workers: int, engine: str
) -> None:
    """Order and conservation, whatever the sizes."""

    def task(x: int) -> int:
        if x in failing:
            raise ValueError(x)
        return x

    config = ParallelConfig(backend=engine, max_workers=workers, chunk_size=chunk, lookahead=lookahead)
    with Runner(config) as runner:
        outcomes = runner.map(task, iter(range(count)))
    assert [one.index for one in outcomes] == list(range(count))
    assert {one.index for one in outcomes if not one.ok} == {n for n in failing if n < count}


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_time_limit_costs_the_slow_item_alone(engine: str) -> None:
    with Runner(ParallelConfig(backend=engine, max_workers=2, timeout=0.5)) as runner:
        outcomes = runner.map(tasks.hang_on_3, range(8))
    assert [one.index for one in outcomes if not one.ok] == [3]
    assert isinstance(outcomes[3].error, ItemTimeout)
    assert isinstance(outcomes[3].error, TimeoutError)


def test_a_stuck_thread_does_not_hold_its_slot() -> None:
    """With one worker and one stuck item, the others still run."""
    with Runner(ParallelConfig(backend="thread", max_workers=1, timeout=0.3)) as runner:
        outcomes = runner.map(tasks.hang_on_3, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]


@pytest.mark.parametrize("stuck", [1, 2, 4])
def test_a_batch_of_nothing_but_stuck_threads_ends_all_the_same(stuck: int) -> None:
    freed = threading.Event()
    with Runner(ParallelConfig(backend="thread", max_workers=2, timeout=0.3)) as runner:
        outcomes = runner.map(lambda _: freed.wait(60), range(stuck))
        still_stuck = not freed.is_set() and all(one.seconds < 30 for one in outcomes)
        freed.set()
    assert still_stuck
    assert all(isinstance(one.error, ItemTimeout) for one in outcomes)


def test_a_time_limit_cancels_a_coroutine() -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(60 if x == 3 else 0)
        return x

    with Runner(ParallelConfig(timeout=0.3, backend="async")) as runner:
        outcomes = runner.map(slow, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]


def test_waiting_for_a_worker_is_not_charged_to_the_item() -> None:
    """Ten items of 0.1 s on one worker take 1 s together, and none passes a limit of 0.6 s."""
    with Runner(ParallelConfig(backend="thread", max_workers=1, timeout=0.6)) as runner:
        assert all(one.ok for one in runner.map(lambda _: time.sleep(0.1), range(10)))


def test_a_cancelled_item_that_had_not_begun_never_runs(tmp_path: Path) -> None:
    def task(x: int) -> int:
        (tmp_path / str(x)).touch()
        time.sleep(0.3 if x < 2 else 0)
        return x

    with Runner(ParallelConfig(backend="process", max_workers=1, chunk_size=1)) as runner:
        stream = runner.stream(task, range(4))
        assert next(stream).value == 0
        assert stream.cancel(3)
        outcomes = list(stream)
    assert [one.index for one in outcomes if isinstance(one.error, ItemCancelled)] == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_coroutine_that_cancels_itself_costs_itself() -> None:
    async def task(x: int) -> int:
        if x == 3:
            raise asyncio.CancelledError
        await asyncio.sleep(0)
        return x

    with Runner(ParallelConfig(backend="async", max_workers=8)) as runner:
        outcomes = runner.map(task, range(40))
    assert [one.index for one in outcomes if not one.ok] == [3]


def test_coroutines_run_side_by_side() -> None:
    at_once = most = 0

    async def count(_: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1

    with Runner(ParallelConfig(max_workers=8)) as runner:
        assert all(one.ok for one in runner.map(count, range(40)))
    assert 2 <= most <= 8


def test_a_coroutine_task_needs_the_async_engine() -> None:
    with Runner(ParallelConfig(backend="thread")) as runner, pytest.raises(ConfigError, match="async"):
        runner.map(tasks.double_later, [1])


def test_an_unknown_engine_lists_those_that_exist() -> None:
    with Runner(ParallelConfig(backend="proces")) as runner, pytest.raises(UnknownName, match="process"):
        runner.map(tasks.double, [1])


def test_a_task_that_cannot_be_called_is_refused_at_once() -> None:
    with Runner() as runner, pytest.raises(ConfigError, match="function"):
        runner.stream(3, [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_closing_the_runner_ends_what_runs_and_its_unfinished_files(engine: str, tmp_path: Path) -> None:
    """The batch ends with an error in its own thread, rather than with fewer outcomes."""
    path, ends = tmp_path / "a.part", []

    def use() -> None:
        try:
            runner.map(tasks.write_until_cancelled, [str(path)] * 3)
        except ItemCancelled as error:
            ends.append(error)

    with Runner(ParallelConfig(backend=engine, max_workers=2)) as runner:
        user = threading.Thread(target=use, daemon=True)
        user.start()
        until(path.exists)
        runner.close()
        assert not path.exists()
        user.join(20)
    assert len(ends) == 1


def test_native_threads_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.resources.usable_cpus", lambda: 8)
    with Runner(ParallelConfig(backend="thread", max_workers=4)) as runner:
        assert {one.value for one in runner.map(tasks.threads, range(8))} == {2}
        assert {one.value for one in runner.map(tasks.threads, range(2))} == {4}
    with Runner(ParallelConfig(backend="thread", max_workers=4, threads_per_worker=1)) as runner:
        assert {one.value for one in runner.map(tasks.threads, range(8))} == {1}


def test_a_stream_keeps_its_runner_alive() -> None:
    """Whoever keeps only the stream still gets every outcome."""
    stream = Runner(ParallelConfig(backend="thread", max_workers=2)).stream(tasks.double, range(50))
    gc.collect()
    assert [one.value for one in stream] == list(range(0, 100, 2))


def test_a_slow_input_holds_up_neither_outcomes_nor_time_limits() -> None:
    def slow() -> Iterator[int]:
        for n in range(8):
            time.sleep(0.15)
            yield n

    with Runner(ParallelConfig(backend="thread", max_workers=4, timeout=0.4)) as runner:
        started = time.monotonic()
        stream = runner.stream(tasks.hang_on_3, slow(), ordered=False)
        seen = [(outcome.index, time.monotonic() - started) for outcome in stream]
    assert sorted(index for index, _ in seen) == list(range(8))
    when = dict(seen)
    assert when[0] < when[7] - 0.5, "the first outcome waited for the last item to be drawn"
    assert when[3] < when[7], "the time limit waited for the input"


def test_a_time_limit_on_the_serial_engine_is_refused() -> None:
    with (
        Runner(ParallelConfig(backend="serial", timeout=1)) as runner,
        pytest.raises(ConfigError, match="limit"),
    ):
        runner.map(tasks.double, [1])


def test_an_engine_that_cancels_a_call_costs_that_item() -> None:
    """A plugin's executor may do so; the batch goes on."""

    class Canceller(SerialExecutor):
        def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
            if args[1] != [3]:
                return super().submit(fn, *args)
            future: Future[Any] = Future()
            future.cancel()
            return future

    class Backend(SerialBackend):
        def open(self, workers: int) -> Canceller:
            return Canceller(self._config)

    registry.backends.register("canceller", Backend)
    with Runner(ParallelConfig(backend="canceller", chunk_size=1)) as runner:
        outcomes = runner.map(tasks.double, range(6))
    assert [one.index for one in outcomes if not one.ok] == [3]
    assert isinstance(outcomes[3].error, ItemCancelled)


def test_attempts_say_how_often_an_item_ran() -> None:
    with Runner(ParallelConfig(backend="process", max_workers=1, chunk_size=8)) as runner:
        outcomes = runner.map(tasks.kill_on_3, [*[0] * 40, 3, *[0] * 40])
    assert [one.index for one in outcomes if not one.ok] == [40]
    assert outcomes[40].attempts in (1, 2)
    assert {one.attempts for one in outcomes} <= {1, 2}
    assert outcomes[0].attempts == 1


@pytest.mark.parametrize("engine", ["thread", "process", "async"])
def test_closing_does_not_wait_for_items_that_run(engine: str) -> None:
    runner = Runner(ParallelConfig(backend=engine, max_workers=2))
    stream = runner.stream(tasks.hang_on_3, [0, 3, 3, 3, 3])
    assert next(stream).value == 0
    started = time.monotonic()
    runner.close()
    assert time.monotonic() - started < 20
    with pytest.raises(ItemCancelled):
        next(stream)


def test_a_program_can_end_in_the_middle_of_a_stream() -> None:
    code = (
        "from video import *; from tests import tasks\n"
        "runner = Runner(ParallelConfig(backend='process', max_workers=2))\n"
        "print(next(runner.stream(tasks.hang_on_3, [0, 3, 3])).value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "0\n"


def test_a_forked_child_does_not_disturb_its_parents_workers() -> None:
    """It gets workers of its own, and leaves those of its parent alone when it ends."""
    with Runner(ParallelConfig(backend="process", max_workers=2)) as runner:
        assert runner.map(tasks.double, [1])[0].value == 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks with threads
            child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                signal.alarm(20)
                code = 0 if runner.map(tasks.double, [4])[0].value == 8 else 1
                runner.close()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert runner.map(tasks.double, [5])[0].value == 10


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_that_cannot_say_what_it_is_can_end_a_batch() -> None:
    def task(_: int) -> None:
        raise Speechless

    config = ParallelConfig(backend="thread", fail="fast")
    with Runner(config) as runner, pytest.raises(BatchFailed, match="Speechless") as caught:
        runner.map(task, range(3))
    assert isinstance(caught.value.__cause__, Speechless)


@pytest.mark.parametrize(
    ("wrong", "near"), [({"checkpiont": None}, "checkpoint"), ({"ordred": False}, "ordered")]
)
def test_a_misspelt_argument_of_a_batch_is_refused(wrong: dict[str, Any], near: str) -> None:
    """Else a caller would believe that his batch can be resumed, say."""
    with (
        Runner(ParallelConfig(backend="serial")) as runner,
        pytest.raises(ConfigError, match=f"Did you mean {near}"),
    ):
        runner.map(abs, [1], **wrong)


def test_a_signal_that_wakes_nobody_is_heeded_all_the_same() -> None:
    """As one that comes just before a wait; `interrupt_main` leaves it to be found, and ends no wait."""
    program = """if True:
        import _thread, threading, time
        from video import ParallelConfig, Runner
        if __name__ == "__main__":
            with Runner(ParallelConfig(backend="process", max_workers=1)) as runner:
                runner.map(abs, [1])
                threading.Timer(0.5, _thread.interrupt_main).start()
                try:
                    runner.map(time.sleep, [60])
                except KeyboardInterrupt:
                    print("heeded")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert done.stdout == "heeded\n", done.stderr


@pytest.mark.parametrize(("engine", "limit"), [("serial", 64), ("thread", 300)])
def test_items_that_stay_in_this_process_are_drawn_little_ahead(engine: str, limit: int) -> None:
    """Its memory holds them, and their results: 20 ms of work for each chunk are enough."""
    drawn = most = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    config = ParallelConfig(backend=engine, max_workers=2)
    with Runner(config) as runner, runner.stream(rests, endless()) as stream:
        for read in range(400):
            assert next(stream).ok
            most = max(most, drawn - read)
    assert most <= limit


def rests(item: int) -> int:
    time.sleep(0.001)
    return item
